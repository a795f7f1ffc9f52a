"""The grants: who asks, for whom and for what. A decision is made here; the tokens are made in `token_service`."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import jwt

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.signing import verify_assertion
from keyferry.demo.wire import FormRequest, OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyferry.demo.authorization_codes import AuthorizationRequest
    from keyferry.demo.device_codes import DeviceCode
    from keyferry.demo.refresh_tokens import RefreshToken
    from keyferry.demo.state import IssuerState

ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 -- the name of a type
JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 -- the name of a type
_SUBJECT_TYPES: Final = frozenset({ACCESS_TOKEN_TYPE, JWT_TYPE, ID_TOKEN_TYPE})


@dataclass(frozen=True, slots=True)
class Decision:
    """What a grant came to, before tokens are made."""

    client: Client
    grant: Grant
    subject: str
    scope: tuple[str, ...]
    audience: tuple[str, ...] = ()
    refresh_token: RefreshToken | None = None
    family: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    issued_token_type: str | None = None
    nonce: str = ""


class Grants:
    """Decides on token requests of authenticated clients, one method a grant (RFC 6749 4, 7523 2.1, 8693 2)."""

    def __init__(self, state: IssuerState) -> None:
        self._state = state
        self._grants: dict[str, Callable[[FormRequest, Client], Decision]] = {
            Grant.CLIENT_CREDENTIALS: self._client_credentials,
            Grant.REFRESH_TOKEN: self._refresh_token,
            Grant.PASSWORD: self._password,
            Grant.JWT_BEARER: self._jwt_bearer,
            Grant.TOKEN_EXCHANGE: self._token_exchange,
            Grant.DEVICE_CODE: self._device_code,
            Grant.AUTHORIZATION_CODE: self._authorization_code,
        }

    def decide(self, request: FormRequest, client: Client) -> Decision:
        """Return what the client is given; a refresh token is spent by this. Raises ``OAuthError``."""
        name = request.require("grant_type")
        grant = self._grants.get(name)
        if grant is None:
            raise OAuthError("unsupported_grant_type", f"the grant type {name[:80]!a} is not supported")
        if name not in client.grants:
            raise OAuthError("unauthorized_client", "the client may not use this grant type")
        return grant(request, client)

    def _client_credentials(self, request: FormRequest, client: Client) -> Decision:
        if client.methods == (AuthMethod.NONE,):
            raise OAuthError("unauthorized_client", "a public client has no credentials")
        scope, audience = _scope(request, client.scopes), _audience(request, client)
        return Decision(client, Grant.CLIENT_CREDENTIALS, client.client_id, scope, audience)

    def _refresh_token(self, request: FormRequest, client: Client) -> Decision:
        value = request.require("refresh_token")
        known = self._state.refresh_tokens.find(value)
        # A scope or target that is too wide is refused before the token is spent (RFC 6749 6).
        scope = _scope(request, known.family.scope if known else client.scopes)
        audience = _audience(request, client)
        spent, answered = self._state.refresh_tokens.spend(value, client.client_id)
        family = spent.family
        return Decision(client, Grant.REFRESH_TOKEN, family.subject, scope, audience, answered, family.family_id)

    def _password(self, request: FormRequest, client: Client) -> Decision:
        name, password = request.require("username"), request.require("password")
        scope = _scope(request, client.scopes)
        user = self._state.users.get(name)
        limit = self._state.settings.lock_after
        if user is not None and limit is not None and user.failed_logins >= limit:
            raise OAuthError("invalid_grant", "the account is locked")
        if user is None or not hmac.compare_digest(user.password.encode(), password.encode()):
            if user is not None:
                user.failed_logins += 1
            raise OAuthError("invalid_grant", "the user name or the password is wrong")
        user.failed_logins = 0
        audience = _audience(request, client)
        if Grant.REFRESH_TOKEN not in client.grants:
            return Decision(client, Grant.PASSWORD, name, scope, audience)
        first = self._state.refresh_tokens.start(client.client_id, name, scope)
        return Decision(client, Grant.PASSWORD, name, scope, audience, first, first.family.family_id)

    def _jwt_bearer(self, request: FormRequest, client: Client) -> Decision:
        scope = _scope(request, client.scopes)
        claims = self._trusted_claims(request.require("assertion"), self._state.audiences())
        return Decision(client, Grant.JWT_BEARER, str(claims["sub"]), scope, _audience(request, client))

    def _token_exchange(self, request: FormRequest, client: Client) -> Decision:
        requested = request.get("requested_token_type") or ACCESS_TOKEN_TYPE
        if requested not in {ACCESS_TOKEN_TYPE, JWT_TYPE}:
            raise OAuthError("invalid_request", "the requested_token_type is not supported")
        scope, audience = _scope(request, client.scopes), _audience(request, client)
        subject = self._subject(request, "subject_token")
        claims: dict[str, Any] = {}
        if request.get("actor_token") is not None:
            claims["act"] = {"sub": self._subject(request, "actor_token")}
        return Decision(
            client, Grant.TOKEN_EXCHANGE, subject, scope, audience, claims=claims, issued_token_type=requested
        )

    def authorize_device(self, request: FormRequest, client: Client) -> DeviceCode:
        """Begin a request for a person's approval (RFC 8628 3.1). Raises ``OAuthError``."""
        if Grant.DEVICE_CODE not in client.grants:
            raise OAuthError("unauthorized_client", "the client may not use this grant type")
        return self._state.device_codes.start(
            client.client_id, _scope(request, client.scopes), _audience(request, client)
        )

    def _device_code(self, request: FormRequest, client: Client) -> Decision:
        code = self._state.device_codes.redeem(request.require("device_code"), client.client_id)
        if Grant.REFRESH_TOKEN not in client.grants:
            return Decision(client, Grant.DEVICE_CODE, code.subject, code.scope, code.audience)
        first = self._state.refresh_tokens.start(client.client_id, code.subject, code.scope)
        return Decision(
            client, Grant.DEVICE_CODE, code.subject, code.scope, code.audience, first, first.family.family_id
        )

    def read_authorization(self, request: FormRequest, client: Client) -> AuthorizationRequest:
        """Return an authorization request (RFC 6749 4.1.1). Raises ``OAuthError``."""
        if Grant.AUTHORIZATION_CODE not in client.grants:
            raise OAuthError("unauthorized_client", "the client may not use this grant type")
        scope, audience = _scope(request, client.scopes), _audience(request, client)
        return self._state.authorization_codes.read(request.parameters, client, scope, audience)

    def _authorization_code(self, request: FormRequest, client: Client) -> Decision:
        codes = self._state.authorization_codes
        value, verifier = request.require("code"), request.require("code_verifier")
        code = codes.redeem(value, client.client_id, request.require("redirect_uri"), verifier)
        asked = code.request
        grant = Grant.AUTHORIZATION_CODE
        if Grant.REFRESH_TOKEN not in client.grants:
            return Decision(client, grant, code.subject, asked.scope, asked.audience, nonce=asked.nonce)
        first = self._state.refresh_tokens.start(client.client_id, code.subject, asked.scope)
        family = first.family.family_id
        return Decision(client, grant, code.subject, asked.scope, asked.audience, first, family, nonce=asked.nonce)

    def _subject(self, request: FormRequest, name: str) -> str:
        """Return whose token was presented: one issued here, or a JWT of a trusted issuer (RFC 8693 2.1)."""
        if request.require(f"{name}_type") not in _SUBJECT_TYPES:
            raise OAuthError("invalid_request", f"the {name}_type is not supported")
        value = request.require(name)
        own = self._state.access_tokens.get(value)
        if own is None:
            return str(self._trusted_claims(value, self._state.audiences(), refusal="invalid_request")["sub"])
        if not self._state.active(own):
            raise OAuthError("invalid_request", f"the {name} has expired or was revoked")
        return own.subject

    def _trusted_claims(
        self, assertion: str, audiences: tuple[str, ...], *, refusal: str = "invalid_grant"
    ) -> dict[str, Any]:
        try:
            issuer = str(jwt.decode(assertion, options={"verify_signature": False}).get("iss"))
            keys = self._state.trusted[issuer].public_keys if issuer in self._state.trusted else ()
            return verify_assertion(assertion, keys, issuer=issuer, audiences=audiences, now=self._state.clock())
        except jwt.PyJWTError as error:
            raise OAuthError(refusal, "the assertion is not valid here") from error


def _scope(request: FormRequest, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the scope asked for, or all that is allowed (RFC 6749 3.3); raises ``invalid_scope``."""
    asked = request.get("scope")
    if asked is None:
        return allowed
    scope = tuple(asked.split(" "))
    if not set(scope) <= set(allowed):
        raise OAuthError("invalid_scope", "the scope goes beyond what the client may ask for")
    return scope


def _audience(request: FormRequest, client: Client) -> tuple[str, ...]:
    """Return the audiences and resources asked for (RFC 8693 2.1, RFC 8707 2); raises ``invalid_target``."""
    if not request.repeated:
        return ()
    asked = request.repeated.get("audience", ()) + request.repeated.get("resource", ())
    if client.audiences is not None and not set(asked) <= set(client.audiences):
        raise OAuthError("invalid_target", "the audience or resource is not one that the client may ask for")
    return asked
