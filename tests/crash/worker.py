"""Brokers that die on command: ``python -m tests.crash.worker`` has all imported, and forks one for each order.

A broker writes down, so that it outlives any kill, what it reports, each claim it makes, and each refresh token that
is in its escrow.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyferry.io.addresses import HostRule
from keyferry.run.broker import LocalBroker
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings
from tests.crash.forks import die, serve
from tests.crash.visitor import Visitor

if TYPE_CHECKING:
    from keyferry.engine import Event, IdentityStatus
    from keyferry.model import ObjectKey

FILE_SYSTEM = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir"})


@dataclass(frozen=True)
class Order:
    """What a broker is to do. Its directories lie in ``base``; it dies where ``step`` or ``change`` says."""

    base: str
    step: str = ""
    """The name of a checkpoint, and at which of its passings to die."""
    passing: int = 1
    change: int = 0
    """Die before this change of the file system, counted from 1."""
    drain: bool = True
    """SIGTERM lets spends under way finish."""
    page_url: str = ""
    """Where a page would be; then somebody answers what is asked through it."""

    @property
    def settings(self) -> RunSettings:
        base = Path(self.base)
        return RunSettings(
            (base / "resources.yaml",),
            base / "out",
            base / "state",
            secrets=SecretSettings(directory=base / "secrets"),
            allowed_hosts=(HostRule.parse("127.0.0.1"),),
            page_url=self.page_url,
        )


class Diary:
    """A file of JSON lines, each written at once; also the listener of the broker."""

    def __init__(self, base: Path) -> None:
        self._state = base / "state"
        self._claims: set[str] = set()
        self._file = os.open(base / "diary", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **fields: Any) -> None:
        os.write(
            self._file, json.dumps({"kind": kind, "pid": os.getpid(), "at": time.time(), **fields}).encode() + b"\n"
        )

    def report(self, status: IdentityStatus) -> None:
        self.write(
            "status",
            name=status.key.name,
            reason=status.reason.value,
            message=status.message,
            revision=status.revision,
            expires=status.expiration_time,
        )

    def forget(self, key: ObjectKey) -> None:
        self.write("forgotten", name=key.name)

    def event(self, event: Event) -> None:
        name = event.key.name if event.key is not None else ""
        self.write("event", name=name, event=event.event, reason=event.reason.value, message=event.message)

    def claims(self) -> None:
        """Write down every open claim: it is on the disk before anything is sent."""
        for path in self._state.glob("records/*/*.json"):
            with contextlib.suppress(FileNotFoundError):
                record = json.loads(path.read_bytes())["record"]
                claim = record.get("claim")
                if claim is not None and claim["attempt_id"] not in self._claims:
                    self._claims.add(claim["attempt_id"])
                    self.write(
                        "claim",
                        name=record["name"],
                        digest=claim["digest"],
                        attempt=claim["attempt"],
                        attempt_id=claim["attempt_id"],
                    )

    def escrow(self, kind: str = "escrowed") -> None:
        """Write down every refresh token that has arrived and lies in the escrow."""
        for path in self._state.glob("escrow/*"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                payload = path.read_bytes().partition(b"\n")[2]
                body = json.loads(base64.b64decode(json.loads(payload.rstrip(b"\0"))["body"]))
                if isinstance(body, dict) and "refresh_token" in body:
                    self.write(kind, attempt_id=path.name, token=body["refresh_token"])


class Fate:
    """Counts steps and changes of the file system, and ends the process at the one that was ordered."""

    def __init__(self, order: Order, diary: Diary) -> None:
        self._order = order
        self._diary = diary
        self._passed: Counter[str] = Counter()
        self.changes = 0

    def checkpoint(self, step: str) -> None:
        if step == "claimed":
            self._diary.claims()
        elif step == "escrowed":
            self._diary.escrow()
        elif step == "published":
            self._diary.write("published", changes=self.changes)
        self._passed[step] += 1
        if step == self._order.step and self._passed[step] == self._order.passing:
            die()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if _changes(event, arguments):
            self.changes += 1
            if self.changes == self._order.change:
                die()


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Tell whether an audited call is about to change a directory (one that only opens what is there does not)."""
    if event == "open":
        path, _, flags = arguments
        return isinstance(flags, int) and bool(flags & os.O_CREAT) and not Path(path).exists()
    if event == "os.mkdir":
        path, _, folder = arguments
        try:
            os.stat(path, dir_fd=folder if folder >= 0 else None)
        except OSError:
            return True
        return False
    return event in FILE_SYSTEM


async def work(order: Order, diary: Diary, fate: Fate) -> None:
    """Run a broker until it is told to end."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    diary.claims()
    diary.escrow("found")
    async with LocalBroker(order.settings, checkpoint=fate.checkpoint, renew_interval=0.0) as broker:
        broker.reporter.listeners.append(diary)
        await broker.start()
        diary.write("started", problems=[str(problem) for problem in broker.problems])
        visitor = asyncio.create_task(Visitor(broker, Path(order.base)).attend()) if order.page_url else None
        await told.wait()
        if visitor is not None:
            visitor.cancel()
            await asyncio.gather(visitor, return_exceptions=True)
    diary.write("ended")


async def live(fields: dict[str, Any]) -> int:
    """Carry out one order in a process of its own."""
    order = Order(**fields)
    diary = Diary(Path(order.base))
    fate = Fate(order, diary)
    if order.change:
        sys.addaudithook(fate.audit)
    await work(order, diary, fate)
    return 0


if __name__ == "__main__":
    serve(live)
