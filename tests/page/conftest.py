"""The page over a fake, and a real browser; both live in the session's event loop, where the browser was started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
import pytest_asyncio

from keyferry.web.page.site import ApprovalPage, Site
from tests.page.fake import FakeApprovals
from tests.support import browser as browser_support
from tests.support.asking import NO_TLS
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tests.support.browser import Visitor

HINT = "Take it from the terminal where keyferry run was started."


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    async with browser_support.visitor(browser) as opened:
        yield opened


@pytest.fixture
def approvals() -> FakeApprovals:
    return FakeApprovals()


@pytest.fixture
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest_asyncio.fixture(loop_scope="session")
async def page(approvals: FakeApprovals, url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of a page in plain HTTP on the loopback; it sends what a browser's own forms send."""
    async with (
        ApprovalPage(approvals, Site(url, HINT), "127.0.0.1", int(url.rpartition(":")[2])),
        httpx.AsyncClient(base_url=url, verify=NO_TLS, headers={"Origin": url}, timeout=60) as client,
    ):
        yield client
