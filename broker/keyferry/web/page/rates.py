"""How often one asker may ask."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ADDRESSES: Final = 4096


class Rates:
    """A bucket of ``burst`` for every address, refilled with ``rate`` a second.

    People may share an address (a house's, or that of a proxy which is not named as trusted), so the rates are those of
    a busy house, not of one person: they bound what a flood costs, and links and tokens are too long to be guessed at
    any rate.
    """

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst = rate, burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> bool:
        """Take one; False where the bucket is empty."""
        now = self._clock()
        left, since = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        granted = left >= 1
        self._buckets[address] = (left - granted, now)
        if len(self._buckets) > MOST_ADDRESSES:
            # The one that asked longest ago: its bucket is the fullest.
            del self._buckets[next(iter(self._buckets))]
        return granted
