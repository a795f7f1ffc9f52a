"""A small HTTP server that repeats nothing of a request, neither in an answer nor in a log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from keyferry.errors import KeyferryError
from keyferry.io.tls import read_little

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
SERVER: Final = "keyferry"
BACKLOG: Final = 1024
"""Connections that may wait to be taken up: after a break all clients come back at about the same time."""
SHUTDOWN: Final = 2.0
"""Seconds that requests under way are given to finish when the server stops."""


_ADDRESS: Final = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9.\-]*):)?(?P<port>[0-9]{1,5})")
_MAX_PORT: Final = 65535


def parse_address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``:PORT`` or ``PORT``; without a host it is 127.0.0.1, and port 0 lets the system choose.

    An IPv6 address stands in brackets. Raises ValueError with a sentence for people.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise ValueError(
            f"{text!r} is no address to listen on: write HOST:PORT, or PORT alone for {LOOPBACK}, such as 9464 or"
            " [::1]:9464"
        )
    return (match["host"] or LOOPBACK).strip("[]"), int(match["port"])


class Connection(web.RequestHandler):
    """Answers a request that is no HTTP without repeating it, in the answer or in the log."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to listen to a client."""
        super().connection_made(transport)
        read_little(transport)

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

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        cancels: bool = False,
        **limits: Any,
    ) -> None:
        """With ``cancels``, who hangs up ends the work on its request. ``limits`` are of aiohttp's RequestHandler."""
        super().__init__(handler, handler_cancellation=cancels)
        self._limits = limits

    def __call__(self) -> web.RequestHandler:
        """Return what speaks HTTP on one connection."""
        # No log of accesses is documented as None, but typed as if there always were one.
        return Connection(self, loop=asyncio.get_running_loop(), access_log=None, **self._limits)  # type: ignore[arg-type]


async def listen(
    server: Server, host: str, port: int, *, what: str, advice: str, tls: ssl.SSLContext | None = None
) -> web.ServerRunner:
    """Serve on an address, with ``tls`` if given; port 0 lets the system choose. To stop, ``cleanup`` what is returned.

    Raises KeyferryError where the address cannot be had, which says ``what`` is not served and gives ``advice``.
    """
    runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls, backlog=BACKLOG).start()
    except OSError as error:
        await runner.cleanup()
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
        raise KeyferryError(f"{what} cannot be served on {host}, port {port}: {why}. {advice}") from error
    return runner


def port_of(runner: web.ServerRunner) -> int:
    """Return the port that a server listens on."""
    return int(runner.addresses[0][1])


def base_url(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a server, without a slash at the end; an IPv6 address goes into brackets (RFC 3986 3.2.2)."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def plain(status: int, text: str, **headers: str) -> web.Response:
    """Return an answer of one line."""
    return web.Response(status=status, text=text, headers={**headers, "Server": SERVER})
