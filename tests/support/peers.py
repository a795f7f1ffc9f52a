"""Raw HTTP servers that misbehave as a test says, and drivers to try them with."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from keyferry.errors import ExchangeError
from keyferry.io.addresses import AddressPolicy, HostRule
from keyferry.io.http import HttpDriver
from keyferry.io.tls import TlsSettings, build_context
from keyferry.model import HttpRequest
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable


CANARY = "canary-5f1d"
LOCAL = AddressPolicy((HostRule("127.0.0.1"), HostRule("localhost")))
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
GENEROUS = 90.0
"""Seconds within which everything that is not meant to be late happens."""
SHORT = 2.0
"""Seconds for what is meant to be late; long enough for what comes before it to be in time."""


@dataclass
class Peer:
    """The server's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: Server

    async def request(self) -> bytes:
        """Read one whole request, note its arrival and return its head."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        self.server.arrivals.append(head + await self.reader.readexactly(length))
        self.server.arrived.set()
        return head

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    def reset(self) -> None:
        """Close so that the other end sees a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the client has closed its end."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


@dataclass
class Server:
    """A server on the loopback that does to each connection what the test says."""

    talk: Callable[[Peer], Awaitable[None]]
    arrivals: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.talk(Peer(reader, writer, self))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    @property
    def tls_url(self) -> str:
        return f"https://127.0.0.1:{self.port}/token"


@contextlib.asynccontextmanager
async def serving(
    talk: Callable[[Peer], Awaitable[None]], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(talk)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(server.serve(reader, writer)))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


@functools.cache
def system_trust() -> ssl.SSLContext:
    return build_context(TlsSettings())


@contextlib.asynccontextmanager
async def driving(
    policy: AddressPolicy = LOCAL,
    *,
    tls: ssl.SSLContext | None = None,
    timeout: float = GENEROUS,  # noqa: ASYNC109 - handed on
    connect_timeout: float | None = None,
    max_body: int = 1024 * 1024,
    max_connections: int = 32,
    proxy: str | None = None,
    resolver: AbstractResolver | None = None,
) -> AsyncIterator[HttpDriver]:
    driver = HttpDriver(
        policy,
        ssl_context=tls or system_trust(),
        timeout=timeout,
        user_agent="keyferry/test",
        connect_timeout=connect_timeout,
        max_body=max_body,
        max_connections=max_connections,
        proxy=None if proxy is None else SecretValue(proxy),
        resolver=resolver,
    )
    try:
        yield driver
    finally:
        await driver.close()


def post(url: str, *, one_time: bool = False) -> HttpRequest:
    """Return a request in which everything that can be secret is."""
    return HttpRequest(
        "POST",
        f"{url}?sig={CANARY}",
        {"Content-Type": "application/x-www-form-urlencoded", "Authorization": f"Basic {CANARY}"},
        f"refresh_token={CANARY}".encode(),
        one_time,
    )


async def failing(driver: HttpDriver, request: HttpRequest) -> ExchangeError:
    """Send and return the error, which holds nothing secret and no other exception that could."""
    with pytest.raises(ExchangeError) as caught:
        await driver.send(request)
    error = caught.value
    assert CANARY not in repr(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


async def always_ok(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


class Names(AbstractResolver):
    """Answers from a table of the test's."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = {name.replace("_", "."): addresses for name, addresses in answers.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, f"no such name: {host}")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.answers[host]
        ]

    async def close(self) -> None:
        pass
