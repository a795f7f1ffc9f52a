"""Who waits for an exchange, by provider: the one with the least time left goes first."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.model import ObjectKey
    from keyferry.scheduler.lane import Lane


class Queue:
    """A de-duplicating queue with one priority heap for each lane."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[float, int, ObjectKey]]] = {}
        self._waiting: dict[ObjectKey, tuple[str, int]] = {}
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._waiting

    def put(self, lane: str, key: ObjectKey, deadline: float) -> None:
        """Queue ``key``, once however often asked, for an exchange wanted before ``deadline`` (Unix seconds)."""
        if key in self._waiting:
            return
        serial = next(self._serial)
        self._waiting[key] = (lane, serial)
        heapq.heappush(self._heaps.setdefault(lane, []), (deadline, serial, key))

    def discard(self, key: ObjectKey) -> None:
        """Forget ``key``."""
        self._waiting.pop(key, None)

    def depth(self, lane: str) -> int:
        """Return how many wait for the lane."""
        return sum(1 for waiting_lane, _ in self._waiting.values() if waiting_lane == lane)

    def take(self, lanes: Mapping[str, Lane], now: float) -> tuple[str, ObjectKey] | None:
        """Take the next key whose lane is open (``now`` monotonic), and a slot of that lane with it."""
        best: tuple[float, int, str] | None = None
        for name, heap in self._heaps.items():
            self._drop_stale(name, heap)
            lane = lanes.get(name)
            if (
                heap
                and lane is not None
                and lane.wait(now) <= 0
                and (best is None or (heap[0][0], heap[0][1]) < best[:2])
            ):
                best = (heap[0][0], heap[0][1], name)
        if best is None:
            return None
        _, _, key = heapq.heappop(self._heaps[best[2]])
        del self._waiting[key]
        lanes[best[2]].start(now)
        return best[2], key

    def next_wait(self, lanes: Mapping[str, Lane], now: float) -> float:
        """Return how long until ``take`` may have something; infinity when only a finished exchange can tell."""
        waits = [math.inf]
        for name, heap in self._heaps.items():
            self._drop_stale(name, heap)
            lane = lanes.get(name)
            if heap and lane is not None:
                waits.append(lane.wait(now))
        return min(waits)

    def drain_lane(self, lane: str) -> list[ObjectKey]:
        """Take everything that waits for a lane: its provider asked to be left alone."""
        keys = [key for _, serial, key in self._heaps.pop(lane, []) if self._waiting.get(key) == (lane, serial)]
        for key in keys:
            del self._waiting[key]
        return keys

    def _drop_stale(self, lane: str, heap: list[tuple[float, int, ObjectKey]]) -> None:
        while heap and self._waiting.get(heap[0][2]) != (lane, heap[0][1]):
            heapq.heappop(heap)
