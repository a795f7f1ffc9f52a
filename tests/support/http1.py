"""A small HTTP/1.1 server that may break every rule of HTTP on purpose, and is fast when it breaks none.

It knows what token clients send (bodies with a Content-Length) and nothing more.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

_MAX_HEAD = 64 * 1024
_MAX_BODY = 8 * 1024 * 1024
_LINGER_ZERO = struct.pack("ii", 1, 0)
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: str = ""


Handler = Callable[["Received", "Connection"], None]


def render(status: int, headers: Mapping[str, str], body: bytes, *, length: int | None = None) -> bytes:
    """Return an answer as bytes; `length` is what Content-Length claims, if not the truth."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body) if length is None else length}\r\n\r\n")
    return "\r\n".join(lines).encode("latin-1") + body


class Connections:
    """The open connections of a listener; `emptied` is set while there is none."""

    def __init__(self) -> None:
        self.all: set[Connection] = set()
        self.emptied = asyncio.Event()
        self.emptied.set()

    def add(self, connection: Connection) -> None:
        self.all.add(connection)
        self.emptied.clear()

    def remove(self, connection: Connection) -> None:
        self.all.discard(connection)
        if not self.all:
            self.emptied.set()


class Connection(asyncio.Protocol):
    """One connection. Its handler answers each request by `send`, and `finish`, `reset` or `close`, now or later."""

    def __init__(self, handler: Handler, connections: Connections, number: int) -> None:
        self.number = number
        self._handler = handler
        self._connections = connections
        self._buffer = bytearray()
        self._busy = False
        self._last = False
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def open(self) -> bool:
        """Whether the peer is still there."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def certificate_subject(self) -> str | None:
        """The common name of the client certificate that the TLS layer verified."""
        certificate = self._transport.get_extra_info("peercert") if self._transport else None
        for group in (certificate or {}).get("subject", ()):
            for name, value in group:
                if name == "commonName":
                    return str(value)
        return None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._connections.remove(self)
        self._transport = None
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next()

    def send(self, data: bytes) -> None:
        """Send bytes; those for a peer that is gone are dropped."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Wait until the peer has read enough for more to be sent."""
        await self._writable.wait()

    def finish(self) -> None:
        """End an answer; the next request of the connection may come, unless the client said it was the last."""
        self._busy = False
        if self._last:
            self.close()
            return
        if self._buffer and self.open:
            self._next()

    def close(self) -> None:
        """Close in the ordinary way, once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Send a TCP RST and drop what is unsent."""
        if self._transport is None:
            return
        _linger_zero(self._transport)
        self._transport.abort()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                self._refuse(431)
            return
        head = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > _MAX_BODY:
            self._refuse(411)
            return
        start, stop = end + 4, end + 4 + int(length)
        if len(self._buffer) < stop:
            return
        body = bytes(self._buffer[start:stop])
        del self._buffer[:stop]
        method, _, target = head[0].partition(" ")
        self._busy = True
        self._last = headers.get("connection", "").lower() == "close"
        path, _, query = target.partition(" ")[0].partition("?")
        self._handler(Received(method, path, headers, body, query), self)

    def _refuse(self, status: int) -> None:
        self.send(render(status, {"Connection": "close"}, b""))
        self.close()


def _linger_zero(transport: asyncio.Transport) -> None:
    """Make the coming close a reset. A duplicate is used, for the transport's own socket may be without options."""
    handle = transport.get_extra_info("socket")
    if handle is None or handle.fileno() < 0:
        return
    with socket.socket(fileno=os.dup(handle.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)


@dataclass(slots=True)
class Listener:
    """A listening socket on 127.0.0.1 that can be closed and opened again on the same port."""

    handler: Handler
    port: int = 0
    ssl: object = None
    connections: Connections = field(default_factory=Connections)
    accepted: int = 0
    _server: asyncio.Server | None = None
    _reservation: socket.socket | None = None

    @property
    def open(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Listen; port 0 becomes the port that the system chose, and stays."""
        if self._server is not None:
            return
        if self._reservation is None:
            self._reserve()
        loop = asyncio.get_running_loop()
        options = {"ssl": self.ssl} if self.ssl is not None else {}
        self._server = await loop.create_server(  # type: ignore[call-overload]
            self._connection, "127.0.0.1", self.port, backlog=1024, **options
        )

    def stop(self) -> None:
        """Refuse new connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def release(self) -> None:
        """Stop, and give the port back to the system."""
        self.stop()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def drop(self, spare: Connection | None = None) -> None:
        """Reset every open connection but `spare`."""
        for connection in self.connections.all - {spare}:
            connection.reset()

    def _reserve(self) -> None:
        """Hold the port with a socket that never listens: while we refuse connections nobody else may take it."""
        self._reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", self.port))
        self.port = self._reservation.getsockname()[1]

    def _connection(self) -> Connection:
        self.accepted += 1
        return Connection(self.handler, self.connections, self.accepted)
