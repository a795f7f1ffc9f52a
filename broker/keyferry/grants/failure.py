"""From an answer that is no token to the error that says what happened and what helps.

Two things decide. What came: a well-formed OAuth error (RFC 6749 5.2) is an answer, all else leaves open what the
provider did. And what was sent: a credential that is accepted once may be spent, so an open end is then in doubt, and
nothing but the ledger may send it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from keyferry.errors import Ambiguous, ExchangeError, Reason, Refused, RetryClass
from keyferry.grants.document import host_of, read_object, shown
from keyferry.grants.retry_after import retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.model import HttpResponse
    from keyferry.secret import SecretValue

_CODE: Final = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 5.2, of `error`
_LONGEST_CODE: Final = 64
_HOST: Final = re.compile(r"[-_.:a-z0-9\[\]]{1,100}")

_OK, _REDIRECT, _CLIENT_ERROR, _SERVER_ERROR = 200, 300, 400, 500
_UNAUTHORIZED, _REQUEST_TIMEOUT, _TOO_MANY_REQUESTS = 401, 408, 429


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asked of whom: what an error message and an error class need to know of it."""

    endpoint: str
    what: str = "token endpoint"
    one_time: bool = False
    """It held a credential that is accepted once."""
    at: float = 0.0
    """When it was begun, Unix seconds."""
    secrets: tuple[SecretValue | None, ...] = ()
    """What it held, to be cut out of a text that the server echoes."""

    @property
    def sentence(self) -> str:
        """How a sentence about it begins."""
        return f"The {self.what} at {host_of(self.endpoint) or 'an address without a host'}"


@dataclass(frozen=True, slots=True)
class _Rule:
    retry: RetryClass
    reason: Reason
    advice: str


_PERSON, _CONFIGURATION, _TRANSIENT = RetryClass.NEEDS_PERSON, RetryClass.NEEDS_CONFIGURATION, RetryClass.TRANSIENT

_CLIENT_REJECTED: Final = _Rule(
    _CONFIGURATION,
    Reason.CLIENT_REJECTED,
    "The provider does not accept the client id or its credential: correct the client's Secret or the provider's "
    "settings for this client.",
)
_INTERACTION: Final = _Rule(
    _PERSON, Reason.APPROVAL_REQUIRED, "The provider wants a person to log in or to consent: approve it again."
)
_BUSY: Final = _Rule(_TRANSIENT, Reason.RETRYING, "Keyferry tries again; nothing needs to be done.")
_WAITING: Final = _Rule(_TRANSIENT, Reason.APPROVAL_REQUIRED, "The person has not decided yet.")
_UNKNOWN: Final = _Rule(
    _CONFIGURATION,
    Reason.GRANT_REJECTED,
    "Keyferry does not know this error: see the provider's documentation, then change the resource or the credential.",
)
_RULES: Final[Mapping[str, _Rule]] = {
    "invalid_grant": _Rule(
        _PERSON,
        Reason.GRANT_REJECTED,
        "What the grant is made of (password, refresh token, code, assertion) is wrong, expired, revoked or used up: "
        "give a new one, or log in again.",
    ),
    "invalid_client": _CLIENT_REJECTED,
    "unauthorized_client": _Rule(
        _CONFIGURATION,
        Reason.GRANT_NOT_SUPPORTED,
        "This client may not use this grant: allow it in the provider's settings for the client, or use another grant.",
    ),
    "unsupported_grant_type": _Rule(
        _CONFIGURATION, Reason.GRANT_NOT_SUPPORTED, "The provider does not know this grant: use another one."
    ),
    "invalid_scope": _Rule(
        _CONFIGURATION, Reason.GRANT_REJECTED, "Correct `scopes`, or allow them to the client at the provider."
    ),
    "invalid_target": _Rule(
        _CONFIGURATION,
        Reason.GRANT_REJECTED,
        "Correct `audiences` and `resources`, or allow them to the client at the provider.",
    ),
    "invalid_request": _Rule(
        _CONFIGURATION,
        Reason.GRANT_REJECTED,
        "The provider misses or dislikes a parameter: correct the grant or `parameters` of the resource.",
    ),
    "interaction_required": _INTERACTION,
    "consent_required": _INTERACTION,
    "login_required": _INTERACTION,
    "temporarily_unavailable": _BUSY,
    "server_error": _BUSY,
    # RFC 8628 3.5: these go to whoever polls, who looks at the code.
    "authorization_pending": _WAITING,
    "slow_down": _WAITING,
    "expired_token": _INTERACTION,
}


def failure(response: HttpResponse, asked: Asked) -> ExchangeError:
    """Return the error that an answer without tokens stands for: `Refused` or `Ambiguous`, for the caller to raise."""
    status = response.status
    if _REDIRECT <= status < _CLIENT_ERROR:
        return _redirected(response, asked)
    document = read_object(response.body) or {}
    code = document.get("error")
    well_formed = isinstance(code, str) and _CODE.fullmatch(code) is not None
    wait = retry_after(response.headers, now=asked.at)
    if status == _TOO_MANY_REQUESTS:
        return Refused(
            f"{asked.sentence} asks for fewer requests (429). {_BUSY.advice}",
            code="too_many_requests",
            retry_after=wait,
            reason=_BUSY.reason,
            retry=_BUSY.retry,
        )
    # A server that breaks down says so in its own words: only a code that we know makes an answer of a 5xx.
    if isinstance(code, str) and well_formed and (status < _SERVER_ERROR or code in _RULES):
        return _refused(status, code, document.get("error_description"), asked, wait)
    return _unclear(response, asked, wait)


def malformed(asked: Asked, what: str = "gave an answer that is cut off or no JSON object") -> Ambiguous:
    """Return the error for an answer that says neither yes nor no."""
    return ambiguous(what, asked, code="malformed")


def ambiguous(what: str, asked: Asked, *, code: str, suspicious: bool = False, wait: float | None = None) -> Ambiguous:
    """Return an `Ambiguous` with the retry class that fits what was sent; ``what`` ends the sentence "The … at … "."""
    if asked.one_time:
        return Ambiguous(
            f"{asked.sentence} {what}. The request held a credential that is accepted once, so it may be spent; "
            "Keyferry does not send it again unless its record says that this is safe.",
            code=code,
            retry_after=wait,
            reason=Reason.REFRESH_IN_DOUBT,
            retry=RetryClass.IN_DOUBT,
        )
    pace = "slowly" if suspicious else "with growing pauses"
    return Ambiguous(
        f"{asked.sentence} {what}. Keyferry keeps what it has and tries again {pace}.",
        code=code,
        retry_after=wait,
        reason=Reason.RETRYING,
        retry=RetryClass.SUSPICIOUS if suspicious else RetryClass.TRANSIENT,
    )


def is_success(response: HttpResponse) -> bool:
    """Tell whether the status is 2xx (RFC 6749 5.1 says 200; some servers create tokens with 201)."""
    return _OK <= response.status < _REDIRECT


def _refused(status: int, code: str, description: object, asked: Asked, wait: float | None) -> Refused:
    rule = _RULES.get(code, _UNKNOWN)
    if code == "unauthorized_client" and status == _UNAUTHORIZED:
        # Keycloak's answer to a wrong client secret; by RFC 6749 5.2 it would be `invalid_client`.
        rule = _CLIENT_REJECTED
    said = code if code in _RULES else shown(code, secrets=asked.secrets, limit=_LONGEST_CODE) or "unreadable"
    explanation = shown(description, secrets=asked.secrets)
    return Refused(
        f"{asked.sentence} refused: {said}{f' ({explanation})' if explanation else ''}. {rule.advice}",
        code=said,
        retry_after=wait,
        reason=rule.reason,
        retry=rule.retry,
    )


def _unclear(response: HttpResponse, asked: Asked, wait: float | None) -> Ambiguous:
    status = response.status
    if status >= _SERVER_ERROR or status == _REQUEST_TIMEOUT:
        return ambiguous(f"failed ({status})", asked, code=f"http_{status}", wait=wait)
    if _is_html(response):
        return ambiguous(f"answered with a web page ({status}), not JSON", asked, code="html", suspicious=True)
    if status >= _CLIENT_ERROR:
        what = f"answered {status} without an OAuth error: is it the right address, or did a proxy answer?"
        return ambiguous(what, asked, code=f"http_{status}", suspicious=True, wait=wait)
    return malformed(asked)


def _redirected(response: HttpResponse, asked: Asked) -> Ambiguous:
    location = response.headers.get("location", "")
    try:
        elsewhere = bool(urlsplit(location).netloc)
    except ValueError:
        elsewhere = True
    host = host_of(location)
    target = host if _HOST.fullmatch(host) else "an unreadable address"
    where = f"to {target}" if elsewhere else "to another path of the same host"
    what = f"redirects {where}, which Keyferry does not follow: a redirect would take credentials along"
    return ambiguous(what, asked, code="redirect", suspicious=True)


def _is_html(response: HttpResponse) -> bool:
    kind = response.headers.get("content-type", "").lower()
    return "html" in kind or response.body[:256].lstrip().startswith(b"<")
