"""Endpoints of two identities: one with tokens, one with a LabArchives login in a region that records what it gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import httpx
import pytest
from aiohttp import web

from keyferry.io.addresses import AddressPolicy, HostRule
from keyferry.providers.labarchives import AccessKey, LabArchivesUser, Notebook, SignedCall, sign
from keyferry.secret import SecretValue
from keyferry.web.loopback import Loopback
from keyferry.web.presented import ACCESS_KEY_ID, new_placeholder
from keyferry.web.source import NotAllowed, NotOffered, Token, Unavailable
from tests.support.asking import DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UID, KEY = "UID real&1/+", AccessKey(SecretValue("AKID-organization"), SecretValue("organization-password"))
ALLOWED = frozenset({"get_tree_level", "add_entry", "add_attachment", "entry_attachment", "user_info_via_id"})
Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class FakeSource:
    """Implements `keyferry.web.source.Source`."""

    placeholder: SecretValue = field(default_factory=new_placeholder)
    current: Token | None = None
    region: str = ""
    trouble: Unavailable | None = None
    clock_corrections: int = 0
    refused_logins: int = 0

    async def token(self) -> Token:
        if self.trouble is not None:
            raise self.trouble
        if self.current is None:
            raise NotOffered
        return self.current

    async def sign(self, method: str) -> SignedCall:
        self._check()
        if method not in ALLOWED:
            raise NotAllowed
        return SignedCall(self.region, SecretValue(UID), sign(KEY, method, time.time()))

    async def user(self) -> LabArchivesUser:
        self._check()
        return LabArchivesUser(SecretValue(UID), "a&b@x.org", "Ada <A>", True, (Notebook("nb-1", "Lab & co", True),))

    async def correct_clock(self) -> None:
        self.clock_corrections += 1

    async def login_refused(self) -> None:
        self.refused_logins += 1

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        if not self.region:
            raise NotOffered


@dataclass
class Region:
    """A server in LabArchives' place: answers as ``handler`` says, and remembers what it was sent."""

    url: str = ""
    requests: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    handler: Handler | None = None

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        if self.handler is not None:
            return await self.handler(request)
        self.bodies.append(await request.read())
        return web.Response(text="<ok/>", content_type="application/xml")


@dataclass
class Place:
    """All of it."""

    bot: FakeSource
    notebook: FakeSource
    region: Region
    server: Loopback
    http: httpx.AsyncClient

    def url(self, identity: str = "notebook", *, call: str = "", placeholder: str = "", **query: str) -> str:
        """Return an endpoint's URL; of ``call``, signed as a client does it."""
        base = f"{self.server.url}/{identity}"
        if not call:
            return base
        key = AccessKey(SecretValue(ACCESS_KEY_ID), SecretValue(placeholder or self.notebook.placeholder.reveal()))
        signed = sign(key, call.rsplit("/", 1)[-1], time.time() + 60)
        return signed.url(f"{base}/labarchives/api/{call}", list(query.items()))


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    region = Region()
    runner = web.ServerRunner(web.Server(region.serve, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    region.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    now = time.time()
    bot = FakeSource(current=Token(SecretValue("access-1"), "Bearer", now - 10, now + 300.5, "read", 7))
    sources = {"bot": bot, "notebook": FakeSource(region=region.url)}
    policy = AddressPolicy(allowed=(HostRule("127.0.0.1"),))
    async with (
        Loopback(sources.get, policy) as server,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        yield Place(bot, sources["notebook"], region, server, http)
    await runner.cleanup()


async def soon(event: asyncio.Event) -> None:
    """Wait for what must happen."""
    async with asyncio.timeout(DEADLINE):
        await event.wait()
