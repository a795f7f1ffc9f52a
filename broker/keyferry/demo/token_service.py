"""The core of an authorization server: it issues, rotates, revokes and tells of tokens. It does no I/O."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from keyferry.demo.authorization_codes import PUSHED_LIFETIME
from keyferry.demo.clients import AuthMethod, Client, ClientAuthenticator, Grant
from keyferry.demo.grants import Decision, Grants
from keyferry.demo.signing import ASSERTION_ALGORITHMS, Signer, TokenFormat
from keyferry.demo.state import IssuedToken, IssuerState, Settings
from keyferry.demo.wire import FormRequest, OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.demo.authorization_codes import AuthorizationRequest
    from keyferry.demo.refresh_tokens import RefreshPolicy, RefreshToken

_PURGE_EVERY: Final = 20_000


class TokenService(IssuerState):
    """An authorization server without a network: see `IssuerState` for its parameters and what it remembers."""

    def __init__(
        self,
        issuer: str = "",
        *,
        clock: Callable[[], float] = time.time,
        settings: Settings | None = None,
        refresh_policy: RefreshPolicy | None = None,
        signer: Signer | None = None,
        record_limit: int = 100_000,
    ) -> None:
        super().__init__(
            issuer,
            clock=clock,
            settings=settings,
            refresh_policy=refresh_policy,
            signer=signer,
            record_limit=record_limit,
        )
        self._authenticator = ClientAuthenticator(self.clients, self.audiences, clock)
        self._grants = Grants(self)
        self._purge_at = _PURGE_EVERY

    def token(self, request: FormRequest) -> dict[str, object]:
        """Answer a token request (RFC 6749 5.1); raises ``OAuthError`` (5.2)."""
        client = self._authenticator.authenticate(request)
        return self._issue(self._grants.decide(request, client))

    def authorize_device(self, request: FormRequest) -> dict[str, object]:
        """Answer a device authorization request (RFC 8628 3.2); raises ``OAuthError``."""
        code = self._grants.authorize_device(request, self._authenticator.authenticate(request))
        page = f"{self.issuer}/device"
        return {
            "device_code": code.value,
            "user_code": code.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={code.user_code}",
            "expires_in": int(code.expires_at - self.clock()),
            "interval": int(code.interval),
        }

    def push_authorization(self, request: FormRequest) -> dict[str, object]:
        """Answer a pushed authorization request (RFC 9126 2.2); raises ``OAuthError``."""
        asked = self._grants.read_authorization(request, self._authenticator.authenticate(request))
        return {"request_uri": self.authorization_codes.push(asked), "expires_in": int(PUSHED_LIFETIME)}

    def authorize(self, request: FormRequest) -> AuthorizationRequest:
        """Return what a browser was sent with; raises ``OAuthError``, after which it is sent nowhere."""
        client_id = request.require("client_id")
        client = self.clients.find(client_id)
        if client is None:
            raise OAuthError("invalid_client", "the client is not known")
        pushed = request.get("request_uri")
        if pushed is not None:
            return self.authorization_codes.take_pushed(pushed, client_id)
        if self.settings.requires_push:
            raise OAuthError("invalid_request", "the request must be pushed first")
        return self._grants.read_authorization(request, client)

    def approve(self, request: AuthorizationRequest, subject: str) -> str:
        """Return where to send the browser of a person who logged in and agreed."""
        return self.authorization_codes.approve(request, subject, self._named())

    def deny(self, request: AuthorizationRequest) -> str:
        """Return where to send the browser of a person who said no."""
        return self.authorization_codes.deny(request, self._named())

    def _named(self) -> str:
        return self.issuer if self.settings.names_issuer else ""

    def revoke(self, request: FormRequest) -> None:
        """Revoke a token (RFC 7009); an unknown one is no error. Raises ``OAuthError`` for a wrong client."""
        client = self._authenticator.authenticate(request)
        value = request.require("token")
        refresh_token = self.refresh_tokens.find(value)
        if refresh_token is not None:
            _owned(refresh_token.family.client_id, client)
            self.refresh_tokens.revoke(refresh_token.family, "Requested")
        access_token = self.access_tokens.get(value)
        if access_token is not None:
            _owned(access_token.client_id, client)
            access_token.revoked = True

    def introspect(self, request: FormRequest) -> dict[str, object]:
        """Tell of a token (RFC 7662): a confidential client may ask about any. Raises ``OAuthError``."""
        client = self._authenticator.authenticate(request)
        if client.methods == (AuthMethod.NONE,):
            raise OAuthError("invalid_client", "a public client may not introspect", status=401)
        value = request.require("token")
        refresh_token = self.refresh_tokens.find(value)
        if refresh_token is not None:
            return self._introspect_refresh_token(refresh_token)
        access_token = self.access_tokens.get(value)
        if access_token is None or not self.active(access_token):
            return {"active": False}
        return {
            "active": True,
            "token_type": "Bearer",
            "client_id": access_token.client_id,
            "sub": access_token.subject,
            "scope": " ".join(access_token.scope),
            "iss": self.issuer,
            "iat": int(access_token.issued_at),
            "exp": int(access_token.expires_at),
            **({"aud": list(access_token.audience)} if access_token.audience else {}),
        }

    def metadata(self) -> dict[str, object]:
        """Return the metadata of RFC 8414 2, which also serves OIDC Discovery 4.2."""
        return {
            "issuer": self.issuer,
            "token_endpoint": f"{self.issuer}/token",
            "revocation_endpoint": f"{self.issuer}/revoke",
            "introspection_endpoint": f"{self.issuer}/introspect",
            "device_authorization_endpoint": f"{self.issuer}/device_authorization",
            "jwks_uri": f"{self.issuer}/jwks",
            "grant_types_supported": [grant.value for grant in Grant],
            "authorization_endpoint": f"{self.issuer}/authorize",
            "pushed_authorization_request_endpoint": f"{self.issuer}/par",
            "require_pushed_authorization_requests": self.settings.requires_push,
            "authorization_response_iss_parameter_supported": self.settings.names_issuer,
            "code_challenge_methods_supported": ["S256"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "token_endpoint_auth_methods_supported": [method.value for method in AuthMethod],
            "token_endpoint_auth_signing_alg_values_supported": list(ASSERTION_ALGORITHMS),
        }

    def _introspect_refresh_token(self, token: RefreshToken) -> dict[str, object]:
        if not self.refresh_tokens.active(token):
            return {"active": False}
        family = token.family
        return {
            "active": True,
            "token_type": "refresh_token",
            "client_id": family.client_id,
            "sub": family.subject,
            "scope": " ".join(family.scope),
            "iss": self.issuer,
            "iat": int(token.issued_at),
            **({} if token.expires_at is None else {"exp": int(token.expires_at)}),
        }

    def _issue(self, decision: Decision) -> dict[str, object]:
        client, now = decision.client, self.clock()
        lifetime = self.settings.access_lifetime if client.access_lifetime is None else client.access_lifetime
        token_format = client.token_format or self.settings.token_format
        # Claims are made only where they are carried: an opaque token is to cost next to nothing.
        claims = {} if token_format is TokenFormat.OPAQUE else self._claims(decision, now, lifetime)
        value = self.signer.sign(claims, token_format)
        self._remember(
            IssuedToken(
                value,
                client.client_id,
                decision.grant,
                decision.subject,
                decision.scope,
                decision.audience,
                now,
                now + lifetime,
                decision.family,
            )
        )
        answer: dict[str, object] = {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": int(lifetime),
            "scope": " ".join(decision.scope),
        }
        if decision.refresh_token is not None:
            answer["refresh_token"] = decision.refresh_token.value
            left = self.refresh_tokens.policy.left(decision.refresh_token, now)
            if left is not None and self.refresh_tokens.policy.tells:
                answer["refresh_expires_in"] = int(left)
        if decision.issued_token_type is not None:
            answer["issued_token_type"] = decision.issued_token_type
        if "openid" in decision.scope and decision.subject in self.users:
            answer["id_token"] = self._id_token(decision, now, lifetime)
        return answer

    def _claims(self, decision: Decision, now: float, lifetime: float) -> dict[str, Any]:
        """Return the claims of RFC 9068 2.2."""
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": decision.subject,
            "client_id": decision.client.client_id,
            "iat": int(now),
            "exp": int(now + lifetime),
            "jti": secrets.token_hex(8),
            **decision.claims,
        }
        if decision.scope:
            claims["scope"] = " ".join(decision.scope)
        if decision.audience:
            claims["aud"] = list(decision.audience)
        return claims

    def _id_token(self, decision: Decision, now: float, lifetime: float) -> str:
        """Return an ID token (OpenID Connect Core 2)."""
        user = self.users[decision.subject]
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": user.name,
            "aud": decision.client.client_id,
            "iat": int(now),
            "exp": int(now + lifetime),
        }
        if decision.nonce:
            claims["nonce"] = decision.nonce
        if user.email:
            claims |= {"email": user.email, "email_verified": user.email_verified}
        return self.signer.sign(claims, TokenFormat.ES256, kind="JWT")

    def _remember(self, token: IssuedToken) -> None:
        self.issued.append(token)
        self.access_tokens[token.value] = token
        if len(self.access_tokens) >= self._purge_at:
            now = self.clock()
            self.access_tokens = {value: kept for value, kept in self.access_tokens.items() if kept.expires_at > now}
            # Twice what is left, so that the sweeps cost a constant amount for each token issued.
            self._purge_at = max(_PURGE_EVERY, 2 * len(self.access_tokens))


def _owned(owner: str, client: Client) -> None:
    if owner != client.client_id:
        raise OAuthError("invalid_request", "the token was issued to another client")
