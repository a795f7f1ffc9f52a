"""The one place where form requests to a provider are built (RFC 6749 3.2 and appendix B)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlencode

from keyferry.errors import CredentialError, ResourceError
from keyferry.model import HttpRequest
from keyferry.spec.grant import PROTOCOL_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keyferry.client_auth import ClientAuth
    from keyferry.grants.inputs import GrantInputs

Form: TypeAlias = list[tuple[str, str]]

FORM_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
)


def token_request(
    inputs: GrantInputs, grant: Sequence[tuple[str, str]], *, with_scope: bool = True, one_time: bool = False
) -> HttpRequest:
    """Return the token request of a grant, whose own parameters are ``grant``, ``grant_type`` first.

    ``with_scope`` is off for a refresh (RFC 6749 6). Audiences and resources are parameters of their own, repeated
    (RFC 8693 2.1, RFC 8707 2). Raises `ResourceError` if ``parameters`` would set what the protocol sets.
    """
    form: Form = list(grant)
    if with_scope and inputs.scopes:
        form.append(("scope", " ".join(inputs.scopes)))
    form.extend(("audience", audience) for audience in inputs.audiences)
    form.extend(("resource", resource) for resource in inputs.resources)
    check_parameters(inputs.parameters)
    form.extend(inputs.parameters.items())
    return form_request(inputs.token_endpoint, form, inputs.client, now=inputs.started_at, one_time=one_time)


def form_request(
    endpoint: str, form: Iterable[tuple[str, str]], client: ClientAuth, *, now: float, one_time: bool = False
) -> HttpRequest:
    """Return a POST of ``form`` to ``endpoint`` as ``client``, begun at ``now``; raises `CredentialError`."""
    fields: Form = list(form)
    headers = dict(FORM_HEADERS)
    client.apply(fields, headers, endpoint=endpoint, now=now)
    return HttpRequest("POST", endpoint, headers=headers, body=encode_form(fields), one_time=one_time)


def encode_form(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return ``fields`` as ``application/x-www-form-urlencoded``; raises `CredentialError` for what is not UTF-8."""
    try:
        return urlencode(list(fields)).encode("ascii")
    except UnicodeEncodeError:
        raise CredentialError(
            "A credential or parameter of the request is not text that can be sent (UTF-8)."
        ) from None


def check_parameters(names: Iterable[str]) -> None:
    """Raise `ResourceError` for extra parameters that the protocol sets itself."""
    taken = sorted(name for name in names if name.lower() in PROTOCOL_PARAMETERS)
    if taken:
        raise ResourceError(
            f"parameters: {', '.join(taken)} cannot be set here, for the protocol sets it: use the field meant for it."
        )
