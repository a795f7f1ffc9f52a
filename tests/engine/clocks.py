"""A clock that runs faster than time, and jumps when told to."""

from __future__ import annotations

import asyncio
import threading
import time

TICK = 0.02
STEP = 0.25
"""Seconds of real time: for so much counts, at most, what lies between two looks at the clock."""


class FastClock:
    """`keyferry.io.clock.Clock` at `speed` seconds a second, so that minutes of backoff pass in a test.

    On a machine that keeps the process from running it is slower: otherwise, after two seconds in which nobody could
    act, a token of fifteen seconds would be over. So it looks at the time in every turn of the event loop, and a turn
    that takes long counts for a `STEP`.
    """

    def __init__(self, speed: float = 8.0) -> None:
        self.speed = speed
        self._seen = time.monotonic()
        self._counted = 0.0
        self._wall = time.time()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.sleeps = 0
        """How often somebody waited: a loop that spins shows here."""

    def now(self) -> float:
        return self._wall + self._passed()

    def monotonic(self) -> float:
        return 1_000.0 + self._passed()

    def boottime(self) -> float:
        return 5_000.0 + self._passed()

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        until = self.monotonic() + seconds
        await asyncio.sleep(0)
        while (left := until - self.monotonic()) > 0:  # noqa: ASYNC110 - it waits for time alone
            await asyncio.sleep(max(left / self.speed, 0.001))

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as NTP or a person does."""
        self._wall += seconds

    def _passed(self) -> float:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            pass  # a thread, or a test without a loop
        else:
            if loop is not self._loop:
                self._loop = loop
                self._tick(loop)
        self._look()
        return self._counted * self.speed

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look()
        loop.call_later(TICK, self._tick, loop)

    def _look(self) -> None:
        with self._lock:
            seen = time.monotonic()
            self._counted += min(seen - self._seen, STEP)
            self._seen = seen
