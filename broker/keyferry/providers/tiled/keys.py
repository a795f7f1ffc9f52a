"""Tiled API keys, and what the server knows of a principal.

A key is the better credential for a workload: it holds only the scopes that it was minted with, and can be revoked. An
access token holds all of its user's scopes, minting keys included, and cannot.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlencode

from keyferry.errors import AnswerError, ExchangeError, Reason, Refused, RetryClass
from keyferry.grants.document import Document, is_vschar, read_object, strings
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.model import HttpRequest, HttpResponse
from keyferry.providers.tiled.wire import (
    bearer,
    detail_of,
    is_not_understood,
    json_request,
    limit_reached,
    not_understood,
)
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.providers.tiled.metadata import TiledMetadata

Minting: TypeAlias = Generator[HttpRequest, HttpResponse, "ApiKey"]
Inquiry: TypeAlias = Generator[HttpRequest, HttpResponse, "Principal"]
Deletion: TypeAlias = Generator[HttpRequest, HttpResponse, None]

KEY_LIMIT: Final = 100

_HEX: Final = re.compile(r"[0-9a-fA-F]{16,}")
_FIRST: Final = 8  # characters of a key by which it is known
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 400, 401, 403, 404


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key just minted; its secret is shown by the server this once."""

    secret: SecretValue
    first_eight: str
    """What the key is known by."""
    expires_at: float | None
    """Unix seconds; None: never."""
    scopes: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ApiKeyInfo:
    """A key that the server knows."""

    first_eight: str
    note: str
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session that the server knows."""

    uuid: str
    expires_at: float | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class Principal:
    """A user or service, as Tiled knows it."""

    uuid: str
    identities: tuple[tuple[str, str], ...] = ()
    """Each as (authenticator, name)."""
    api_keys: tuple[ApiKeyInfo, ...] = field(default=())
    sessions: tuple[SessionInfo, ...] = field(default=())

    def name_at(self, authenticator: str) -> str:
        """Return their name at an authenticator, or the one name that they have; '' where neither can be told."""
        names = [name for at, name in self.identities if at == authenticator] or [name for _, name in self.identities]
        return names[0] if len(names) == 1 else ""


def mint_api_key(
    metadata: TiledMetadata,
    access_token: SecretValue,
    *,
    scopes: Sequence[str] = (),
    expires_in: int | None,
    note: str = "",
    access_tags: Sequence[str] = (),
    now: float = 0.0,
) -> Minting:
    """Mint a key in the name of the login that ``access_token`` is of.

    No ``scopes`` means all that the user has. ``expires_in`` is in seconds; None mints a key that never lapses. Raises
    `Refused`: with code ``access_token_expired`` refresh first, then try again; ``api_key_limit`` at 100 keys;
    ``insufficient_scope`` where the user lacks a scope asked for, or the right to mint. `Ambiguous` may have minted a
    key that nobody knows: it lapses by itself, and `whoami` lists it by its note.
    """
    wish: dict[str, object] = {"expires_in": expires_in, "scopes": list(scopes) or None}
    if note:
        wish["note"] = note
    if access_tags:
        wish["access_tags"] = list(access_tags)
    response = yield json_request(metadata.api_key_endpoint, wish, access_token)
    asked = _asked(metadata.api_key_endpoint, access_token, now)
    if not is_success(response):
        raise _refusal(response, asked, "mint an API key")
    document = read_object(response.body)
    key = _minted(document) if document is not None else None
    if key is None:
        raise malformed(asked, "answered without an API key")
    return key


def whoami(metadata: TiledMetadata, access_token: SecretValue, *, now: float = 0.0) -> Inquiry:
    """Ask whose token it is, and which keys and sessions they have; raises as `mint_api_key` does."""
    url = metadata.whoami_endpoint
    response = yield HttpRequest("GET", url, headers={"Accept": "application/json", **bearer(access_token)})
    asked = _asked(url, access_token, now)
    if not is_success(response):
        raise _refusal(response, asked, "see its own account")
    document = read_object(response.body)
    if document is None and response.body.strip() == b"null":
        raise AnswerError(f"{asked.sentence} takes the login's token for nobody's. Log in again.")
    if document is None or not isinstance(document.get("uuid"), str):
        raise malformed(asked)
    return _principal(document)


def delete_api_key(
    metadata: TiledMetadata, access_token: SecretValue, first_eight: str, *, now: float = 0.0
) -> Deletion:
    """Revoke a key of the same login; one that is no longer there counts as revoked. Raises as `mint_api_key` does."""
    url = f"{metadata.api_key_endpoint}?{urlencode({'first_eight': first_eight})}"
    response = yield HttpRequest("DELETE", url, headers={"Accept": "application/json", **bearer(access_token)})
    if not is_success(response) and response.status != _NOT_FOUND:
        raise _refusal(response, _asked(metadata.api_key_endpoint, access_token, now), "revoke an API key")


def _asked(url: str, access_token: SecretValue, now: float) -> Asked:
    return Asked(url, what="Tiled server", at=now, secrets=(access_token,))


def _refusal(response: HttpResponse, asked: Asked, deed: str) -> ExchangeError:
    detail = detail_of(response, secrets=asked.secrets)
    if response.status == _UNAUTHORIZED and detail:
        return _unauthorized(asked, detail, deed)
    if response.status == _FORBIDDEN and detail:
        return Refused(
            f"{asked.sentence} refused to {deed}: {detail} Correct `apiKey.scopes` and `apiKey.accessTags`, or give "
            "the user the scopes.",
            code="insufficient_scope",
            reason=Reason.GRANT_REJECTED,
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    if response.status == _BAD_REQUEST and limit_reached(response):
        return Refused(
            f"{asked.sentence} mints no further API key: this user has {KEY_LIMIT}, as many as Tiled allows, and "
            "lapsed ones count until the server removes them. Revoke keys that nobody uses (tiled api_key list, "
            "revoke), or choose a shorter `apiKey.expiresIn`.",
            code="api_key_limit",
            reason=Reason.GRANT_REJECTED,
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    if response.status == _NOT_FOUND:
        return Refused(
            f"{asked.sentence} has no API keys: it is run for a single user, or is not Tiled. Correct tiled.url.",
            code="http_404",
            reason=Reason.GRANT_NOT_SUPPORTED,
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    if is_not_understood(response):
        return not_understood(asked, response)
    return failure(response, asked)


def _unauthorized(asked: Asked, detail: str, deed: str) -> ExchangeError:
    """Tell apart what Tiled says with one status: a token that lapsed, a right that is missing, an unknown token."""
    if "expired" in detail:
        return Refused(
            f"{asked.sentence} says that the access token has expired. Keyferry refreshes it first.",
            code="access_token_expired",
            reason=Reason.RETRYING,
            retry=RetryClass.TRANSIENT,
        )
    if "permission" in detail.lower():
        return Refused(
            f"{asked.sentence} does not let this user {deed}: {detail} Give the user the scopes (create:apikeys, "
            "revoke:apikeys), or have Keyferry publish the login's token instead of a key.",
            code="insufficient_scope",
            reason=Reason.GRANT_REJECTED,
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    return Refused(
        f"{asked.sentence} does not accept the access token of this login: it was signed with a key that the server "
        "has dropped, or the user is gone. Log in again.",
        code="invalid_token",
        reason=Reason.GRANT_REJECTED,
        retry=RetryClass.NEEDS_PERSON,
    )


def _minted(document: Document) -> ApiKey | None:
    secret = document.get("secret")
    if not isinstance(secret, str) or not _HEX.fullmatch(secret):
        return None
    return ApiKey(
        secret=SecretValue(secret),
        first_eight=_text(document, "first_eight") or secret[:_FIRST],
        expires_at=_moment(document.get("expiration_time")),
        scopes=strings(document.get("scopes")),
        note=_text(document, "note"),
    )


def _principal(document: Document) -> Principal:
    return Principal(
        uuid=_text(document, "uuid"),
        identities=tuple((_text(item, "provider"), _text(item, "id")) for item in _objects(document.get("identities"))),
        api_keys=tuple(
            ApiKeyInfo(_text(item, "first_eight"), _text(item, "note"), _moment(item.get("expiration_time")))
            for item in _objects(document.get("api_keys"))
        ),
        sessions=tuple(
            SessionInfo(_text(item, "uuid"), _moment(item.get("expiration_time")), item.get("revoked") is True)
            for item in _objects(document.get("sessions"))
        ),
    )


def _objects(value: object) -> list[Document]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(document: Document, name: str) -> str:
    value = document.get(name)
    return str(value) if is_vschar(value) else ""


def _moment(value: object) -> float | None:
    """Read a time that Tiled writes with an offset or, where SQLite is behind it, without one (then it is UTC)."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
