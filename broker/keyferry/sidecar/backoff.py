"""How long to wait before asking again, so that a thousand sidecars that lost one broker do not return as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

SOON: Final = 0.5
"""Seconds within which one that has nothing yet asks again for the first time: its pod waits for it."""
LATEST: Final = 60.0
"""Seconds that no wait exceeds unless the broker asks for more."""
_DOUBLINGS: Final = 16


class Backoff:
    """Full jitter: a wait is drawn evenly from nothing to a bound that doubles with each failure."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._failures = 0

    def next(self, first: float, *, floor: float = 0.0, latest: float = LATEST) -> float:
        """Return how many seconds to wait after one more failure.

        ``first`` bounds the first wait, ``latest`` all of them; ``floor`` is what the broker asked for (Retry-After),
        on top of which the draw comes, since it asks the same of everybody.
        """
        bound = min(max(first, latest), first * 2 ** min(self._failures, _DOUBLINGS))
        self._failures += 1
        return floor + self._rng.uniform(0.0, bound)

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0
