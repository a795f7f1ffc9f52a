"""Authorization code (RFC 6749 4.1) through a person's browser.

With PKCE (RFC 7636, S256 only), pushed authorization requests (RFC 9126) and the issuer in the answer (RFC 9207).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlencode, urlsplit

from keyferry.errors import Reason, Refused, ResourceError, RetryClass
from keyferry.grants.answer import parse_token_answer
from keyferry.grants.document import is_vschar, read_object, seconds, shown
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.grants.request import check_parameters, form_request, token_request
from keyferry.model import Exchange, HttpRequest, HttpResponse
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.grants.inputs import GrantInputs
    from keyferry.grants.request import Form

ENTROPY: Final = 32
"""Bytes of a verifier, a state and a nonce: 256 bits, as RFC 7636 7.1 recommends."""

PushedRequest: TypeAlias = Generator[HttpRequest, HttpResponse, "RequestUri"]


@dataclass(frozen=True, slots=True)
class LoginSecrets:
    """What ties a callback to the request that it answers; kept in the private state until then."""

    state: SecretValue
    verifier: SecretValue
    nonce: SecretValue

    @classmethod
    def new(cls) -> LoginSecrets:
        """Return fresh values."""
        return cls(*(SecretValue(secrets.token_urlsafe(ENTROPY)) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class RequestUri:
    """A pushed authorization request (RFC 9126 2.2)."""

    uri: SecretValue
    expires_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class CallbackTerms:
    """What a callback must match."""

    state: SecretValue
    issuer: str
    names_issuer: bool
    """The server announced that its answers name it (RFC 9207 3)."""


@dataclass(frozen=True, slots=True)
class Callback:
    """What came to the redirect URI, each parameter at most once."""

    parameters: Mapping[str, str] = field(repr=False)


def authorization_parameters(inputs: GrantInputs, redirect_uri: str, login: LoginSecrets) -> Form:
    """Return the parameters of the authorization request (RFC 6749 4.1.1, RFC 7636 4.3, OpenID Connect Core 3.1.2.1).

    Raises ResourceError where ``parameters`` would set what the protocol sets.
    """
    form: Form = [
        ("response_type", "code"),
        ("client_id", inputs.client.client_id),
        ("redirect_uri", redirect_uri),
        ("state", login.state.reveal()),
        ("code_challenge", challenge(login.verifier)),
        ("code_challenge_method", "S256"),
    ]
    if inputs.scopes:
        form.append(("scope", " ".join(inputs.scopes)))
    if "openid" in inputs.scopes:
        form.append(("nonce", login.nonce.reveal()))
    form.extend(("audience", audience) for audience in inputs.audiences)
    form.extend(("resource", resource) for resource in inputs.resources)
    check_parameters(inputs.parameters)
    form.extend(inputs.parameters.items())
    return form


def challenge(verifier: SecretValue) -> str:
    """Return the S256 code challenge of a verifier (RFC 7636 4.2)."""
    digest = hashlib.sha256(verifier.reveal().encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def authorization_url(endpoint: str, form: Form) -> str:
    """Return the page to send the person to; a query that the endpoint has is kept (RFC 6749 3.1)."""
    return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(form)}"


def push(inputs: GrantInputs, endpoint: str, form: Form) -> PushedRequest:
    """Lodge the authorization request with the server first (RFC 9126 2.1); raises Refused and Ambiguous."""
    fields = [(name, value) for name, value in form if name != "client_id"]
    request = form_request(
        endpoint, [("client_id", inputs.client.client_id), *fields], inputs.client, now=inputs.started_at
    )
    response = yield request
    asked = Asked(
        endpoint,
        what="pushed authorization request endpoint",
        at=inputs.started_at,
        secrets=(*inputs.client.secrets, *(SecretValue(value) for name, value in form if name in _SECRET)),
    )
    document = read_object(response.body) if is_success(response) else None
    if document is None or isinstance(document.get("error"), str):
        raise failure(response, asked)
    uri, lifetime = document.get("request_uri"), seconds(document.get("expires_in"))
    if not is_vschar(uri) or lifetime is None or lifetime <= 0:
        raise malformed(asked, "gave an answer without a request_uri")
    return RequestUri(SecretValue(str(uri)), inputs.started_at + lifetime)


def pushed_url(endpoint: str, client_id: str, request: RequestUri) -> str:
    """Return the page to send the person to after `push` (RFC 9126 4)."""
    return authorization_url(endpoint, [("client_id", client_id), ("request_uri", request.uri.reveal())])


def read_callback(callback: Callback, terms: CallbackTerms) -> SecretValue:
    """Return the code of a callback that answers our request (RFC 6749 4.1.2, RFC 9207 2.4).

    Raises Refused: for another ``state`` or issuer nothing is to be done with the callback; else the server or the
    person said no.
    """
    given = callback.parameters
    if not hmac.compare_digest(given.get("state", "").encode(), terms.state.reveal().encode()):
        raise _foreign("does not belong to the login that was begun here (its state is another)", "wrong_state")
    named = given.get("iss")
    if named is None and terms.names_issuer:
        raise _foreign("does not name the authorization server that it comes from, which it has to", "missing_iss")
    if named is not None and terms.issuer and named != terms.issuer:
        raise _foreign("comes from another authorization server than the one that was asked", "wrong_iss")
    if "error" in given:
        raise _declined(given)
    code = given.get("code", "")
    if not is_vschar(code):
        raise _foreign("holds no code", "missing_code")
    return SecretValue(code)


def redeem(inputs: GrantInputs, code: SecretValue, redirect_uri: str, verifier: SecretValue) -> Exchange:
    """Exchange the code for tokens, once (RFC 6749 4.1.3, RFC 7636 4.5)."""
    grant = [
        ("grant_type", "authorization_code"),
        ("code", code.reveal()),
        ("redirect_uri", redirect_uri),
        ("code_verifier", verifier.reveal()),
    ]
    response = yield token_request(inputs, grant, with_scope=False, one_time=True)
    return parse_token_answer(response, inputs, one_time=True, sent=(code, verifier))


def check_redirect(redirect_uri: str) -> None:
    """Raise ResourceError for a redirect URI that a server could not send a browser to (RFC 6749 3.1.2)."""
    parts = urlsplit(redirect_uri)
    loopback = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise ResourceError(
            "The page's address must begin with https:// (or be a loopback address): a login is sent back to it."
        )


_SECRET: Final = frozenset({"state", "nonce", "code_challenge"})


def _declined(given: Mapping[str, str]) -> Refused:
    code = shown(given.get("error"), limit=_LONGEST_CODE) or "unreadable"
    explanation = shown(given.get("error_description"))
    if code == "access_denied":
        advice = "The person, or the provider's policy, said no. Begin again to be asked once more."
        reason = Reason.APPROVAL_REQUIRED
    else:
        advice = "The provider did not go through with the login: see its settings for this client, then begin again."
        reason = Reason.GRANT_REJECTED
    return Refused(
        f"The provider refused the login: {code}{f' ({explanation})' if explanation else ''}. {advice}",
        code=code,
        reason=reason,
        retry=RetryClass.NEEDS_PERSON,
    )


_LONGEST_CODE: Final = 64


def _foreign(what: str, code: str) -> Refused:
    return Refused(
        f"The answer that the browser brought {what}. Nothing was done with it; begin the login again.",
        code=code,
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )
