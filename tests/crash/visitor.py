"""A person with one browser, in the broker's process and in the test's: what passes between them is in files.

The test is the provider's side of the login, since only it knows who is who there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from keyferry.errors import KeyferryError
from keyferry.question import Stage
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyferry.engine.entry import Entry
    from keyferry.run.broker import LocalBroker

BROWSER = SecretValue("the one browser")
BEGUN, CALLBACK, AGAIN = "begun", "callback", "again"
"""Where the browser was sent; where it was sent back to; that the person wants to be asked again."""
LOOK = 0.02


class Visitor:
    """Answers whatever is asked; asks again only where the test says so."""

    def __init__(self, broker: LocalBroker, base: Path) -> None:
        self._broker = broker
        self._base = base

    async def attend(self) -> None:
        """Go on until the broker ends."""
        while True:
            await asyncio.sleep(LOOK)
            for entry in list(self._broker.engine.roster.entries.values()):
                with contextlib.suppress(KeyferryError):
                    await self._answer(entry)

    async def _answer(self, entry: Entry) -> None:
        if entry.link is None:
            return
        approvals, link = self._broker.engine.approvals, entry.link.secret
        question = await approvals.question(link, BROWSER)
        if question.stage is Stage.LOGIN:
            callback = await self._log_in(await approvals.begin(link, BROWSER))
            parts = urlsplit(callback)
            await approvals.arrive(parts.path.rpartition("/")[2], BROWSER, dict(parse_qsl(parts.query)))
        elif question.stage is Stage.CONFIRM:
            await approvals.confirm(link, BROWSER)
        elif question.stage is Stage.ENDED and (self._base / AGAIN).exists():
            await approvals.ask_again(link)

    async def _log_in(self, address: str) -> str:
        """Go to the provider; return where it sends the browser back to."""
        write(self._base / BEGUN, address)
        while True:
            told = read(self._base / CALLBACK)
            if told.get("address") == address:
                return told["callback"]
            await asyncio.sleep(LOOK)


async def welcome(base: Path, log_in: Callable[[str], str]) -> None:
    """Be the provider: answer each login that is begun, once."""
    seen = ""
    while True:
        address = read(base / BEGUN).get("address", "")
        if address != seen:
            seen = address
            write(base / CALLBACK, address, log_in(address))
        await asyncio.sleep(LOOK)


def write(path: Path, address: str, callback: str = "") -> None:
    """Tell the other side something, whole."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"address": address, "callback": callback}))
    temporary.replace(path)


def read(path: Path) -> dict[str, str]:
    """Return what the other side told last; nothing where it told nothing."""
    try:
        found: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found
