"""Tiled sessions: logging in, sliding on, ending."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import TYPE_CHECKING, Final, TypeAlias

from keyferry.errors import Reason, Refused, ResourceError, RetryClass
from keyferry.grants.answer import AnswerTerms, read_token_answer
from keyferry.grants.claims import unverified_claims
from keyferry.grants.document import is_vschar, read_object
from keyferry.grants.failure import Asked, failure, is_success
from keyferry.grants.request import FORM_HEADERS, encode_form
from keyferry.model import Exchange, HttpRequest, HttpResponse
from keyferry.providers.tiled.wire import (
    is_not_understood,
    is_unauthorized,
    json_request,
    limit_reached,
    not_understood,
)

if TYPE_CHECKING:
    from keyferry.model import TokenSet
    from keyferry.providers.tiled.metadata import TiledMetadata
    from keyferry.secret import SecretValue

Revocation: TypeAlias = Generator[HttpRequest, HttpResponse, None]

SESSION_LIMIT: Final = 200
ASSUMED_LIFETIME: Final = 900.0
"""Seconds that an access token lives where the answer does not say: Tiled's default."""
MAXIMUM_LIFETIME: Final = 86400.0
"""Seconds; a longer life is cut to this."""

_BAD_REQUEST, _CONFLICT, _SERVER_ERROR = 400, 409, 500


def login(metadata: TiledMetadata, username: SecretValue, password: SecretValue, started_at: float) -> Exchange:
    """Open a session with a password; once, and then `refresh`: each login counts against the limit of sessions.

    A wrong password is `RetryClass.NEEDS_PERSON` and never retried. Raises `ResourceError` where the server takes no
    passwords. ``started_at`` is in Unix seconds.
    """
    if not metadata.login_endpoint:
        raise ResourceError(metadata.login_problem, reason=Reason.GRANT_NOT_SUPPORTED)
    asked = Asked(metadata.login_endpoint, what="Tiled login", at=started_at, secrets=(username, password))
    form = [("grant_type", "password"), ("username", username.reveal()), ("password", password.reveal())]
    response = yield HttpRequest("POST", metadata.login_endpoint, headers=FORM_HEADERS, body=encode_form(form))
    if is_unauthorized(response):
        raise Refused(
            f"{asked.sentence} refused the user name or password. Keyferry does not try again, lest the account be "
            "locked: correct the Secret.",
            code="invalid_grant",
            reason=Reason.GRANT_REJECTED,
            retry=RetryClass.NEEDS_PERSON,
        )
    if response.status == _BAD_REQUEST and limit_reached(response):
        raise Refused(
            f"{asked.sentence} opens no further session: this user has {SESSION_LIMIT}, as many as Tiled allows, and "
            "revoked ones count until their maximum age. Wait until old ones lapse, or have them removed.",
            code="session_limit",
            reason=Reason.GRANT_REJECTED,
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    if is_not_understood(response):
        raise not_understood(asked, response)
    return read_session(response, metadata, started_at, asked)


def refresh(metadata: TiledMetadata, refresh_token: SecretValue, started_at: float) -> Exchange:
    """Slide a session on. A Tiled refresh token is accepted again and again, so an unclear answer is never in doubt.

    Every 401 means that the session is over (expired, revoked, too old, signed with a key since dropped), and only a
    person or a new login helps.
    """
    asked = Asked(metadata.refresh_endpoint, what="Tiled session", at=started_at, secrets=(refresh_token,))
    response = yield json_request(metadata.refresh_endpoint, {"refresh_token": refresh_token.reveal()})
    if is_unauthorized(response):
        raise Refused(
            f"{asked.sentence} has ended: it was revoked, lay idle too long, or reached its maximum age. Log in again, "
            "or give a new refresh token.",
            code="session_ended",
            reason=Reason.GRANT_REJECTED,
            retry=RetryClass.NEEDS_PERSON,
        )
    if is_not_understood(response):
        raise not_understood(asked, response)
    tokens = read_session(response, metadata, started_at, asked)
    return tokens if tokens.refresh_token is not None else dataclasses.replace(tokens, refresh_token=refresh_token)


def revoke_session(
    metadata: TiledMetadata, refresh_token: SecretValue, *, expired: bool = False, now: float = 0.0
) -> Revocation:
    """End the session of ``refresh_token``. Its access tokens live on until they lapse; its API keys too.

    ``expired`` says that the refresh token is known to have lapsed: Tiled answers such a one with a 500, which then
    counts as done. Raises `Ambiguous` where the session may live on and revoking it is to be tried again.
    """
    response = yield json_request(metadata.revoke_endpoint, {"refresh_token": refresh_token.reveal()})
    # 401: a token that this server would not accept either; 409: the session is no longer there.
    if is_success(response) or is_unauthorized(response) or response.status == _CONFLICT:
        return
    if expired and response.status == _SERVER_ERROR:
        return
    raise failure(response, Asked(metadata.revoke_endpoint, what="Tiled session", at=now, secrets=(refresh_token,)))


def session_id(refresh_token: SecretValue) -> str:
    """Return which session a refresh token of Tiled's own is of: 32 hexadecimal digits, empty where it does not say."""
    said = unverified_claims(refresh_token.reveal()).get("sid")
    return said.replace("-", "") if isinstance(said, str) else ""


def read_session(response: HttpResponse, metadata: TiledMetadata, started_at: float, asked: Asked) -> TokenSet:
    """Read the tokens of a session; raises as `keyferry.grants.answer.read_token_answer` does.

    Their subject is the user's name at the authenticator that was logged in with. Only the answer to a login says it.
    """
    terms = AnswerTerms(
        started_at=started_at,
        issuer=metadata.api_url,
        assumed_lifetime=ASSUMED_LIFETIME,
        maximum_lifetime=MAXIMUM_LIFETIME,
    )
    tokens = read_token_answer(response, terms, asked)
    identity = (read_object(response.body) or {}).get("identity")
    name = identity.get("id") if isinstance(identity, dict) else None
    # The subject in the token itself is a number of Tiled's own, which no person knows.
    return dataclasses.replace(tokens, subject=str(name) if is_vschar(name) else "")
