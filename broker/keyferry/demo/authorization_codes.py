"""Authorization codes (RFC 6749 4.1) as a server keeps them: bound to a client, a redirect URI and a PKCE challenge."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from keyferry.demo.wire import OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyferry.demo.clients import Client

LIFETIME: Final = 60.0
"""Seconds in which a code must be redeemed (RFC 6749 4.1.2 allows ten minutes at most)."""
PUSHED_LIFETIME: Final = 90.0


@dataclass(slots=True)
class AuthorizationRequest:
    """What a browser was sent with, or what was pushed before (RFC 9126)."""

    client_id: str
    redirect_uri: str
    challenge: str
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    scope: tuple[str, ...]
    audience: tuple[str, ...]
    pushed: bool = False


@dataclass(slots=True)
class AuthorizationCode:
    """One code. ``sent`` counts how often it came to the token endpoint."""

    value: str = field(repr=False)
    request: AuthorizationRequest
    subject: str
    expires_at: float
    sent: int = 0


class AuthorizationCodes:
    """All authorization requests and codes of one issuer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.all: list[AuthorizationCode] = []
        self.pushed: dict[str, tuple[AuthorizationRequest, float]] = {}
        """By ``request_uri``, with when it lapses."""
        self._clock = clock

    def read(
        self, parameters: Mapping[str, str], client: Client, scope: tuple[str, ...], audience: tuple[str, ...]
    ) -> AuthorizationRequest:
        """Return an authorization request (RFC 6749 4.1.1). Raises ``OAuthError``; then no browser is sent anywhere."""
        if parameters.get("response_type") != "code":
            raise OAuthError("unsupported_response_type", "the response type must be code")
        redirect_uri = parameters.get("redirect_uri", "")
        if redirect_uri not in client.redirect_uris:
            raise OAuthError("invalid_request", "the redirect URI is not registered")
        challenge = parameters.get("code_challenge", "")
        if not challenge or parameters.get("code_challenge_method") != "S256":
            raise OAuthError("invalid_request", "PKCE with S256 is required")
        state, nonce = parameters.get("state", ""), parameters.get("nonce", "")
        return AuthorizationRequest(client.client_id, redirect_uri, challenge, state, nonce, scope, audience)

    def push(self, request: AuthorizationRequest) -> str:
        """Keep a pushed request; return its ``request_uri`` (RFC 9126 2.2)."""
        request.pushed = True
        uri = f"urn:ietf:params:oauth:request_uri:{secrets.token_urlsafe(24)}"
        self.pushed[uri] = (request, self._clock() + PUSHED_LIFETIME)
        return uri

    def take_pushed(self, uri: str, client_id: str) -> AuthorizationRequest:
        """Return a pushed request, once. Raises ``OAuthError``."""
        request, until = self.pushed.pop(uri, (None, 0.0))
        if request is None or request.client_id != client_id or self._clock() >= until:
            raise OAuthError("invalid_request_uri", "there is no such pushed request")
        return request

    def approve(self, request: AuthorizationRequest, subject: str, issuer: str) -> str:
        """Return where to send the browser back to, with a code (RFC 6749 4.1.2, RFC 9207 2)."""
        code = AuthorizationCode(secrets.token_urlsafe(24), request, subject, self._clock() + LIFETIME)
        self.all.append(code)
        return _callback(request, {"code": code.value}, issuer)

    def deny(self, request: AuthorizationRequest, issuer: str) -> str:
        """Return where to send the browser back to after the person said no (RFC 6749 4.1.2.1)."""
        return _callback(request, {"error": "access_denied", "error_description": "the person said no"}, issuer)

    def redeem(self, value: str, client_id: str, redirect_uri: str, verifier: str) -> AuthorizationCode:
        """Return the code, once (RFC 6749 4.1.3, RFC 7636 4.6). Raises ``OAuthError``."""
        code = next((code for code in self.all if code.value == value), None)
        if code is None:
            raise OAuthError("invalid_grant", "there is no such code")
        code.sent += 1
        digest = hashlib.sha256(verifier.encode()).digest()
        answered = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        good = (
            code.sent == 1
            and code.request.client_id == client_id
            and code.request.redirect_uri == redirect_uri
            and self._clock() < code.expires_at
            and hmac.compare_digest(answered, code.request.challenge)
        )
        if not good:
            raise OAuthError("invalid_grant", "the code is used, lapsed, or another request's")
        return code


def _callback(request: AuthorizationRequest, answer: dict[str, str], issuer: str) -> str:
    parameters = answer | {"state": request.state} | ({"iss": issuer} if issuer else {})
    return f"{request.redirect_uri}{'&' if '?' in request.redirect_uri else '?'}{urlencode(parameters)}"
