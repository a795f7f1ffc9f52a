"""Answers of the broker API: JSON, and problem documents (RFC 9457) of one shape for every refusal."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from keyferry.web.serving import SERVER
from keyferry.wire import MEDIA_TYPE, PROBLEM_TYPE, Problem, ProblemReason

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_BODY: Final = 16 * 1024
"""Bytes of a request's body, unless its route says more."""
_HEADERS: Final = {"Cache-Control": "no-store", "Server": SERVER}


class Denied(Exception):
    """A request ends with a problem document."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        retry_after: float | None = None,
        next_attempt_time: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``retry_after`` is in seconds; ``detail`` is for people and holds no secret."""
        super().__init__(reason)
        self.problem = Problem(int(status), reason, detail, next_attempt_time)
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))  # whole seconds: RFC 9110 10.2.3

    def response(self) -> web.Response:
        """Return the answer."""
        return answer(self.problem.to_json(), self.problem.status, self.headers, media_type=PROBLEM_TYPE)


def answer(
    body: Mapping[str, Any],
    status: int = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
    *,
    media_type: str = MEDIA_TYPE,
) -> web.Response:
    """Return a JSON answer that nobody is to store."""
    return encoded(to_bytes(body), status, headers, media_type=media_type)


def to_bytes(body: Mapping[str, Any]) -> bytes:
    """Return it as JSON, without spaces."""
    return json.dumps(body, separators=(",", ":")).encode()


def encoded(
    body: bytes, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None, *, media_type: str = MEDIA_TYPE
) -> web.Response:
    """Return an answer whose JSON is written already."""
    return web.Response(body=body, status=status, headers={**_HEADERS, **(headers or {}), "Content-Type": media_type})


def empty(status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer without a body."""
    return web.Response(status=status, headers={**_HEADERS, **(headers or {})})


def bad_request(detail: str) -> Denied:
    """Return the refusal of a request that cannot be understood; ``detail`` repeats none of it."""
    return Denied(HTTPStatus.BAD_REQUEST, ProblemReason.BAD_REQUEST, detail)


def not_found() -> Denied:
    """Return the one refusal of all that is not there, or not for whoever asks."""
    return Denied(HTTPStatus.NOT_FOUND, ProblemReason.NOT_FOUND, "there is nothing here for you")


def unavailable(detail: str, retry_after: float, reason: str = ProblemReason.UNAVAILABLE) -> Denied:
    """Return the refusal of what may work later."""
    return Denied(HTTPStatus.SERVICE_UNAVAILABLE, reason, detail, retry_after=retry_after)


def unexpected() -> Denied:
    """Return the refusal that a defect of ours ends with."""
    return Denied(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        ProblemReason.UNAVAILABLE,
        "something went wrong here; the operator's log says more",
        retry_after=10.0,
    )


async def read_json(request: web.BaseRequest, longest: int = LONGEST_BODY) -> Any:
    """Return the JSON body of a request. Raises Denied where it is none, or longer than ``longest`` bytes."""
    body = await read_body(request, longest)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("the body is not JSON") from None


async def read_body(request: web.BaseRequest, longest: int) -> bytes:
    """Return the body of a request that says it is JSON. Raises Denied where it does not, or is too long."""
    if request.content_type != MEDIA_TYPE:
        raise Denied(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ProblemReason.BAD_REQUEST, f"the body must be of type {MEDIA_TYPE}"
        )
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > longest:
            raise Denied(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, ProblemReason.BAD_REQUEST, "the body is too large")
    return bytes(body)
