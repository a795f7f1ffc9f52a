"""``keyferry demo``: a broker at work, with an authorization server of its own to ask; nothing is left over."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import sys
import tempfile
import textwrap
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TextIO
from urllib.parse import urlsplit

from rich.console import Console

from keyferry.demo.device_codes import Decision
from keyferry.demo.issuer import PERSON, start_demo_issuer
from keyferry.demo.resources import NAMESPACE, write_files
from keyferry.engine import Level
from keyferry.io.addresses import HostRule
from keyferry.run.broker import LocalBroker
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings
from keyferry.run.table import LiveTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keyferry.demo.issuer import DemoAccount, DemoIssuer
    from keyferry.demo.resources import DemoFiles
    from keyferry.engine import Engine, Event, IdentityStatus
    from keyferry.model import ObjectKey

RENEWALS: Final = 2
"""How often every identity must be renewed before the demo has shown what it is for."""
BOUND: Final = 60.0
"""Seconds that all of that may take."""
HESITATION: Final = 3.0
"""Seconds for which a question stands before the demo's person approves."""
TICK: Final = 1.0
"""Seconds between drawings of the table: the times shown are relative."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_demo(
    *, keep: bool | None = None, lifetime: float = 6.0, stdout: TextIO | None = None, bound: float = BOUND
) -> int:
    """Run the demo and return the exit code; every file that it made is gone then.

    ``keep``: go on until a signal comes; by default where ``stdout`` (default: the process's) is a terminal.
    Otherwise end once every identity was renewed twice. ``lifetime`` is that of the access tokens, in seconds. 1 is
    returned where the renewals did not come within ``bound`` seconds, or where a refresh token was spent twice;
    128 and the signal's number where a signal ended it before its time.
    """
    output = sys.stdout if stdout is None else stdout
    stay = output.isatty() if keep is None else keep
    with _interrupts() as interrupts:
        demo = _Demo(output, interrupts, stay=stay, bound=bound)
        with tempfile.TemporaryDirectory(prefix="keyferry-demo-") as directory:
            shown = await demo.run(Path(directory), lifetime)
        return _conclude(shown, output)


@dataclass(frozen=True, slots=True)
class _Row:
    """What became of one identity."""

    name: str
    grant: str
    renewals: int
    spent: int
    """Refresh tokens that arrived at the server."""
    spent_twice: int
    why: str
    """The engine's last word on it, with what leads to it; empty where there is none."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the demo has shown, and what ended it."""

    base: Path
    seconds: float
    rows: list[_Row]
    bound: float
    ended_by: signal.Signals | None
    """The signal that ended it before its time."""


class _Demo:
    """One run of the demo."""

    def __init__(self, output: TextIO, interrupts: _Interrupts, *, stay: bool, bound: float) -> None:
        self._output = output
        self._interrupts = interrupts
        self._stay = stay
        self._bound = bound
        self._begun = time.monotonic()
        self._progress = _Progress(interrupts.wake)
        self._asked: dict[str, float] = {}
        """Codes that a person is shown, and since when (monotonic)."""

    async def run(self, base: Path, lifetime: float) -> _Shown:
        """Set everything up under ``base``, let it run, and return how it went."""
        issuer = await start_demo_issuer(access_lifetime=lifetime)
        try:
            files = write_files(issuer, base)
            self._introduce(issuer, files, lifetime)
            settings = RunSettings(
                (files.resources,),
                files.out,
                files.state,
                secrets=SecretSettings(directory=files.secrets),
                allowed_hosts=(HostRule.parse(urlsplit(issuer.url).netloc),),
            )
            async with LocalBroker(settings) as broker:
                broker.reporter.listeners.append(self._progress)
                await broker.start()
                await self._watch(broker.engine, issuer)
                statuses = {status.key.name: status for status in broker.engine.statuses()}
        finally:
            await issuer.close()
        rows = [self._row(issuer, account, statuses.get(account.name)) for account in issuer.accounts]
        received = self._interrupts.received
        ordinary = received is None or (self._stay and received is signal.SIGINT)
        return _Shown(base, time.monotonic() - self._begun, rows, self._bound, None if ordinary else received)

    async def _watch(self, engine: Engine, issuer: DemoIssuer) -> None:
        """Print what happens until it is over, or the renewals did not come in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._bound
        satisfied, names = False, [account.name for account in issuer.accounts]
        with _screen(self._output) as screen:
            while self._interrupts.received is None and loop.time() < deadline:
                self._interrupts.wake.clear()
                for at, event in self._progress.take():
                    if not (satisfied and event.level is Level.INFO and self._output.isatty()):
                        screen.say(self._line(at, event))
                statuses = engine.statuses()
                self._approve(issuer, statuses, screen)
                screen.show(statuses, time.time())
                if not satisfied and self._progress.renewed(names):
                    satisfied, deadline = True, math.inf
                    if not self._stay:
                        return
                    screen.say(f"Every identity was renewed {RENEWALS} times; this goes on until Ctrl-C.")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min(deadline, loop.time() + TICK)):
                        await self._interrupts.wake.wait()

    def _approve(self, issuer: DemoIssuer, statuses: Sequence[IdentityStatus], screen: _Screen) -> None:
        """Approve what has been asked for a moment, as a person would; the codes are of this demo's own server."""
        now = time.monotonic()
        for status in statuses:
            code = status.prompt.user_code if status.prompt is not None else ""
            if not code or now < self._asked.setdefault(code, now) + HESITATION:
                continue
            with contextlib.suppress(KeyError):  # it was decided already
                issuer.service.device_codes.decide(code, Decision.APPROVED, PERSON)
                screen.say(f"{now - self._begun:6.1f} s  {status.key.name:<16}{PERSON} compares the code and approves")

    def _introduce(self, issuer: DemoIssuer, files: DemoFiles, lifetime: float) -> None:
        text = files.resources.read_text(encoding="utf-8")
        lines = [
            f"Keyferry's demo: an authorization server of its own listens on {issuer.url}. Its access tokens",
            f"live for {lifetime:g} s, and each of its refresh tokens is good once. Keyferry keeps the tokens of four",
            f"identities fresh, as `keyferry run` would, from this file ({files.resources}).",
            f"One of them waits until a person has approved it: {PERSON}, whom the demo plays, too.",
            "",
            textwrap.indent(text, "    "),
            f"Look at the tokens in {files.out / NAMESPACE}/IDENTITY/token.",
            *(["Ctrl-C ends the demo and removes all of its files."] if self._stay else []),
            "",
        ]
        print("\n".join(lines), file=self._output, flush=True)

    def _line(self, at: float, event: Event) -> str:
        name = event.key.name if event.key is not None else "-"
        words = f"{event.event}: {event.message}"
        if event.event in {"obtained", "renewed"} and event.expiration_time is not None:
            words += f", good for {event.expiration_time - time.time():.1f} s"
        return f"{at - self._begun:6.1f} s  {name:<16}{words}"

    def _row(self, issuer: DemoIssuer, account: DemoAccount, status: IdentityStatus | None) -> _Row:
        arrived = [spend.presented for spend in issuer.service.spends() if spend.client_id == account.client_id]
        return _Row(
            name=account.name,
            grant=status.grant if status is not None else "-",
            renewals=self._progress.renewals[account.name],
            spent=sum(times > 0 for times in arrived),
            spent_twice=sum(times > 1 for times in arrived),
            why=f": {status.reason.value}, {status.message}" if status is not None and status.message else "",
        )


def _conclude(shown: _Shown, output: TextIO) -> int:
    """Print the summary and return the exit code; the files are gone by now."""
    lines = [
        "",
        f"In {shown.seconds:.1f} s:",
        "",
        f"    {'identity':<16}{'grant':<19}{'renewals':<10}refresh tokens spent",
    ]
    for row in shown.rows:
        once = f"{row.spent_twice} of them twice" if row.spent_twice else "none twice"
        spent = f"{row.spent}, {once}" if row.spent else "-"
        lines.append(f"    {row.name:<16}{row.grant:<19}{row.renewals:<10}{spent}")
    lines += ["", f"The files were in {shown.base}, for their owner alone. They are removed, and the server is gone."]
    failures = [f"FAILED: {row.name} spent a refresh token twice." for row in shown.rows if row.spent_twice]
    if shown.ended_by is None and shown.seconds >= shown.bound:
        failures += [
            f"FAILED: {row.name} was renewed {row.renewals} of {RENEWALS} times within {shown.bound:g} s{row.why}"
            for row in shown.rows
            if row.renewals < RENEWALS
        ]
    if not failures:
        lines += [
            "Next: describe a provider of your own in such a file, look it over with `keyferry lint FILE`, and keep",
            "its tokens fresh with `keyferry run FILE --secrets DIR`.",
        ]
    print("\n".join(lines + failures), file=output, flush=True)
    if failures:
        return 1
    return 128 + shown.ended_by if shown.ended_by is not None else 0


class _Screen(Protocol):
    """Where the demo is watched; ``keyferry.run.table.LiveTable`` is one."""

    def say(self, text: str) -> None:
        """Print a line."""

    def show(self, statuses: Sequence[IdentityStatus], now: float) -> None:
        """Show how the identities are at ``now`` (Unix seconds)."""


class _Lines:
    """A screen for a file or a pipe: what happens is said, how it is is not."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._output, flush=True)

    def show(self, statuses: Sequence[IdentityStatus], now: float) -> None:
        """Print nothing."""


@contextlib.contextmanager
def _screen(output: TextIO) -> Iterator[_Screen]:
    """Yield the live table on a terminal, and plain lines elsewhere."""
    if not output.isatty():
        yield _Lines(output)
        return
    table = LiveTable(Console(file=output))
    try:
        yield table
    finally:
        table.close()


class _Progress:
    """Takes note of what the engine tells; it prints nothing, since the engine must not wait for a terminal."""

    def __init__(self, wake: asyncio.Event) -> None:
        self.renewals: Counter[str] = Counter()
        self._wake = wake
        self._news: list[tuple[float, Event]] = []

    def report(self, status: IdentityStatus) -> None:
        """Do nothing: the events say it all."""

    def forget(self, key: ObjectKey) -> None:
        """Do nothing: the events say it all."""

    def event(self, event: Event) -> None:
        """Take note of an event."""
        if event.event == "renewed" and event.key is not None:
            self.renewals[event.key.name] += 1
        if event.level is not Level.DEBUG:
            self._news.append((time.monotonic(), event))
        self._wake.set()

    def renewed(self, names: list[str]) -> bool:
        """Tell whether each was renewed often enough."""
        return all(self.renewals[name] >= RENEWALS for name in names)

    def take(self) -> list[tuple[float, Event]]:
        """Return what is new, with the time (monotonic) of each."""
        news, self._news = self._news, []
        return news


class _Interrupts:
    """The signal that asked for the end, and what wakes who waits for one."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.received: signal.Signals | None = None

    def receive(self, number: signal.Signals) -> None:
        """Take note of a signal."""
        self.received = number
        self.wake.set()


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Take the signals that end a program, so that the files are removed all the same."""
    interrupts = _Interrupts()
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            continue  # as nohup(1) and a shell's background jobs want it
        # Outside the main thread there are no signals to take.
        with contextlib.suppress(RuntimeError, ValueError):
            loop.add_signal_handler(number, interrupts.receive, number)
            taken.append(number)
    try:
        yield interrupts
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
