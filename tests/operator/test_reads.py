"""One read for all who want to know the same at about the same time."""

from __future__ import annotations

import asyncio

import pytest

from keyferry_operator.reads import SharedReads


class Shelf:
    """What is read; each read says which it was."""

    def __init__(self) -> None:
        self.begun = 0
        self.open = asyncio.Event()

    async def read(self) -> int:
        self.begun += 1
        mine = self.begun
        await self.open.wait()
        return mine


async def test_reads_under_way_and_just_ended_are_shared_by_key() -> None:
    shelf, reads = Shelf(), SharedReads[str, int](seconds=60.0)
    asked = [asyncio.create_task(reads.get("a", shelf.read)) for _ in range(3)]
    other = asyncio.create_task(reads.get("b", shelf.read))
    await asyncio.sleep(0)
    shelf.open.set()
    assert await asyncio.gather(*asked) == [1, 1, 1]
    assert await other == 2
    assert await reads.get("a", shelf.read) == 1


async def test_nobody_who_asks_after_a_change_is_answered_from_before_it() -> None:
    shelf, reads = Shelf(), SharedReads[str, int](seconds=60.0)
    early = asyncio.create_task(reads.get("a", shelf.read))
    await asyncio.sleep(0)
    reads.forget("a")
    late = asyncio.create_task(reads.get("a", shelf.read))
    await asyncio.sleep(0)
    shelf.open.set()
    assert (await early, await late) == (1, 2)
    assert await reads.get("a", shelf.read) == 2  # the early read's end did not take the late one's place
    reads.forget("a")
    assert await reads.get("a", shelf.read) == 3


async def test_what_was_read_is_not_kept_for_longer() -> None:
    shelf, reads = Shelf(), SharedReads[str, int](seconds=0.0)
    shelf.open.set()
    assert await reads.get("a", shelf.read) == 1
    await asyncio.sleep(0.01)
    assert await reads.get("a", shelf.read) == 2


async def test_a_failure_is_told_to_all_who_wait_and_to_nobody_after() -> None:
    reads = SharedReads[str, int](seconds=60.0)
    begun = 0

    async def fail() -> int:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0)
        raise LookupError(str(begun))

    outcomes = await asyncio.gather(*(reads.get("a", fail) for _ in range(2)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["1", "1"]
    with pytest.raises(LookupError, match="2"):
        await reads.get("a", fail)


async def test_who_gives_up_waiting_does_not_end_it_for_the_others() -> None:
    shelf, reads = Shelf(), SharedReads[str, int](seconds=60.0)
    first, second = (asyncio.create_task(reads.get("a", shelf.read)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    shelf.open.set()
    assert await second == 1
    assert first.cancelled()
