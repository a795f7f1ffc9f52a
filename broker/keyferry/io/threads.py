"""Blocking work in threads, cheaply: at 10,000 identities the way there and back costs as much as a small read.

``loop.run_in_executor`` makes two futures with a lock each and wakes the loop for every result. Here a job is one
future of the loop, a thread that has nothing left to do waits a moment for the next job before it goes back to the
pool, and results that come close together wake the loop once.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LINGER: Final = 0.1
"""Seconds for which a thread waits for its next job: to have one called from the pool costs several times as much."""

_Job: TypeAlias = "tuple[asyncio.Future[Any], Callable[[], Any]]"


async def in_thread(executor: Executor | None, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of ``executor`` (None: the event loop's own) and return what it returns."""
    if isinstance(executor, Threads):
        return await executor.run(work)
    return await asyncio.get_running_loop().run_in_executor(executor, work)


class _Seat:
    """Where a thread waits for its next job."""

    __slots__ = ("called", "job")

    def __init__(self) -> None:
        self.called = threading.Lock()
        self.called.acquire()
        self.job: _Job | None = None


@final
class Threads(ThreadPoolExecutor):
    """At most ``count`` threads. ``run`` may be called from one event loop at a time."""

    def __init__(self, count: int, *, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._count = count
        self._guard = threading.Lock()
        self._jobs: deque[_Job] = deque()
        self._working = 0
        self._seated: list[_Seat] = []
        """Of the working threads those that wait, the last to sit down at the end."""
        self._closing = False
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._announced = False

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread and return what it returns; if cancelled before it began, it never does."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        another = False
        with self._guard:
            if self._seated:
                seat = self._seated.pop()
                seat.job = future, work
                seat.called.release()
            else:
                self._jobs.append((future, work))
                another = self._working < self._count
                self._working += another
        if another:
            self.submit(self._work)
        return await future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's
        """End the threads, those that wait for a job at once."""
        with self._guard:
            self._closing = True
            for seat in self._seated:
                seat.called.release()
            self._working -= len(self._seated)
            self._seated.clear()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _work(self) -> None:
        seat = _Seat()
        while (job := self._next(seat)) is not None:
            future, work = job
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
                try:
                    future.get_loop().call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop was closed: nobody waits any more
                    self._announced = False
            del future, work, job, result, error  # what they hold is not kept while this waits for the next

    def _next(self, seat: _Seat) -> _Job | None:
        """Return the next job; None where the thread is not wanted any more."""
        with self._guard:
            if self._jobs:
                return self._jobs.popleft()
            if self._closing:
                self._working -= 1
                return None
            self._seated.append(seat)
        if not seat.called.acquire(timeout=LINGER):
            with self._guard:
                if seat in self._seated:
                    self._seated.remove(seat)
                    self._working -= 1
                    return None
            seat.called.acquire()  # it was called in this very moment
        job, seat.job = seat.job, None
        return job

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
