"""Device authorization (RFC 8628): a person approves on another device, while we ask now and then whether they did."""

from __future__ import annotations

import enum
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

from keyferry.grants.answer import parse_token_answer
from keyferry.grants.document import is_vschar, read_object, seconds
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.grants.request import check_parameters, form_request, token_request
from keyferry.model import Exchange, HttpRequest, HttpResponse
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.errors import KeyferryError
    from keyferry.grants.document import Document
    from keyferry.grants.inputs import GrantInputs

DEVICE_CODE: Final = "urn:ietf:params:oauth:grant-type:device_code"

DEFAULT_INTERVAL: Final = 5.0
"""Seconds between polls where the server names none (RFC 8628 3.2)."""
SLOWER: Final = 5.0
"""Seconds that ``slow_down`` adds for good (RFC 8628 3.5)."""
LONGEST_INTERVAL: Final = 300.0
LONGEST_LIFE: Final = 86400.0
"""Seconds; a server that says more is believed this much."""
_LONGEST_TEXT: Final = 64
_LONGEST_URI: Final = 2048

Authorization: TypeAlias = Generator[HttpRequest, HttpResponse, "DeviceAuthorization"]


@dataclass(frozen=True, slots=True)
class DeviceAuthorization:
    """What a person is asked to do, and how often we may ask whether it was done (RFC 8628 3.2)."""

    device_code: SecretValue
    user_code: str = field(repr=False)
    """For the person to compare or to type."""
    verification_uri: str
    verification_uri_complete: str = field(repr=False)
    """The same with the code in it, where the server offers that."""
    expires_at: float
    """Unix seconds."""
    interval: float
    """Seconds between polls."""


class Decision(enum.Enum):
    """What a poll that brought no token says."""

    PENDING = enum.auto()
    DENIED = enum.auto()
    LAPSED = enum.auto()
    UNKNOWN = enum.auto()
    """No answer to the question: the network, the client, a server that is down."""


def authorize(inputs: GrantInputs, endpoint: str) -> Authorization:
    """Ask for a device code at ``endpoint`` (RFC 8628 3.1); times count from ``inputs.started_at``.

    Raises Refused, and Ambiguous for an answer that a person could not be shown.
    """
    form = [("scope", " ".join(inputs.scopes))] if inputs.scopes else []
    form.extend(("audience", audience) for audience in inputs.audiences)
    form.extend(("resource", resource) for resource in inputs.resources)
    check_parameters(inputs.parameters)
    form.extend(inputs.parameters.items())
    response = yield form_request(endpoint, form, inputs.client, now=inputs.started_at)
    asked = Asked(
        endpoint, what="device authorization endpoint", at=inputs.started_at, secrets=tuple(inputs.client.secrets)
    )
    document = read_object(response.body) if is_success(response) else None
    if document is None or isinstance(document.get("error"), str):
        raise failure(response, asked)
    return read_authorization(document, inputs.started_at, asked)


def poll(inputs: GrantInputs, device_code: SecretValue) -> Exchange:
    """Ask once whether the person approved (RFC 8628 3.4).

    While they did not, it raises Refused with code ``authorization_pending`` or ``slow_down``; `decision` reads it.
    An approved device code is used up by the answer.
    """
    grant = [("grant_type", DEVICE_CODE), ("device_code", device_code.reveal())]
    # The scope was asked for with the device code, and belongs to it (RFC 8628 3.4 has no such parameter).
    response = yield token_request(inputs, grant, with_scope=False, one_time=True)
    return parse_token_answer(response, inputs, one_time=True, sent=(device_code,))


def decision(error: KeyferryError) -> Decision:
    """Say what a failed poll means (RFC 8628 3.5)."""
    match getattr(error, "code", ""):
        case "authorization_pending" | "slow_down":
            return Decision.PENDING
        case "access_denied":
            return Decision.DENIED
        case "expired_token" | "invalid_grant":  # some servers forget a lapsed code and call it unknown
            return Decision.LAPSED
        case _:
            return Decision.UNKNOWN


def next_interval(interval: float, error: KeyferryError) -> float:
    """Return the seconds between polls from now on: ``slow_down`` adds for good, an unanswered poll doubles.

    RFC 8628 3.5 asks for both.
    """
    code = getattr(error, "code", "")
    if code == "slow_down":
        return min(interval + SLOWER, LONGEST_INTERVAL)
    if decision(error) is Decision.UNKNOWN:
        return min(interval * 2, LONGEST_INTERVAL)
    return interval


def read_authorization(document: Document, started_at: float, asked: Asked) -> DeviceAuthorization:
    """Read an answer of the shape of RFC 8628 3.2; raises Ambiguous for one that a person could not be shown."""
    device_code, user_code = document.get("device_code"), document.get("user_code")
    # Google's servers say `verification_url`, from before the RFC.
    address = _page(document.get("verification_uri") or document.get("verification_url"))
    lifetime = seconds(document.get("expires_in"))
    if not is_vschar(device_code) or not _is_code(user_code) or not address:
        raise malformed(asked, "gave an answer without a device code, a user code or a page to visit")
    if lifetime is None or lifetime <= 0:
        raise malformed(asked, "gave a device code without a lifetime")
    return DeviceAuthorization(
        device_code=SecretValue(str(device_code)),
        user_code=str(user_code),
        verification_uri=address,
        verification_uri_complete=_page(document.get("verification_uri_complete")),
        expires_at=started_at + min(lifetime, LONGEST_LIFE),
        interval=_interval(document.get("interval")),
    )


def _interval(value: object) -> float:
    number = seconds(value)
    if number is None or not math.isfinite(number) or number <= 0:
        return DEFAULT_INTERVAL
    return min(number, LONGEST_INTERVAL)


def _is_code(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _LONGEST_TEXT and text.isascii() and text.isprintable()


def _page(url: object) -> str:
    """Return an address that a person may be sent to, '' where it is anything but a web page."""
    if not isinstance(url, str) or len(url) > _LONGEST_URI or not url.isascii() or not url.isprintable() or " " in url:
        return ""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme in {"https", "http"} and parts.hostname and "@" not in parts.netloc else ""
