"""One HTTP/1.1 connection over TLS, which asks one thing at a time (RFC 9112).

A client library would take half as much memory again as all the rest of a sidecar: what a broker answers is small,
comes as JSON, and needs neither redirects nor cookies nor compression.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for TCP and TLS together."""
LONGEST_HEAD: Final = 32 << 10
LONGEST_BODY: Final = 4 << 20
"""Bytes; a Secret, and so all files of an identity, holds a quarter of that at most."""
_LONGEST_LINE: Final = 1024


class BrokenAnswerError(OSError):
    """What came back is no whole HTTP answer. The message holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)
    last: bool
    """The connection ends with it."""


class Connection:
    """Use it for one request after the other, and `close` it. All errors are ``OSError``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        self._reader, self._writer = reader, writer
        self.address = address
        """The IP address at the other end."""
        self.used = False
        """A request went over it before, so the other side may be closing it just now."""

    @classmethod
    async def open(cls, address: str, port: int, context: ssl.SSLContext, host: str) -> Self:
        """Connect to an address of ``host``. Raises OSError, ssl.SSLError among them."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_connection(
                    address, port, ssl=context, server_hostname=host, limit=LONGEST_HEAD
                )
        except TimeoutError:
            raise OSError(f"no connection within {CONNECT_TIMEOUT:.0f} s") from None
        return cls(reader, writer, address)

    @property
    def idle(self) -> bool:
        """Tell whether it may still be good: nothing came unasked, and the other side did not hang up."""
        return not (self._reader.at_eof() or self._writer.is_closing())

    async def ask(self, request: bytes, *, patience: float) -> Answer:
        """Send a request and return the whole answer within ``patience`` seconds; after an error, `close` it."""
        try:
            async with asyncio.timeout(patience):
                self._writer.write(request)
                await self._writer.drain()
                return await self._answer()
        except TimeoutError:
            raise OSError(f"no answer within {patience:.0f} s") from None
        except asyncio.IncompleteReadError as error:
            if self.used and not error.partial:
                raise ConnectionResetError("the connection was closed") from None
            raise BrokenAnswerError("the answer broke off") from None
        except (asyncio.LimitOverrunError, ValueError):
            raise BrokenAnswerError("the answer is no HTTP") from None
        finally:
            self.used = True

    def close(self) -> None:
        """Close it at once; what is under way fails."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.transport.abort()

    async def _answer(self) -> Answer:
        status, headers, old = await self._head()
        while status < HTTPStatus.OK:  # RFC 9110 15.2: any number of interim answers may come first
            status, headers, old = await self._head()
        last = "close" in headers.get("connection", "").lower() or old
        if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            return Answer(status, headers, b"", last)
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].strip().lower() != "chunked":
                raise ValueError("transfer encoding")
            return Answer(status, headers, await self._chunks(), last)
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > LONGEST_BODY:
            raise ValueError("length")
        return Answer(status, headers, await self._exactly(int(length)), last)

    async def _head(self) -> tuple[int, dict[str, str], bool]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdigit():
            raise ValueError("status line")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name = name.lower()
            if not colon or not name or name != name.strip() or name in headers:
                raise ValueError("header")
            headers[name] = value.strip()
        return int(rest[:3]), headers, version == "HTTP/1.0"

    async def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            size = int((await self._line()).partition(b";")[0], 16)
            if size < 0 or len(body) + size > LONGEST_BODY:
                raise ValueError("length")
            if size == 0:
                break
            body += await self._exactly(size)
            if await self._line():
                raise ValueError("chunk")
        while await self._line():
            pass  # trailers say nothing that we need
        return bytes(body)

    async def _exactly(self, size: int) -> bytes:
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise BrokenAnswerError("the answer broke off") from None

    async def _line(self) -> bytes:
        line = await self._reader.readuntil(b"\r\n")
        if len(line) > _LONGEST_LINE:
            raise ValueError("line")
        return line[:-2]
