"""A web server of a test's own on the loopback, in a thread of this process: an emulator answers its requests."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Generic, Self, TypeVar, cast

Owner = TypeVar("Owner")


class WebThread:
    """Answers with the handler that it is given; ``with`` starts and ends it."""

    def __init__(self, handler: type[OwnedHandler[Self]]) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class OwnedHandler(BaseHTTPRequestHandler, Generic[Owner]):
    """Answers one request in its owner's name, silently."""

    server: _Server

    @property
    def owner(self) -> Owner:
        """What the server is a part of."""
        return cast("Owner", self.server.owner)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: object
