from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from keyferry.io.threads import LINGER, Threads, in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[Threads]:
    with Threads(4, name="test") as opened:
        yield opened


async def test_work_is_done_elsewhere_and_its_results_come_back_to_whom_they_belong(threads: Threads) -> None:
    def work(number: int) -> tuple[int, str]:
        return number, threading.current_thread().name

    answers = await asyncio.gather(*(threads.run(lambda number=number: work(number)) for number in range(1000)))  # type: ignore[misc]
    assert [number for number, _ in answers] == list(range(1000))
    assert all(name.startswith("test") for _, name in answers)
    assert len({name for _, name in answers}) <= 4


async def test_an_error_is_raised_where_the_result_is_waited_for(threads: Threads) -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await threads.run(fail)
    assert await threads.run(lambda: 1) == 1, "the thread goes on"


async def test_as_many_as_there_are_threads_work_at_once(threads: Threads) -> None:
    together = threading.Barrier(4, timeout=30)
    await asyncio.gather(*(threads.run(together.wait) for _ in range(4)))


async def test_what_is_cancelled_before_it_began_is_never_done(threads: Threads) -> None:
    gate = threading.Event()
    holding = [asyncio.ensure_future(threads.run(gate.wait)) for _ in range(4)]
    done: list[int] = []
    waiting = asyncio.ensure_future(threads.run(lambda: done.append(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await asyncio.gather(*holding)
    await threads.run(lambda: done.append(2))
    assert done == [2]


async def test_jobs_that_come_one_by_one_find_the_same_thread_waiting(threads: Threads) -> None:
    names = [await threads.run(lambda: threading.current_thread().name) for _ in range(100)]
    assert len(set(names)) <= 4
    assert await asyncio.gather(*(threads.run(lambda: 7) for _ in range(10))) == [7] * 10


async def test_a_thread_that_waits_for_nothing_goes_home_and_another_comes_when_there_is_work(threads: Threads) -> None:
    for _ in range(3):
        assert await threads.run(lambda: 1) == 1
        await asyncio.sleep(2 * LINGER)
        together = threading.Barrier(4, timeout=30)
        await asyncio.gather(*(threads.run(together.wait) for _ in range(4)))


async def test_what_was_begun_before_the_end_is_finished() -> None:
    with Threads(2, name="test") as threads:
        gate, done = threading.Event(), list[int]()

        def work(number: int) -> None:
            gate.wait(30)
            done.append(number)

        jobs = [asyncio.ensure_future(threads.run(lambda number=number: work(number))) for number in range(6)]  # type: ignore[misc]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.to_thread(threads.shutdown)
        assert sorted(done) == list(range(6))
        await asyncio.gather(*jobs)


def test_another_event_loop_may_go_on_with_the_same_threads(threads: Threads) -> None:
    for number in range(5):
        assert asyncio.run(threads.run(lambda number=number: number)) == number  # type: ignore[misc]


async def test_a_result_that_nobody_waits_for_any_more_disturbs_nobody(threads: Threads) -> None:
    gate, begun = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(30)

    abandoned = asyncio.ensure_future(threads.run(work))
    await asyncio.to_thread(begun.wait, 30)
    abandoned.cancel()
    gate.set()
    assert await threads.run(lambda: "next") == "next"


@pytest.mark.parametrize("kind", ["threads", "pool", "none"])
async def test_any_executor_does(kind: str) -> None:
    if kind == "none":
        assert await in_thread(None, threading.get_ident) != threading.get_ident()
        return
    with Threads(1, name="t") if kind == "threads" else ThreadPoolExecutor(1) as executor:
        assert await in_thread(executor, threading.get_ident) != threading.get_ident()
