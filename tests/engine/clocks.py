"""A clock that runs faster than time, and jumps when told to."""

from __future__ import annotations

import asyncio
import time


class FastClock:
    """`keyferry.io.clock.Clock` at `speed` seconds a second, so that minutes of backoff pass in a test."""

    def __init__(self, speed: float = 8.0) -> None:
        self.speed = speed
        self._begun = time.monotonic()
        self._wall = time.time()
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
        await asyncio.sleep(max(0.0, seconds) / self.speed)

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as NTP or a person does."""
        self._wall += seconds

    def _passed(self) -> float:
        return (time.monotonic() - self._begun) * self.speed
