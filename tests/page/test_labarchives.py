"""A person logs in to LabArchives through the page, or types a one-hour code; the emulator stands for its pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.page.running import GROUP, RunningBroker
from tests.support.browser import visitor as open_visitor
from tests.support.labarchives import LabArchives

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser, Route

    from tests.support.browser import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

EMAIL = "ada+lab@example.org"
NAMES = ("typed", "called-back")


def _resources(server: LabArchives) -> list[dict[str, Any]]:
    key = {"id": server.access_key_id, "password": server.access_password}
    references = {name: {"secretKeyRef": {"name": "organization", "key": name}} for name in key}
    region = {"url": server.url, "accessKeyIdFrom": references["id"], "accessPasswordFrom": references["password"]}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "organization"}, "stringData": key},
        {
            **GROUP,
            "kind": "TokenProvider",
            "metadata": {"name": "labarchives"},
            "spec": {"type": "LabArchives", "labarchives": region},
        },
        *(
            {
                **GROUP,
                "kind": "ServiceIdentity",
                "metadata": {"name": name},
                "spec": {
                    "providerRef": {"name": "labarchives"},
                    "grant": {"type": "LabArchivesLogin"},
                    "target": {"files": [{"format": "LabArchives"}]},
                },
            }
            for name in NAMES
        ),
    ]


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    async with open_visitor(browser) as opened:
        yield opened
        assert opened.complaints == []


async def test_login_by_callback_and_by_code(tmp_path: Path, visitor: Visitor) -> None:
    with LabArchives() as server:
        broker = RunningBroker.prepare(tmp_path)
        async with broker.running(_resources(server)):
            await _type_a_code(broker, server, visitor)
            await _log_in_there(broker, server, visitor)
        assert len(server.redemptions) == 2
        assert [code for code in server.redemptions if code in broker.log()] == []


async def _type_a_code(broker: RunningBroker, server: LabArchives, visitor: Visitor) -> None:
    await visitor.page.goto(await broker.link("typed"))
    await visitor.draw("labarchives-question")
    await visitor.page.get_by_role("textbox", name="E-mail address").fill(EMAIL)
    await visitor.page.get_by_role("textbox", name="One-time code").fill(server.code_for(EMAIL))
    await visitor.press("Use this code")
    await _confirm(broker, visitor, "typed")


async def _log_in_there(broker: RunningBroker, server: LabArchives, visitor: Visitor) -> None:
    async def page_of_labarchives(route: Route) -> None:
        await route.fulfill(status=302, headers={"Location": server.callback_of(route.request.url, EMAIL)})

    await visitor.context.route("**/api_user_login?*", page_of_labarchives)
    await visitor.page.goto(await broker.link("called-back"))
    await visitor.press("Log in at 127.0.0.1")
    await visitor.wait_for_heading("Welcome back")
    await visitor.press("Continue")
    await _confirm(broker, visitor, "called-back")


async def _confirm(broker: RunningBroker, visitor: Visitor, name: str) -> None:
    await visitor.wait_for_heading("Is this the right account?")
    assert EMAIL in await visitor.text()
    await visitor.draw(f"labarchives-{name}")
    await visitor.press("Confirm")
    await visitor.wait_for_heading(f"{name} has its token")
    await broker.ready(name)
