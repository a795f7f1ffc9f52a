"""What the page reads of a request: bounded, and nothing given twice."""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from aiohttp import web

LONGEST_BODY: Final = 16 << 10
"""Bytes; some providers' authorization codes take two thousand."""
MOST_FIELDS: Final = 32
PATIENCE: Final = 10.0
"""Seconds in which a form must have come."""

_FORM: Final = "application/x-www-form-urlencoded"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Unreadable(Exception):
    """The request is none that this page's forms or a provider would send."""

    def __init__(self, message: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def parameters(text: str) -> dict[str, str]:
    """Read a query or a form. Raises Unreadable."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise Unreadable("It has too many parameters, or some that are not text.") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("A parameter is in it twice.")  # RFC 6749 3.1
    if any(_CONTROL.search(name + value) for name, value in pairs):
        raise Unreadable("There are control characters in it.")
    return found


async def form(request: web.BaseRequest) -> dict[str, str]:
    """Read the form of a POST. Raises Unreadable."""
    if request.content_type not in {_FORM, "application/octet-stream"}:
        raise Unreadable("It is not a form.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    if (request.content_length or 0) > LONGEST_BODY:
        raise Unreadable("It is too large.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > LONGEST_BODY:
                    raise Unreadable("It is too large.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return parameters(body.decode("ascii"))
    except TimeoutError:
        raise Unreadable("It came too slowly.", HTTPStatus.REQUEST_TIMEOUT) from None
    except UnicodeDecodeError:
        raise Unreadable("It is not encoded as forms are.") from None
