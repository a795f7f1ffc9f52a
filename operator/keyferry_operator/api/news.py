"""Wakes the requests that wait for news of an identity, and no others."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyferry.model import ObjectKey


@final
class News:
    """Who waits for what. Everything runs in one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[ObjectKey, set[asyncio.Event]] = {}
        self.listeners: list[Callable[[ObjectKey], None]] = []
        """Told first, before anybody is woken."""

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def waits(self, key: ObjectKey) -> bool:
        """Tell whether anybody waits for news of an identity."""
        return key in self._waiting

    def tell(self, key: ObjectKey) -> None:
        """Say that something of an identity may be another than it was."""
        for listener in self.listeners:
            listener(key)
        for event in self._waiting.get(key, ()):
            event.set()

    def wake_all(self) -> None:
        """Wake everybody."""
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()

    @contextmanager
    def waiting(self, key: ObjectKey) -> Iterator[asyncio.Event]:
        """Return an event that is set at each news of an identity; whoever waits clears it before looking."""
        event = asyncio.Event()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(event)
        try:
            yield event
        finally:
            waiting.discard(event)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]
