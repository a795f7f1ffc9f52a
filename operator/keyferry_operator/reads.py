"""One read for all who want to know the same at about the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


@final
class SharedReads(Generic[K, V]):
    """Shares the outcome of reads under way, and of those that ended less than ``seconds`` ago. Failures are not kept.

    Who asks after ``forget`` returned is never answered by a read that was begun before it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._reads: dict[K, asyncio.Future[V]] = {}

    async def get(self, key: K, read: Callable[[], Awaitable[V]]) -> V:
        """Return what ``read`` returns, or returned to somebody else just now; raise what it raises."""
        shared = self._reads.get(key)
        if shared is None:
            shared = asyncio.ensure_future(read())
            self._reads[key] = shared
            shared.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(shared)  # who gives up waiting does not end it for the others

    def forget(self, key: K) -> None:
        """Answer nobody with what was read so far."""
        self._reads.pop(key, None)

    def _ended(self, key: K, done: asyncio.Future[V]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._drop(key, done)
        else:
            asyncio.get_running_loop().call_later(self._seconds, self._drop, key, done)

    def _drop(self, key: K, done: asyncio.Future[V]) -> None:
        if self._reads.get(key) is done:
            del self._reads[key]
