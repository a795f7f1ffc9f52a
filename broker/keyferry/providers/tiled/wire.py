"""How Tiled is spoken to: JSON bodies, bearer tokens, and errors that are ``{"detail": …}``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from keyferry.errors import Reason, Refused, RetryClass
from keyferry.grants.document import read_object, shown
from keyferry.model import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyferry.grants.failure import Asked
    from keyferry.model import HttpResponse
    from keyferry.secret import SecretValue


_UNAUTHORIZED: Final = 401
_NOT_UNDERSTOOD: Final = frozenset({400, 422})


def json_request(endpoint: str, document: Mapping[str, object], access_token: SecretValue | None = None) -> HttpRequest:
    """Return a POST of ``document`` as JSON."""
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if access_token is not None:
        headers |= bearer(access_token)
    return HttpRequest("POST", endpoint, headers=headers, body=json.dumps(document).encode("ascii"))


def bearer(access_token: SecretValue) -> dict[str, str]:
    """Return the header that shows an access token (RFC 6750 2.1)."""
    return {"Authorization": f"Bearer {access_token.reveal()}"}


def detail_of(response: HttpResponse, secrets: Iterable[SecretValue | None] = ()) -> str:
    """Return Tiled's own words for what went wrong, as a message may hold them; '' where it has none."""
    return shown((read_object(response.body) or {}).get("detail"), secrets=secrets)


def is_unauthorized(response: HttpResponse) -> bool:
    """Tell Tiled's own 401 from that of a proxy before it, which says nothing of a token or a password."""
    return response.status == _UNAUTHORIZED and bool(detail_of(response))


def limit_reached(response: HttpResponse) -> bool:
    """Tell a refusal because of "the maximum number allowed" from other ones with the same status."""
    return "maximum number" in detail_of(response)


def is_not_understood(response: HttpResponse) -> bool:
    """Tell Tiled's own 400 and 422 (whose ``detail`` may be a list) from those of a proxy before it."""
    return response.status in _NOT_UNDERSTOOD and "detail" in (read_object(response.body) or {})


def not_understood(asked: Asked, response: HttpResponse) -> Refused:
    """Return the error for a request that Tiled did not understand (400, 422): ours, or a server unknown to us."""
    said = detail_of(response, secrets=asked.secrets)
    return Refused(
        f"{asked.sentence} did not accept the request ({response.status}{f': {said}' if said else ''}). Is the "
        "credential complete, and the server a Tiled of version 0.2?",
        code=f"http_{response.status}",
        reason=Reason.GRANT_REJECTED,
        retry=RetryClass.NEEDS_CONFIGURATION,
    )
