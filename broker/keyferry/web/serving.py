"""A small HTTP server that repeats nothing of a request, neither in an answer nor in a log."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

SERVER: Final = "keyferry"


class Connection(web.RequestHandler):
    """Answers a request that is no HTTP without repeating it, in the answer or in the log."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it holds parts of the request
    ) -> web.StreamResponse:
        """Answer with the status alone; a defect of ours is logged, by its type alone."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("a request could not be served (%s)", type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("part of the answer is sent already")
        response = plain(status, "this request cannot be answered\n")
        response.force_close()
        return response


class Server(web.Server):
    """Makes connections. There is no log of accesses."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **limits: Any) -> None:
        """``limits`` are those of ``aiohttp.web.RequestHandler``."""
        super().__init__(handler)
        self._limits = limits

    def __call__(self) -> web.RequestHandler:
        """Return what speaks HTTP on one connection."""
        # No log of accesses is documented as None, but typed as if there always were one.
        return Connection(self, loop=asyncio.get_running_loop(), access_log=None, **self._limits)  # type: ignore[arg-type]


def plain(status: int, text: str, **headers: str) -> web.Response:
    """Return an answer of one line."""
    return web.Response(status=status, text=text, headers={**headers, "Server": SERVER})
