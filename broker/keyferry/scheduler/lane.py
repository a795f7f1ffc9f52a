"""How fast one provider may be asked: rate, burst, concurrency, and a breaker. Times are monotonic seconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

BACKOFF_FLOOR: Final = 1.0
BACKOFF_CAP: Final = 300.0
BREAKER_THRESHOLD: Final = 5
"""Failures in a row, over all identities of the provider, that open the breaker."""
MAXIMUM_RETRY_AFTER: Final = 3600.0
"""Seconds; a provider that asks for more is asked again after this all the same."""

ROUNDING: Final = 1e-9


def backoff(count: int, draw: float, *, floor: float = 0.0) -> float:
    """Return how long to wait after the ``count``-th failure in a row: full jitter between 1 s and 5 min.

    ``draw`` is a random number in [0, 1). ``floor`` is what the provider asked for (Retry-After); the jitter is then
    added on top of it, so that those who were all told the same do not come back together.
    """
    ceiling = min(BACKOFF_CAP, BACKOFF_FLOOR * 2.0 ** min(count, 16))
    wait = max(BACKOFF_FLOOR, draw * ceiling)
    return wait if floor <= 0 else min(floor, MAXIMUM_RETRY_AFTER) + draw * min(ceiling, 30.0)


class Breaker(enum.IntEnum):
    """Whether a provider is asked at all; the number is the metric's value."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """What the provider resource allows."""

    requests_per_second: float = 10.0
    burst: int = 20
    concurrency: int = 8


class Lane:
    """The one way to a provider. Not thread-safe; the engine's loop owns it."""

    def __init__(self, limits: LaneLimits, now: float, rng: random.Random) -> None:
        self.limits = limits
        self._rng = rng
        self._tokens = float(limits.burst)
        self._filled_at = now
        self._busy = 0
        self._failures = 0
        self._opened = 0
        self._closed_until = 0.0
        self._asked_until = 0.0
        self._breaker = Breaker.CLOSED
        self.last_problem = ""

    def resize(self, limits: LaneLimits, now: float) -> None:
        """Take over changed limits; what is in flight is unaffected."""
        self._refill(now)
        self.limits = limits
        self._tokens = min(self._tokens, float(limits.burst))

    @property
    def busy(self) -> int:
        """Exchanges in flight."""
        return self._busy

    def state(self, now: float) -> Breaker:
        """Return the breaker's state."""
        if self._breaker is Breaker.OPEN and now >= self._closed_until:
            return Breaker.HALF_OPEN
        return self._breaker

    def blocked_until(self, now: float) -> float:
        """Return until when the provider must not be asked at all; the past where it may."""
        return self._closed_until if self._closed_until > now else 0.0

    def wait(self, now: float) -> float:
        """Return how long until an exchange may start: 0 now, infinity while every slot is taken."""
        state = self.state(now)
        allowed = 1 if state is Breaker.HALF_OPEN else self.limits.concurrency
        if self._busy >= allowed:
            return float("inf")
        if self._closed_until > now:
            return self._closed_until - now
        self._refill(now)
        missing = 1 - self._tokens
        # A rounding error is no reason to wait: the wait would be too short for a clock to show.
        return 0.0 if missing <= ROUNDING else missing / self.limits.requests_per_second

    def start(self, now: float) -> None:
        """Take a slot and the permit of the first request."""
        self._refill(now)
        self._busy += 1
        self._tokens -= 1
        if self.state(now) is Breaker.HALF_OPEN:
            self._breaker = Breaker.HALF_OPEN

    def another_request(self, now: float) -> float:
        """Take the permit of a further request of a running exchange; return how long to wait before sending it."""
        self._refill(now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self.limits.requests_per_second)

    def finish(self) -> None:
        """Give the slot back."""
        self._busy -= 1

    def succeeded(self) -> bool:
        """Note that the provider answered sensibly (a refusal is sensible, too); return whether that ended an outage.

        What the provider asked for with Retry-After stays in force: the answer may be to an earlier request.
        """
        recovered = self._breaker is not Breaker.CLOSED
        self._failures = 0
        self._opened = 0
        self._breaker = Breaker.CLOSED
        self._closed_until = self._asked_until
        return recovered

    def failed(self, now: float, problem: str, retry_after: float | None = None) -> None:
        """Note that the provider did not answer, or asked to be left alone for ``retry_after`` seconds."""
        self._failures += 1
        self.last_problem = problem
        if retry_after is not None and retry_after > 0:
            self._asked_until = max(self._asked_until, now + min(retry_after, MAXIMUM_RETRY_AFTER))
            self._closed_until = max(self._closed_until, self._asked_until)
        if self._breaker is Breaker.HALF_OPEN or self._failures >= BREAKER_THRESHOLD:
            if self._breaker is not Breaker.OPEN:
                self._opened += 1
            self._breaker = Breaker.OPEN
            pause = backoff(self._opened + 1, self._rng.random(), floor=retry_after or 0.0)
            self._closed_until = max(self._closed_until, now + pause)

    def _refill(self, now: float) -> None:
        gained = max(0.0, now - self._filled_at) * self.limits.requests_per_second
        self._tokens = min(float(self.limits.burst), self._tokens + gained)
        self._filled_at = now
