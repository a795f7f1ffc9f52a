"""A token endpoint's answer (RFC 6749 5.1, RFC 8693 2.2.1), read by someone who trusts none of it.

Whatever the bytes are, the outcome is a `TokenSet` or a `KeyferryError`. Once a refresh token has been issued it is
never dropped, even where the access token beside it is of no use: its predecessor may be spent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.grants.claims import read_holder, unverified_claims
from keyferry.grants.document import Document, is_sendable, is_vschar, read_object, seconds, shown, strings
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.model import TokenSet
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.grants.inputs import GrantInputs
    from keyferry.model import HttpResponse

BEARER: Final = "Bearer"

_FOREVER: Final = 100 * 365.25 * 86400.0  # seconds; a refresh token said to live longer is said to live for ever


@dataclass(frozen=True, slots=True)
class AnswerTerms:
    """What an answer leaves out, and what it is measured by."""

    started_at: float
    """Unix seconds; all lifetimes count from here."""
    scope: str = ""
    """What was asked for, which an answer without ``scope`` grants (RFC 6749 5.1)."""
    issuer: str = ""
    client_id: str = ""
    assumed_lifetime: float = 300.0
    maximum_lifetime: float = 86400.0


def parse_token_answer(
    response: HttpResponse,
    inputs: GrantInputs,
    *,
    one_time: bool,
    previous_scope: str = "",
    sent: tuple[SecretValue, ...] = (),
) -> TokenSet:
    """Read the answer to a token request.

    ``one_time`` says that the request held a credential that is accepted once. ``previous_scope`` is what a refreshed
    token had, for an answer that does not say (RFC 6749 6). ``sent`` are secrets beyond those of ``inputs`` that the
    request held, to be cut out of an error text that echoes them.

    Raises `Refused` for an OAuth error and `Ambiguous` for all that is neither an error nor a token.
    """
    client_id = inputs.client.client_id
    terms = AnswerTerms(
        started_at=inputs.started_at,
        scope=previous_scope or " ".join(inputs.scopes),
        issuer=inputs.issuer,
        client_id=client_id,
        assumed_lifetime=inputs.assumed_lifetime,
        maximum_lifetime=inputs.maximum_lifetime,
    )
    held = [token.token for token in (inputs.assertion, inputs.subject, inputs.actor) if token is not None]
    asked = Asked(
        endpoint=inputs.token_endpoint,
        one_time=one_time,
        at=inputs.started_at,
        secrets=(inputs.username, inputs.password, *inputs.hidden, *inputs.client.secrets, *held, *sent),
    )
    return read_token_answer(response, terms, asked)


def read_token_answer(response: HttpResponse, terms: AnswerTerms, asked: Asked) -> TokenSet:
    """Read an answer that has the shape of RFC 6749 5.1; raises as `parse_token_answer` does."""
    document = read_object(response.body) if is_success(response) else None
    # Some servers refuse with status 200.
    if document is None or (isinstance(document.get("error"), str) and document["error"]):
        raise failure(response, asked)
    tokens = _tokens(document, terms)
    if tokens is None:
        raise malformed(asked, "answered without an access token and without a refresh token")
    return tokens


def unpublishable(tokens: TokenSet, problem: str) -> TokenSet:
    """Return ``tokens`` marked as not to be published; the first problem found stays."""
    return dataclasses.replace(tokens, publishable=False, problem=tokens.problem or problem)


def _tokens(document: Document, terms: AnswerTerms) -> TokenSet | None:
    access_token, refresh_token = document.get("access_token"), document.get("refresh_token")
    id_token, issued_token_type = document.get("id_token"), document.get("issued_token_type")
    has_refresh_token = is_sendable(refresh_token)
    if not has_refresh_token and (not isinstance(access_token, str) or not access_token):
        return None
    text = str(access_token) if is_vschar(access_token) else ""
    id_text = str(id_token) if is_vschar(id_token) else ""
    token_type = _token_type(document.get("token_type"))
    expires_at = _expiry(document, text, terms)
    holder = read_holder(id_token=id_text, access_token=text, issuer=terms.issuer, client_id=terms.client_id)
    problem = _problem(access_token, token_type, expires_at, terms)
    return TokenSet(
        access_token=SecretValue(text),
        token_type=token_type,
        issued_at=terms.started_at,
        expires_at=expires_at,
        scope=_scope(document.get("scope"), terms.scope),
        refresh_token=SecretValue(str(refresh_token)) if has_refresh_token else None,
        refresh_expires_at=_refresh_expiry(document, terms),
        id_token=SecretValue(id_text) if id_text else None,
        issued_token_type=str(issued_token_type) if is_vschar(issued_token_type) else "",
        subject=holder.subject,
        email=holder.email,
        issuer=holder.issuer,
        publishable=not problem,
        problem=problem,
    )


def _problem(access_token: object, token_type: str, expires_at: float, terms: AnswerTerms) -> str:
    """Say why the access token must not be published, or nothing."""
    if not isinstance(access_token, str) or not access_token:
        return "The answer has a refresh token and no access token."
    if not is_vschar(access_token):
        return "The access token holds characters that no token may hold (RFC 6749 A.12), such as a line break."
    if token_type != BEARER:
        return (
            f"The token is of type {token_type or 'unreadable'}, not Bearer: workloads could not use it by showing it. "
            "Change the client's settings at the provider."
        )
    if expires_at <= terms.started_at:
        return "The provider says that the access token has expired already: correct its lifetime there, or the clocks."
    return ""


def _token_type(value: object) -> str:
    """Return ``Bearer`` for any spelling of it (RFC 6749 5.1: case-insensitive) and for a server that leaves it out."""
    if value is None:
        return BEARER
    text = shown(value, limit=40)
    return BEARER if text.lower() == BEARER.lower() else text


def _expiry(document: Document, access_token: str, terms: AnswerTerms) -> float:
    """Return when the access token lapses: as the answer says, else as the token says, else as the resource says."""
    lifetime = seconds(document.get("expires_in"))
    if lifetime is None:
        expires_at = seconds(unverified_claims(access_token).get("exp"))
        lifetime = terms.assumed_lifetime if expires_at is None else expires_at - terms.started_at
    return terms.started_at + min(max(lifetime, 0.0), terms.maximum_lifetime)


def _refresh_expiry(document: Document, terms: AnswerTerms) -> float | None:
    """Return when the refresh token lapses: ``refresh_expires_in`` is Keycloak's (0: never), the other name Tiled's."""
    for name in ("refresh_expires_in", "refresh_token_expires_in"):
        lifetime = seconds(document.get(name))
        if lifetime is not None and 0 < lifetime < _FOREVER:
            return terms.started_at + lifetime
    return None


def _scope(value: object, asked: str) -> str:
    if isinstance(value, list):
        value = " ".join(strings(value))
    return value if isinstance(value, str) and is_vschar(value) else asked
