"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class FakeClock:
    """All three clocks of `keyferry.io.clock.Clock`, moved by hand; the wall clock can jump on its own."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1_000.0
        self._suspended = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def boottime(self) -> float:
        return self._monotonic + self._suspended

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), wake))
        await wake

    def set_now(self, now: float) -> None:
        """Make the wall clock jump, as NTP or a person does; sleepers do not notice."""
        self._now = now

    def suspend(self, seconds: float) -> None:
        """Let the machine sleep: the wall clock and boot time go on, the monotonic clock and its sleepers do not."""
        self._now += seconds
        self._suspended += seconds

    async def advance(self, seconds: float) -> None:
        """Let time pass, stopping at each sleeper that is due, so that what it does next sees its own time."""
        end = self._monotonic + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, wake = heapq.heappop(self._sleepers)
            if wake.done():  # its task was cancelled
                continue
            self._pass(due - self._monotonic)
            wake.set_result(None)
            await settle()
        self._pass(end - self._monotonic)

    @property
    def sleeping(self) -> int:
        """How many wait."""
        return sum(not wake.done() for _, _, wake in self._sleepers)

    @property
    def next_wake(self) -> float | None:
        """Seconds until the first sleeper is due."""
        return min((due - self._monotonic for due, _, wake in self._sleepers if not wake.done()), default=None)

    def _pass(self, seconds: float) -> None:
        self._monotonic += seconds
        self._now += seconds


async def settle(rounds: int = 20) -> None:
    """Let the tasks that can run do so, without any time passing."""
    for _ in range(rounds):
        await asyncio.sleep(0)
