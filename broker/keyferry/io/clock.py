"""Time as a collaborator: three clocks that disagree on purpose.

The wall clock says when a token expires and may jump (NTP, a person). The monotonic clock measures how long something
took and stops while the machine sleeps. The boot-time clock measures it too, and goes on while the machine sleeps.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the engine knows of time; all values are seconds."""

    def now(self) -> float:
        """Return the wall clock as Unix time; it may jump either way."""

    def monotonic(self) -> float:
        """Return a clock that never goes back, of no particular zero; it may stand still while the machine sleeps."""

    def boottime(self) -> float:
        """Return a clock that never goes back and counts the time in which the machine slept."""

    async def sleep(self, seconds: float) -> None:
        """Wait by the monotonic clock; zero or less lets others run once."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Return the wall clock as Unix time."""
        return time.time()

    def monotonic(self) -> float:
        """Return ``CLOCK_MONOTONIC``."""
        return time.monotonic()

    def boottime(self) -> float:
        """Return ``CLOCK_BOOTTIME`` (Linux; clock_gettime(2)), which counts suspend."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait by the event loop's clock."""
        await asyncio.sleep(seconds)
