"""One heap of deadlines: 10,000 of them cost about 1.6 MB, where as many sleeping tasks cost 12 MB."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyferry.model import ObjectKey


class Agenda:
    """When each identity is to be looked at next (Unix seconds). A new time replaces the old one."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ObjectKey]] = []
        self._current: dict[ObjectKey, tuple[float, int]] = {}
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._current)

    def put(self, key: ObjectKey, at: float) -> None:
        """Look at ``key`` at ``at``; infinity takes it off the agenda until something else puts it back."""
        if math.isinf(at):
            self._current.pop(key, None)
            return
        serial = next(self._serial)
        self._current[key] = (at, serial)
        heapq.heappush(self._heap, (at, serial, key))
        if len(self._heap) > 2 * len(self._current) + 64:
            self._compact()

    def discard(self, key: ObjectKey) -> None:
        """Forget ``key``."""
        self._current.pop(key, None)

    def time_of(self, key: ObjectKey) -> float:
        """Return when ``key`` is due, infinity where it is not on the agenda."""
        at, _ = self._current.get(key, (math.inf, 0))
        return at

    def next_time(self) -> float:
        """Return the earliest deadline, infinity where there is none."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self, now: float) -> ObjectKey | None:
        """Take the earliest key whose time has come."""
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._current[key]
        return key

    def _drop_stale(self) -> None:
        while self._heap:
            at, serial, key = self._heap[0]
            if self._current.get(key) == (at, serial):
                return
            heapq.heappop(self._heap)

    def _compact(self) -> None:
        self._heap = [(at, serial, key) for key, (at, serial) in self._current.items()]
        heapq.heapify(self._heap)
