"""What an authorization server says of itself (OpenID Connect Discovery 1.0, RFC 8414)."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from keyferry.client_auth import ClientAuth, TlsClientAuth
from keyferry.errors import AnswerError, Reason, ResourceError
from keyferry.grants.document import Document, host_of, read_object, shown, strings
from keyferry.grants.failure import Asked, ambiguous, failure, is_success, malformed
from keyferry.model import HttpRequest, HttpResponse

Discovery: TypeAlias = Generator[HttpRequest, HttpResponse, "ProviderMetadata"]

ENDPOINT_FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "token": "token_endpoint",
        "deviceAuthorization": "device_authorization_endpoint",
        "authorization": "authorization_endpoint",
        "revocation": "revocation_endpoint",
        "introspection": "introspection_endpoint",
        "pushedAuthorizationRequest": "pushed_authorization_request_endpoint",
    }
)
"""From the names that a resource uses to those of RFC 8414 2."""

_TAKES_CREDENTIALS: Final = frozenset(ENDPOINT_FIELDS.values()) - {"authorization_endpoint"}
_LOOK_ELSEWHERE: Final = frozenset({400, 404, 405})  # this kind of discovery is not spoken here
_CONFIGURED_INSTEAD: Final = "or name the endpoints in the provider's `endpoints`"


@dataclass(frozen=True, slots=True)
class ProviderMetadata:
    """An authorization server: its issuer identifier and its endpoints; '' is one that it does not have.

    The names are those of RFC 8414 2.
    """

    issuer: str = ""
    token_endpoint: str = ""
    revocation_endpoint: str = ""
    introspection_endpoint: str = ""
    device_authorization_endpoint: str = ""
    authorization_endpoint: str = ""
    pushed_authorization_request_endpoint: str = ""
    jwks_uri: str = ""
    grant_types: tuple[str, ...] = ()
    """As the server lists them; empty where it lists none, which says nothing."""
    mtls_endpoint_aliases: Mapping[str, str] = field(default_factory=dict)
    """Endpoints, by RFC 8414 name, for clients that show a certificate (RFC 8705 5)."""
    authorization_response_iss_parameter_supported: bool = False
    """RFC 9207 3."""
    require_pushed_authorization_requests: bool = False
    """RFC 9126 5."""
    hosts: frozenset[str] = field(init=False, repr=False, compare=False)
    """Each ``host[:port]`` that a credential may go to; the page that only a browser visits is not among them."""

    def __post_init__(self) -> None:
        urls = [getattr(self, name) for name in _TAKES_CREDENTIALS]
        urls.extend(url for name, url in self.mtls_endpoint_aliases.items() if name in _TAKES_CREDENTIALS)
        # Once, and not for each exchange.
        object.__setattr__(self, "hosts", frozenset(host_of(url) for url in urls if url))

    def for_client(self, client: ClientAuth) -> ProviderMetadata:
        """Return the metadata as ``client`` must use it: with the mTLS aliases where it shows a certificate."""
        if not self.mtls_endpoint_aliases:
            return self
        if not isinstance(client, TlsClientAuth):
            return dataclasses.replace(self, mtls_endpoint_aliases={})
        return _with_endpoints(self, self.mtls_endpoint_aliases, aliases={})

    def endpoint(self, name: str) -> str:
        """Return an endpoint by the name that a resource uses (``token``, ``deviceAuthorization``, …).

        Raises `ResourceError` where the provider has none: then the grant that needs it cannot be used.
        """
        url: str = getattr(self, ENDPOINT_FIELDS[name])
        if not url:
            raise ResourceError(
                f"The provider {self.issuer or '(without an issuer)'} names no {ENDPOINT_FIELDS[name]}, which is "
                f"needed here. If it has one, set endpoints.{name} in the provider; else use another grant.",
                reason=Reason.GRANT_NOT_SUPPORTED,
            )
        return url


def discover(issuer: str, *, now: float = 0.0) -> Discovery:
    """Ask ``issuer`` for its metadata: OpenID Connect Discovery first, RFC 8414 where it does not speak that.

    ``now`` (Unix seconds) is what a ``Retry-After`` date is measured from. Raises `AnswerError` for metadata that must
    not be used (another issuer, wrong types), `Ambiguous` and `Refused` where there was no proper answer.
    """
    urls = well_known_urls(issuer)
    response = yield _get(urls[0])
    if response.status in _LOOK_ELSEWHERE:
        response = yield _get(urls[1])
    asked = Asked(urls[0], what="discovery document", at=now)
    if response.status in _LOOK_ELSEWHERE:
        what = f"does not exist (neither {urls[0]} nor {urls[1]}). Correct the issuer, {_CONFIGURED_INSTEAD}"
        raise ambiguous(what, asked, code="no_discovery", suspicious=True)
    document = read_object(response.body) if is_success(response) else None
    if document is None:
        raise failure(response, asked) if not is_success(response) else malformed(asked)
    return read_metadata(document, issuer)


def well_known_urls(issuer: str) -> tuple[str, str]:
    """Return where the metadata of ``issuer`` lie: by OpenID Connect Discovery 4.1, and by RFC 8414 3.1."""
    base = issuer.rstrip("/")
    parts = urlsplit(base)
    return (
        f"{base}/.well-known/openid-configuration",
        f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path}",
    )


def read_metadata(document: Document, issuer: str) -> ProviderMetadata:
    """Read a metadata document that must be that of ``issuer``; raises `AnswerError` where it cannot be used."""
    _check_issuer(document.get("issuer"), issuer)
    aliases = document.get("mtls_endpoint_aliases") or {}
    if not isinstance(aliases, dict):
        raise _unusable(issuer, "mtls_endpoint_aliases is not an object")
    names = (*ENDPOINT_FIELDS.values(), "jwks_uri")
    endpoints = {name: _endpoint(document, name, issuer) for name in names}
    mtls = {name: _endpoint(aliases, name, issuer) for name in ENDPOINT_FIELDS.values()}
    return ProviderMetadata(
        issuer=issuer,
        **endpoints,
        grant_types=strings(document.get("grant_types_supported")),
        mtls_endpoint_aliases=MappingProxyType({name: url for name, url in mtls.items() if url}),
        authorization_response_iss_parameter_supported=_flag(
            document, "authorization_response_iss_parameter_supported", issuer
        ),
        require_pushed_authorization_requests=_flag(document, "require_pushed_authorization_requests", issuer),
    )


def with_overrides(metadata: ProviderMetadata, overrides: Mapping[str, str]) -> ProviderMetadata:
    """Return ``metadata`` with configured endpoints in place of discovered ones, their mTLS aliases included.

    The keys are those of `ENDPOINT_FIELDS`; an empty value changes nothing. Raises `ResourceError` with the field's
    path for an unknown key or a value that is no absolute URL without fragment.
    """
    changes: dict[str, str] = {}
    for key, url in overrides.items():
        if key not in ENDPOINT_FIELDS:
            raise ResourceError(f"endpoints.{shown(key)}: unknown; known are {', '.join(ENDPOINT_FIELDS)}.")
        problem = endpoint_problem(url, "http") if url else ""
        if problem:
            raise ResourceError(f"endpoints.{key}: {problem}.")
        if url:
            changes[ENDPOINT_FIELDS[key]] = url
    aliases = {name: url for name, url in metadata.mtls_endpoint_aliases.items() if name not in changes}
    return _with_endpoints(metadata, changes, aliases=MappingProxyType(aliases))


def _with_endpoints(
    metadata: ProviderMetadata, endpoints: Mapping[str, str], *, aliases: Mapping[str, str]
) -> ProviderMetadata:
    changes: dict[str, Any] = dict(endpoints)  # keys of ENDPOINT_FIELDS only, all of which are strings
    return dataclasses.replace(metadata, mtls_endpoint_aliases=aliases, **changes)


def _get(url: str) -> HttpRequest:
    return HttpRequest("GET", url, headers={"Accept": "application/json"})


def _check_issuer(answered: object, issuer: str) -> None:
    """Refuse metadata of another issuer, which could pose as this one (OIDC Discovery 4.3, RFC 8414 3.3)."""
    if answered == issuer:
        return
    if not isinstance(answered, str):
        raise _unusable(issuer, "it names no issuer")
    hint = "Write it exactly as the server does" if answered.rstrip("/") == issuer.rstrip("/") else "Correct the issuer"
    raise _unusable(
        issuer,
        f'it is that of another issuer, "{_shown_url(answered)}"; the two must be identical, character by character. '
        f"{hint}, {_CONFIGURED_INSTEAD} (and leave the issuer out)",
    )


def _endpoint(document: Document, name: str, issuer: str) -> str:
    url = document.get(name)
    if url is None or url == "":
        return ""
    if not isinstance(url, str):
        raise _unusable(issuer, f"{name} is not a string")
    problem = endpoint_problem(url, urlsplit(issuer).scheme)
    if problem:
        raise _unusable(issuer, f"{name} {problem}")
    return url


def endpoint_problem(url: str, scheme: str) -> str:
    """Say why credentials must not go to ``url``, '' where they may.

    https is always right, and so is ``scheme``, which is what the issuer itself speaks.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"https", scheme} or not host_of(url):
        return "is not an absolute https URL" if scheme == "https" else "is not an absolute http or https URL"
    if "#" in url:
        return "has a fragment, which an endpoint must not have (RFC 6749 3.2)"
    if "@" in parts.netloc or not url.isascii() or not url.isprintable() or " " in url:
        return "holds a user name or characters that no URL may hold"
    return ""


def _flag(document: Document, name: str, issuer: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise _unusable(issuer, f"{name} is neither true nor false")
    return value


def _unusable(issuer: str, problem: str) -> AnswerError:
    return AnswerError(f"The discovery document of {issuer} cannot be used: {problem}.", reason=Reason.INVALID_SPEC)


def _shown_url(url: str) -> str:
    """Return a URL as a message may hold it: an issuer identifier is public, but printable it must be."""
    return "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in url[:200])
