"""Taking a token back (RFC 7009)."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from keyferry.grants.document import host_of, read_object
from keyferry.grants.failure import Asked, failure, is_success
from keyferry.grants.request import form_request
from keyferry.model import HttpRequest, HttpResponse
from keyferry.providers.metadata import discover

if TYPE_CHECKING:
    from keyferry.client_auth import ClientAuth
    from keyferry.secret import SecretValue

Revocation: TypeAlias = Generator[HttpRequest, HttpResponse, None]
Search: TypeAlias = Generator[HttpRequest, HttpResponse, str]
TokenTypeHint: TypeAlias = Literal["access_token", "refresh_token", ""]

_BAD_REQUEST: Final = 400
_NOTHING_TO_DO: Final = frozenset(
    {
        "unsupported_token_type",  # RFC 7009 2.2.1: the server cannot revoke such a token; asking again does not help
        "invalid_token",  # not of RFC 7009, but common: there is no such token any more
    }
)


def revoke(
    endpoint: str,
    client: ClientAuth,
    token: SecretValue,
    hint: TokenTypeHint,
    now: float,
    hidden: tuple[SecretValue, ...] = (),
) -> Revocation:
    """Revoke ``token``; a token that the server does not know counts as revoked (2.2).

    ``hidden`` is what else of the request must be cut out of anything that the server says.
    Raises `Refused` where the server will not, `Ambiguous` where the token must be taken to live on and revoking it is
    to be tried again: it may be repeated at will.
    """
    form = [("token", token.reveal())]
    if hint:
        form.append(("token_type_hint", hint))
    response = yield form_request(endpoint, form, client, now=now)
    if is_success(response):
        return
    error = (read_object(response.body) or {}).get("error")
    if response.status == _BAD_REQUEST and isinstance(error, str) and error in _NOTHING_TO_DO:
        return
    raise failure(
        response, Asked(endpoint, what="revocation endpoint", at=now, secrets=(token, *hidden, *client.secrets))
    )


def find_revocation_endpoint(issuer: str, token_endpoint: str) -> Search:
    """Ask the ``issuer`` that a token names where it is revoked; '' where it names none, or is another server.

    For a provider of which only endpoints are known. The issuer is believed if it has that very ``token_endpoint``,
    and for an endpoint on the same host. Raises as `keyferry.providers.metadata.discover` does.
    """
    if not issuer:
        return ""
    found = yield from discover(issuer)
    if found.token_endpoint != token_endpoint:
        return ""
    own = host_of(found.revocation_endpoint) == host_of(token_endpoint)
    return found.revocation_endpoint if own else ""
