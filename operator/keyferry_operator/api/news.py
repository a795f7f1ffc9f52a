"""Wakes the requests that wait for news of an identity, and no others: some at a time, and those soon have answers.

The event loop serves all in turn. Were thousands woken at once, each would be looked at before the first is answered,
and none had its answer until all are nearly done.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyferry.model import ObjectKey

AT_ONCE: Final = 50
"""Of those who wait for the same identity, who look at its news at the same time."""


@final
class Waiter:
    """One who waits for news of an identity. What was told while it looked is news as well."""

    __slots__ = ("_line", "_sleep", "_told", "_turn")

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._sleep: asyncio.Future[bool] | None = None
        self._told = False
        """There was news while it was awake."""
        self._turn = False
        """It is one of those who were woken to look."""

    async def comes(self, patience: float) -> bool:
        """Wait for news; False when ``patience`` seconds passed first."""
        self._end_turn()
        if self._told:
            self._told = False
            return True
        loop = asyncio.get_running_loop()
        self._sleep = loop.create_future()
        alarm = loop.call_later(patience, self._wake, False)
        try:
            return await self._sleep
        finally:
            alarm.cancel()
            self._sleep = None

    def tell(self) -> bool:
        """Wake it, and tell whether that took a turn: one who is awake looks when it comes to that."""
        if self._sleep is None or self._sleep.done():
            self._told = True
            return False
        self._turn = True
        self._wake(True)
        return True

    def leave(self) -> None:
        """Wait no more."""
        self._line.remove(self)
        self._end_turn()

    def _wake(self, news: bool) -> None:  # noqa: FBT001
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(news)

    def _end_turn(self) -> None:
        if self._turn:
            self._turn = False
            self._line.next()


class _Line:
    """All who wait for news of one identity."""

    def __init__(self) -> None:
        self.waiters: dict[Waiter, None] = {}
        """As they came."""
        self._due: OrderedDict[Waiter, None] = OrderedDict()
        """Who is yet to be woken."""
        self._looking = 0

    def tell(self) -> None:
        # Those who were not reached last time come first, however often there is news.
        self._due.update(self.waiters)
        self._fill()

    def next(self) -> None:
        """Take note that one has looked: it is asleep again, or about to write its answer."""
        self._looking -= 1
        self._fill()

    def remove(self, waiter: Waiter) -> None:
        self.waiters.pop(waiter, None)
        self._due.pop(waiter, None)

    def _fill(self) -> None:
        while self._due and self._looking < AT_ONCE:
            waiter, _ = self._due.popitem(last=False)
            self._looking += waiter.tell()


@final
class News:
    """Who waits for what. Everything runs in one event loop."""

    def __init__(self) -> None:
        self._lines: dict[ObjectKey, _Line] = {}
        self.listeners: list[Callable[[ObjectKey], None]] = []
        """Told first, before anybody is woken."""

    @property
    def count(self) -> int:
        """How many wait."""
        return sum(len(line.waiters) for line in self._lines.values())

    def waits(self, key: ObjectKey) -> bool:
        """Tell whether anybody waits for news of an identity."""
        return key in self._lines

    def tell(self, key: ObjectKey) -> None:
        """Say that something of an identity may be another than it was."""
        for listener in self.listeners:
            listener(key)
        line = self._lines.get(key)
        if line is not None:
            line.tell()

    def wake_all(self) -> None:
        """Wake everybody."""
        for line in self._lines.values():
            line.tell()

    @contextmanager
    def waiting(self, key: ObjectKey) -> Iterator[Waiter]:
        """Wait for news of an identity, from now on and for as long as this is entered."""
        line = self._lines.setdefault(key, _Line())
        waiter = Waiter(line)
        line.waiters[waiter] = None
        try:
            yield waiter
        finally:
            waiter.leave()
            if not line.waiters and self._lines.get(key) is line:
                del self._lines[key]
