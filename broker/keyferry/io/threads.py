"""Blocking work in threads, cheaply: at 10,000 identities the way there and back costs as much as a small read.

``loop.run_in_executor`` makes two futures with a lock each and wakes the loop for every result. Here a job is one
future of the loop, threads take jobs until none is left, and results that come close together wake the loop once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def in_thread(executor: Executor | None, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of ``executor`` (None: the event loop's own) and return what it returns."""
    if isinstance(executor, Threads):
        return await executor.run(work)
    return await asyncio.get_running_loop().run_in_executor(executor, work)


@final
class Threads(ThreadPoolExecutor):
    """At most ``count`` threads. ``run`` may be called from one event loop at a time."""

    def __init__(self, count: int, *, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._count = count
        self._guard = threading.Lock()
        self._jobs: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._working = 0
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._announced = False

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread and return what it returns; if cancelled before it began, it never does."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._guard:
            self._jobs.append((future, work))
            another = self._working < self._count
            self._working += another
        if another:
            self.submit(self._take_jobs, loop)
        return await future

    def _take_jobs(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._guard:
                if not self._jobs:
                    self._working -= 1
                    return
                future, work = self._jobs.popleft()
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = work()
            except BaseException as exception:  # noqa: BLE001 - it is raised where the result is waited for
                error = exception
            self._done.append((future, result, error))
            if not self._announced:
                self._announced = True
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Before the results are taken: what is added from now on announces itself.
        self._announced = False
        while self._done:
            future, result, error = self._done.popleft()
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
