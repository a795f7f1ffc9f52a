"""How much one pod may ask, and how much all of them."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final

from keyferry.wire import ProblemReason
from keyferry_operator.api.answers import Denied, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

from contextlib import contextmanager


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults are right for clusters."""

    burst: float = 20.0
    """Requests that a pod may make at once."""
    rate: float = 2.0
    """Requests per second of a pod, after that."""
    signatures_burst: float = 100.0
    signatures_rate: float = 20.0
    """The same for calls of LabArchives, each of which a workload makes for itself."""
    page_burst: float = 200.0
    page_rate: float = 50.0
    """The same for the approval page, which asks for many people."""
    held_per_pod: int = 32
    """Requests of a pod that are held at once: one for each of its identities, and some that are just being ended."""
    held: int = 20_000
    """Requests of all pods together that are held."""
    look: float = 15.0
    """Seconds between looks whether the pod of a held request is still there."""
    looks: float = 50.0
    """Such looks per second, of all held requests together: where there are many, each has to wait."""
    returning: float = 200.0
    """Requests per second at which those that are sent away are asked to come back, all together."""


DEFAULT_LIMITS: Final = Limits()
MOST_PODS: Final = 50_000


@final
class Buckets:
    """A token bucket for each pod."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By the pod's uid: how full, and when (monotonic) that was."""

    def take(self, uid: str) -> None:
        """Take one. Raises Denied (429) where there is none."""
        now = asyncio.get_running_loop().time()
        level, at = self._levels.pop(uid, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        allowed = level >= 1.0
        self._levels[uid] = (level - 1.0 if allowed else level, now)
        while len(self._levels) > MOST_PODS:
            self._levels.popitem(last=False)
        if not allowed:
            raise Denied(
                HTTPStatus.TOO_MANY_REQUESTS,
                ProblemReason.TOO_MANY_REQUESTS,
                "this pod asks too often",
                retry_after=(1.0 - level) / self._rate,
            )


@final
class Held:
    """Counts the requests that are held, and says when those that are sent away are to come back."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_pod: dict[str, int] = {}
        self.count = 0
        self._sent_away = 0

    @contextmanager
    def holding(self, uid: str) -> Iterator[None]:
        """Hold a request of a pod meanwhile. Raises Denied where there are too many."""
        if self._by_pod.get(uid, 0) >= self._limits.held_per_pod:
            raise Denied(
                HTTPStatus.TOO_MANY_REQUESTS,
                ProblemReason.TOO_MANY_REQUESTS,
                "this pod has too many requests held",
                retry_after=random.uniform(5.0, 15.0),  # noqa: S311 - so that they do not come together
            )
        if self.count >= self._limits.held:
            raise unavailable("too many requests are held by this replica", self.comes_back())
        self.count += 1
        self._by_pod[uid] = self._by_pod.get(uid, 0) + 1
        try:
            yield
        finally:
            self.count -= 1
            self._by_pod[uid] -= 1
            if not self._by_pod[uid]:
                del self._by_pod[uid]

    def look_again(self) -> float:
        """Return after how many seconds it is looked whether the pod of a held request is still there."""
        return max(self._limits.look, self.count / self._limits.looks)

    def send_away(self) -> None:
        """Take note that all that are held now will be sent away."""
        self._sent_away = self.count

    def comes_back(self) -> float:
        """Return after how many seconds one of all that are held is to come back, so that they do not do so at once."""
        count = max(
            self.count, self._sent_away
        )  # it falls while they go, and the last are to wait as long as the first
        return 1.0 + random.uniform(0.0, max(2.0, count / self._limits.returning))  # noqa: S311
