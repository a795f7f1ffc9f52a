"""The browser's way at an OAuth provider: an authorization code with PKCE, pushed ahead where the server wants that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from keyferry.client_auth import NoAuthentication
from keyferry.engine.job import Job  # noqa: TC001 - of a dataclass
from keyferry.errors import ResourceError
from keyferry.grants.claims import unverified_claims
from keyferry.grants.inputs import GrantInputs
from keyferry.grants.rfc6749_authorization_code import (
    authorization_parameters,
    authorization_url,
    push,
    pushed_url,
    redeem,
)
from keyferry.record import Binding  # noqa: TC001
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.approval import Login
    from keyferry.engine.attempt import Attempt
    from keyferry.grants.rfc6749_authorization_code import LoginSecrets
    from keyferry.model import Exchange, TokenSet
    from keyferry.record import Record
    from keyferry.spec.provider import OAuthProvider


@dataclass(frozen=True, slots=True)
class OAuthLogin:
    """One try as one client. Implements ``keyferry.engine.login.LoginDialect``."""

    job: Job
    inputs: GrantInputs
    binding: Binding
    attempt: Attempt | None = None
    """None where nothing is sent: an answer that arrived earlier is read."""

    @property
    def names_issuer(self) -> bool:
        """Whether the server announces that its callbacks name it (RFC 9207 3)."""
        return self.attempt is not None and self.attempt.metadata.authorization_response_iss_parameter_supported

    async def begin(self, redirect_uri: str, login: LoginSecrets) -> tuple[str, str]:
        """Return where to send the browser (RFC 6749 4.1.1), after a push where the server or the resource wants it."""
        attempt = self.attempt
        if attempt is None:
            raise AssertionError("nothing is begun with what is only read")
        metadata = attempt.metadata
        endpoint = metadata.endpoint("authorization")
        if urlsplit(endpoint).scheme not in ("https", "http"):
            raise ResourceError(f"{self.job.provider.name}: its authorization endpoint is no web address")
        inputs = replace(self.inputs, started_at=self.job.ports.clock.now())
        form = authorization_parameters(inputs, redirect_uri, login)
        named = attempt.oauth.endpoints.pushed_authorization_request is not None
        if not (named or metadata.require_pushed_authorization_requests):
            return authorization_url(endpoint, form), redirect_uri
        pushing = push(inputs, metadata.endpoint("pushedAuthorizationRequest"), form)
        request = await self.job.drive(pushing)
        return pushed_url(endpoint, inputs.client.client_id, request), redirect_uri

    @property
    def person(self) -> str:
        """Nothing more than the tokens say."""
        return ""

    async def reserve(self, login: Login) -> None:
        """Do nothing: the state ties the code to this identity."""

    def taken(self, record: Record, login: Login) -> Record:
        """Return the record as it is: nobody can bring this code again."""
        del login
        return record

    def redeem(self, login: Login, started_at: float) -> Exchange:
        """Exchange the code for tokens (RFC 6749 4.1.3)."""
        code, verifier = login.code or SecretValue(""), login.verifier or SecretValue("")
        return redeem(replace(self.inputs, started_at=started_at), code, login.redirect_uri, verifier)

    def problem(self, login: Login, issued: TokenSet) -> str:
        """Say why the ID token is not of this login (OpenID Connect Core 3.1.3.7 (11)), or nothing."""
        if issued.id_token is None or "openid" not in self.inputs.scopes or login.nonce is None:
            return ""
        nonce = unverified_claims(issued.id_token.reveal()).get("nonce")
        if isinstance(nonce, str) and SecretValue(nonce) == login.nonce:
            return ""
        return "the provider's answer is of another login than the one that was begun here, so nothing of it is used"


def blank_inputs(job: Job, bound: Binding, oauth: OAuthProvider | None) -> GrantInputs:
    """Return the inputs of a request that is not sent: its answer is here already. Raises ResourceError."""
    if oauth is None:
        raise ResourceError(f"{job.provider.name} is no OAuth provider")
    return GrantInputs(
        token_endpoint="",
        issuer=bound.issuer if oauth.issuer else "",
        client=NoAuthentication(bound.client_id),
        started_at=0.0,
        scopes=job.spec.scopes,
        assumed_lifetime=oauth.lifetime.assumed,
        maximum_lifetime=oauth.lifetime.maximum,
    )
