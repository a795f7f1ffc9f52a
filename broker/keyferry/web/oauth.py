"""The token endpoints: a placeholder is exchanged for the current access token (RFC 6749 4.4, 5 and 6)."""

from __future__ import annotations

import base64
import binascii
import json
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote_plus

from aiohttp import web

from keyferry.web.presented import is_same
from keyferry.web.serving import SERVER
from keyferry.web.source import NotOffered, Unavailable

if TYPE_CHECKING:
    from keyferry.web.source import Source, Token

LONGEST_FORM: Final = 16 * 1024
MOST_FIELDS: Final = 32
RETRY_AFTER: Final = "5"
"""Seconds after which to ask again where there is no token just now."""

_FORM: Final = "application/x-www-form-urlencoded"
_NOT_STORED: Final = {"Cache-Control": "no-store", "Pragma": "no-cache", "Server": SERVER}


class _OAuthError(Exception):
    """An error of RFC 6749 5.2."""

    def __init__(self, code: str, description: str, status: int = HTTPStatus.BAD_REQUEST, **headers: str) -> None:
        super().__init__(code)
        self.code, self.description, self.status, self.headers = code, description, status, headers


async def current_token(request: web.BaseRequest, source: Source) -> web.Response:
    """Answer ``token``: the token and what is known of it, as format Json has it."""
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not is_same(source.placeholder, presented.strip()):
        challenge = {"WWW-Authenticate": 'Bearer realm="keyferry"'}
        return _json(
            {"error": "invalid_token", "error_description": "present the placeholder as the bearer token"},
            HTTPStatus.UNAUTHORIZED,
            challenge,
        )
    try:
        token = await source.token()
    except NotOffered:
        return _json({"error": "not_found", "error_description": "this identity has no token"}, HTTPStatus.NOT_FOUND)
    except Unavailable as error:
        return _unavailable(error)
    described = {
        "issued_at": _timestamp(token.issued_at),
        "expires_at": _timestamp(token.expires_at),
        "scope": token.scope,
        "revision": token.revision,
    }
    if token.confirmed_at is not None:
        described["confirmed_at"] = _timestamp(token.confirmed_at)
    return _json({**_bearer(token), **described})


async def exchange(request: web.BaseRequest, source: Source) -> web.Response:
    """Answer a token request; a placeholder grant gets the current token, all else an error of RFC 6749 5.2."""
    try:
        form = await _form(request)
        _check_grant(request, form, source)
        token = await source.token()
    except _OAuthError as error:
        body = {"error": error.code, "error_description": error.description}
        return _json(body, error.status, error.headers)
    except NotOffered:
        return _json(
            {"error": "unauthorized_client", "error_description": "this identity has no token"}, HTTPStatus.BAD_REQUEST
        )
    except Unavailable as error:
        return _unavailable(error)
    return _json({**_bearer(token), "token_type": "Bearer"})


def _check_grant(request: web.BaseRequest, form: dict[str, str], source: Source) -> None:
    match form.get("grant_type", ""):
        case "":
            raise _OAuthError("invalid_request", "grant_type is missing")
        case "refresh_token":
            if not is_same(source.placeholder, form.get("refresh_token", "")):
                raise _OAuthError("invalid_grant", "the refresh token is not this endpoint's placeholder")
        case "client_credentials":
            basic = "Authorization" in request.headers
            presented = _basic_secret(request) if basic else form.get("client_secret", "")
            if not is_same(source.placeholder, presented):
                # RFC 6749 5.2: a scheme is answered with a challenge of its own kind.
                challenge = {"WWW-Authenticate": 'Basic realm="keyferry"'} if basic else {}
                raise _OAuthError(
                    "invalid_client",
                    "the client secret is not this endpoint's placeholder",
                    HTTPStatus.UNAUTHORIZED,
                    **challenge,
                )
        case _:
            raise _OAuthError("unsupported_grant_type", "this endpoint takes refresh_token and client_credentials")


async def _form(request: web.BaseRequest) -> dict[str, str]:
    if request.content_type != _FORM:
        raise _OAuthError("invalid_request", f"the body must be of type {_FORM}")
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > LONGEST_FORM:
            raise _OAuthError("invalid_request", "the body is too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise _OAuthError("invalid_request", "the body is not a form") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _OAuthError("invalid_request", "a parameter is repeated")  # RFC 6749 3.2
    return form


def _basic_secret(request: web.BaseRequest) -> str:
    """Return the client secret of RFC 6749 2.3.1, '' where the header is none."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return unquote_plus(text.partition(":")[2])


def _bearer(token: Token) -> dict[str, Any]:
    left = max(1, int(token.expires_at - time.time()))
    return {"access_token": token.access_token.reveal(), "token_type": token.token_type, "expires_in": left}


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _unavailable(error: Unavailable) -> web.Response:
    body = {"error": "temporarily_unavailable", "error_description": error.message}
    return _json(body, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": RETRY_AFTER})


def _json(body: dict[str, Any], status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=json.dumps(body).encode(),
        status=status,
        headers={**_NOT_STORED, **(headers or {}), "Content-Type": "application/json"},
    )
