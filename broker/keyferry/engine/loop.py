"""The engine's one loop: starts what is due, a bounded number at once, and finishes it in the end."""

from __future__ import annotations

import asyncio
import enum
import logging
import traceback
from typing import TYPE_CHECKING, Final

from keyferry.engine.entry import Care
from keyferry.plan import CLOCK_LEEWAY

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from keyferry.engine.departures import Departures
    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.engine.undertaker import Undertaker
    from keyferry.engine.worker import Worker
    from keyferry.model import ObjectKey
    from keyferry.scheduler import Agenda, Queue

log = logging.getLogger(__name__)

LONGEST_SLEEP: Final = 30.0
"""Seconds after which the wall clock is read again: it may have jumped, or the machine have slept."""
CHECKS_AT_ONCE: Final = 32
UNEXPECTED_WAIT: Final = 60.0
"""Seconds after which a turn that met a defect of ours is tried again."""


class Waive(enum.Enum):
    """Whether looking at an identity forgives its last failure."""

    NEVER = enum.auto()
    IF_CHANGED = enum.auto()
    """Where only a change helps, it has to be a change of what failed: a refused password is not tried again because
    another key of its Secret, or the provider's rate, is another now."""
    ALWAYS = enum.auto()


class Loop:
    """Runs checks, exchanges and revocations as tasks of one event loop."""

    def __init__(
        self,
        ports: Ports,
        roster: Roster,
        agenda: Agenda,
        queue: Queue,
        worker: Worker,
        undertaker: Undertaker,
        departures: Departures,
        *,
        suspend_all: bool,
        drain: float,
    ) -> None:
        """``drain`` is for how many seconds exchanges under way may go on when the loop stops."""
        self._ports = ports
        self._roster = roster
        self._agenda = agenda
        self._queue = queue
        self._worker = worker
        self._undertaker = undertaker
        self._departures = departures
        self._suspend_all = suspend_all
        self._drain_for = drain
        self.stopping = False
        self._revoking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking = 0
        self.watchers: set[asyncio.Event] = set()
        """Set whenever an identity's turn is over."""
        self._clock_offset = ports.clock.now() - ports.clock.boottime()

    async def run(self) -> None:
        """Work until ``stop`` is called, then finish what is under way."""
        while not self.stopping:
            self._wake.clear()
            self._notice_jump()
            self._start_checks()
            self._start_exchanges()
            self._start_departures()
            self._start_revocations()
            timeout = self._pause()
            if timeout > 0:
                await self._sleep(timeout)
        await self._drain()

    def stop(self) -> None:
        """Start nothing new; ``run`` returns when spends and commits under way are done."""
        self.stopping = True
        self._wake.set()

    async def wait_for(self, done: Callable[[], bool], patience: float) -> bool:
        """Wait until ``done`` after some identity's turn; False when ``patience`` seconds passed first."""
        changed = asyncio.Event()
        self.watchers.add(changed)
        try:
            async with asyncio.timeout(patience):
                while not done():
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return False
        finally:
            self.watchers.discard(changed)
        return True

    def _notice_jump(self) -> None:
        """After the wall clock was set back, look at everybody: their times lie too far ahead now.

        A jump ahead, or a machine that slept, needs no more than the agenda: what is due by the clock is due.
        """
        offset = self._ports.clock.now() - self._ports.clock.boottime()
        jump, self._clock_offset = offset - self._clock_offset, offset
        if jump >= -CLOCK_LEEWAY:
            return
        log.warning("the clock went back by %.0f s; every identity is looked at", -jump)
        for entry in self._roster.entries.values():
            entry.shift(jump)
        self._undertaker.shift(jump)
        self.look_at(sorted(self._roster.entries, key=lambda key: self._roster.entries[key].expiration_time))

    def look_at(self, keys: Iterable[ObjectKey], *, waive: Waive = Waive.NEVER) -> None:
        """Put identities on the agenda for now."""
        for key in keys:
            entry = self._roster.entries.get(key)
            if entry is None or entry.care is not Care.FULL:
                continue
            if waive is not Waive.NEVER:
                entry.waive(always=waive is Waive.ALWAYS)
            if entry.busy:
                entry.again = True
            else:
                self._agenda.put(key, 0.0)
        self._wake.set()

    def discard(self, key: ObjectKey) -> None:
        """Begin nothing more with an identity."""
        self._agenda.discard(key)
        self._queue.discard(key)

    def _start_checks(self) -> None:
        now = self._ports.clock.now()
        while self._checking < CHECKS_AT_ONCE:
            key = self._agenda.pop_due(now)
            if key is None:
                return
            entry = self._roster.entries.get(key)
            if entry is None or entry.busy or entry.care is not Care.FULL or key in self._queue:
                continue
            entry.busy = True
            self._checking += 1
            self._spawn(self._worker.check(entry), entry, checking=True)

    def _start_exchanges(self) -> None:
        lanes = {provider.lane_name: provider.lane for provider in self._roster.providers.values()}
        while True:
            taken = self._queue.take(lanes, self._ports.clock.monotonic())
            if taken is None:
                return
            entry = self._roster.entries.get(taken[1])
            if entry is None or entry.busy or entry.care is not Care.FULL:
                lanes[taken[0]].finish()
                continue
            entry.busy = True
            self._spawn(self._worker.exchange(entry, lanes[taken[0]].finish), entry, checking=False)

    def _start_departures(self) -> None:
        for departure in self._departures.take_due(self._ports.clock.now()):
            task = asyncio.create_task(self._departures.work(departure))
            task.add_done_callback(lambda _task: self._wake.set())
            self._keep_task(task)

    def _start_revocations(self) -> None:
        due = self._undertaker.next_time() <= self._ports.clock.now()
        if due and not self._suspend_all and (self._revoking is None or self._revoking.done()):
            self._revoking = asyncio.create_task(self._undertaker.work())
            self._revoking.add_done_callback(lambda _task: self._wake.set())
            self._keep_task(self._revoking)

    def _pause(self) -> float:
        clock = self._ports.clock
        lanes = {provider.lane_name: provider.lane for provider in self._roster.providers.values()}
        waits = [
            LONGEST_SLEEP,
            self._queue.next_wait(lanes, clock.monotonic()),
            self._departures.next_time() - clock.now(),
        ]
        if (self._revoking is None or self._revoking.done()) and not self._suspend_all:
            waits.append(self._undertaker.next_time() - clock.now())
        if self._checking < CHECKS_AT_ONCE:
            waits.append(self._agenda.next_time() - clock.now())
        return min(waits)

    async def _sleep(self, seconds: float) -> None:
        """Wait until something happens, at most for so long."""
        sleeping = asyncio.ensure_future(self._ports.clock.sleep(seconds))
        sleeping.add_done_callback(self._slept)
        try:
            await self._wake.wait()
        finally:
            sleeping.cancel()

    def _slept(self, sleeping: asyncio.Future[None]) -> None:
        if not sleeping.cancelled():
            self._wake.set()

    async def _drain(self) -> None:
        """Let spends and commits finish; what takes longer stays in the ledger for the next process."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._drain_for)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1)

    def _spawn(self, work: Coroutine[Any, Any, None], entry: Entry, *, checking: bool) -> None:
        task = asyncio.create_task(self._guard(work, entry, checking=checking))
        self._keep_task(task)

    def _keep_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None], entry: Entry, *, checking: bool) -> None:
        """Run one identity's turn; a defect of ours costs that identity a minute, and nobody else anything."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - the last line of defence
            # The message of an unexpected error may hold anything, so its type and place must do.
            place = "".join(traceback.format_tb(error.__traceback__)[-3:])
            log.error("unexpected %s while working on %s\n%s", type(error).__name__, entry.key, place)  # noqa: TRY400
            self._agenda.put(entry.key, self._ports.clock.now() + UNEXPECTED_WAIT)
        finally:
            entry.busy = False
            self._checking -= checking
            if entry.again:
                entry.again = False
                self._agenda.put(entry.key, 0.0)
            for watcher in self.watchers:
                watcher.set()
            self._wake.set()
