"""What a killed process left in its escrow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from keyferry.io.file_escrow import FileEscrow
from keyferry.model import HttpResponse
from keyferry_operator.rescue import rescue
from tests.support.memory_store import MemoryEscrow

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

ANSWER = HttpResponse(200, {}, b"{}")


async def test_what_is_wanted_stays_until_it_is_committed_and_the_rest_is_forgotten() -> None:
    escrow = MemoryEscrow()
    await escrow.reserve("never-answered")
    for attempt_id in ("committed", "not-yet", "of-a-claim-that-is-over"):
        await escrow.keep(attempt_id, ANSWER)
    asked: list[Collection[str]] = []

    async def commit(attempt_ids: Collection[str]) -> Collection[str]:
        asked.append(frozenset(attempt_ids))
        await escrow.release("committed")
        return {"committed", "not-yet"}

    await rescue(escrow, commit)
    assert asked == [{"committed", "not-yet", "of-a-claim-that-is-over"}]
    assert escrow.answers == {"not-yet": ANSWER}


async def test_nothing_is_read_where_there_is_no_answer(tmp_path: Path) -> None:
    async def commit(_: Collection[str]) -> Collection[str]:
        raise AssertionError("there is nothing to commit")

    with ThreadPoolExecutor(1) as executor:
        escrow = FileEscrow(tmp_path / "state", executor)
        assert await escrow.attempts() == frozenset()
        await rescue(escrow, commit)
        await escrow.reserve("never-answered")
        assert await escrow.attempts() == {"never-answered"}
        await rescue(escrow, commit)
        assert await escrow.attempts() == frozenset()
