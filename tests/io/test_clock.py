from __future__ import annotations

import asyncio
import time

from keyferry.io.clock import Clock, SystemClock
from tests.support.clock import FakeClock, settle


async def test_the_machines_clocks() -> None:
    clock: Clock = SystemClock()
    before = (time.time(), clock.monotonic(), clock.boottime())
    await clock.sleep(0.01)
    after = (clock.now(), clock.monotonic(), clock.boottime())
    assert after[0] - before[0] < 3600
    assert after[1] - before[1] >= 0.009
    assert after[2] - before[2] >= 0.009
    monotonic = clock.monotonic()
    assert clock.boottime() >= monotonic  # it has counted every suspend as well


async def test_a_fake_clock_wakes_each_sleeper_at_its_own_time() -> None:
    clock: FakeClock = FakeClock(now=100.0)
    as_protocol: Clock = clock
    woken: list[tuple[str, float]] = []

    async def tick(name: str, every: float) -> None:
        while True:
            await as_protocol.sleep(every)
            woken.append((name, clock.now()))

    tasks = [asyncio.ensure_future(tick("a", 2.0)), asyncio.ensure_future(tick("b", 3.0))]
    await clock.advance(6.5)
    assert woken == [("a", 102.0), ("b", 103.0), ("a", 104.0), ("b", 106.0), ("a", 106.0)]
    assert clock.now() == 106.5
    assert clock.sleeping == 2
    assert clock.next_wake == 1.5
    for task in tasks:
        task.cancel()
    await settle()
    assert clock.sleeping == 0
    assert clock.next_wake is None
    await clock.advance(10)
    assert len(woken) == 5


async def test_the_fake_clocks_disagree_as_real_ones_do() -> None:
    clock = FakeClock(now=100.0)
    zero = (clock.monotonic(), clock.boottime())
    clock.set_now(50.0)
    assert (clock.now(), clock.monotonic(), clock.boottime()) == (50.0, *zero)
    clock.suspend(30.0)
    assert (clock.now(), clock.monotonic(), clock.boottime()) == (80.0, zero[0], zero[1] + 30)
    await clock.sleep(0)
    await clock.advance(1.0)
    assert (clock.now(), clock.monotonic(), clock.boottime()) == (81.0, zero[0] + 1, zero[1] + 31)
