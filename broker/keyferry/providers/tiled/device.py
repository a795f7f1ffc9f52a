"""Tiled's own device login: a person logs in at an identity provider that knows no device codes, such as ORCID.

It looks like RFC 8628 and is not: requests are JSON or empty, the page that a person visits is the *identity
provider's* (``authorization_uri``, from where they come back to type the code), ``verification_uri`` is the address to
poll, and the answers to a poll are Tiled's own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from keyferry.errors import Reason, Refused, ResourceError, RetryClass
from keyferry.grants.document import read_object
from keyferry.grants.failure import Asked, failure, is_success, malformed
from keyferry.grants.rfc8628_device_code import DEVICE_CODE, Authorization, read_authorization
from keyferry.model import Exchange, HttpRequest
from keyferry.providers.tiled.session import read_session
from keyferry.providers.tiled.wire import detail_of, is_not_understood, is_unauthorized, json_request, not_understood

if TYPE_CHECKING:
    from keyferry.model import HttpResponse
    from keyferry.providers.tiled.metadata import DeviceLogin, TiledMetadata
    from keyferry.secret import SecretValue

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2}){16,}")
_BAD_REQUEST, _NOT_FOUND = 400, 404
_PENDING: Final = "authorization_pending"


def authorize_device(metadata: TiledMetadata, started_at: float) -> Authorization:
    """Ask for a device code; ``started_at`` is in Unix seconds.

    Raises `ResourceError` where the server has no such login, and `Ambiguous` or `Refused` for an answer that a person
    could not be shown.
    """
    endpoint = _login_of(metadata).authorize_endpoint
    response = yield HttpRequest("POST", endpoint, headers={"Accept": "application/json"}, body=b"")
    asked = Asked(endpoint, what="Tiled device login", at=started_at)
    document = read_object(response.body) if is_success(response) else None
    if document is None:
        raise not_understood(asked, response) if is_not_understood(response) else failure(response, asked)
    code = document.get("device_code")
    if not isinstance(code, str) or not _HEX.fullmatch(code):
        raise malformed(asked, "gave an answer without a device code")
    given = {name: document.get(name) for name in ("device_code", "user_code", "expires_in", "interval")}
    return read_authorization({**given, "verification_uri": document.get("authorization_uri")}, started_at, asked)


def poll_device(metadata: TiledMetadata, device_code: SecretValue, started_at: float) -> Exchange:
    """Ask once whether the person approved, which uses the device code up; ``started_at`` is in Unix seconds.

    Raises `Refused` with the code of RFC 8628 3.5 that means the same as Tiled's own answer.
    """
    endpoint = _login_of(metadata).poll_endpoint
    response = yield json_request(endpoint, {"device_code": device_code.reveal(), "grant_type": DEVICE_CODE})
    asked = Asked(endpoint, what="Tiled device login", one_time=True, at=started_at, secrets=(device_code,))
    if response.status == _BAD_REQUEST and _is_pending(response):
        raise Refused(
            f"{asked.sentence} says that the person has not decided yet.",
            code=_PENDING,
            reason=Reason.APPROVAL_REQUIRED,
            retry=RetryClass.TRANSIENT,
        )
    # 404: used, or past its end; 401: not one that this server could have given.
    unknown = response.status == _NOT_FOUND and "device_code" in detail_of(response)
    if unknown or is_unauthorized(response):
        raise Refused(
            f"{asked.sentence} does not know the device code any more: it lapsed, or was used.",
            code="expired_token",
            reason=Reason.APPROVAL_REQUIRED,
            retry=RetryClass.NEEDS_PERSON,
        )
    if is_not_understood(response):
        raise not_understood(asked, response)
    return read_session(response, metadata, started_at, asked)


def _login_of(metadata: TiledMetadata) -> DeviceLogin:
    if metadata.device is None:
        raise ResourceError(metadata.device_problem, reason=Reason.GRANT_NOT_SUPPORTED)
    return metadata.device


def _is_pending(response: HttpResponse) -> bool:
    detail = (read_object(response.body) or {}).get("detail")
    return isinstance(detail, dict) and detail.get("error") == _PENDING
