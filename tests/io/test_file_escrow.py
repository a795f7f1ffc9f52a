"""An answer in escrow counts when it is whole, and as it was kept; otherwise nobody believes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyferry.io.file_escrow import DIRECTORY, FileEscrow
from keyferry.io.threads import Threads
from keyferry.model import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANSWER = HttpResponse(200, {"content-type": "application/json"}, b'{"access_token":"first"}')


@pytest.fixture
def escrow(tmp_path: Path) -> Iterator[FileEscrow]:
    with Threads(2, name="test") as threads:
        yield FileEscrow(tmp_path, threads)


def kept(escrow: FileEscrow, answer: HttpResponse) -> None:
    async def keep() -> None:
        await escrow.reserve("attempt")
        await escrow.keep("attempt", answer)

    asyncio.run(keep())


def kept_file(escrow: FileEscrow, root: Path) -> tuple[Path, bytes]:
    """Keep an answer; return its file, and what of it is the answer and not the space that was set aside."""
    kept(escrow, ANSWER)
    path = root / DIRECTORY / "attempt"
    return path, path.read_bytes().rstrip(b"\0")


def recalled(escrow: FileEscrow) -> HttpResponse | None:
    return asyncio.run(escrow.recall("attempt"))


def test_what_was_kept_is_recalled(escrow: FileEscrow) -> None:
    kept(escrow, ANSWER)
    assert recalled(escrow) == ANSWER


def test_space_that_was_set_aside_is_no_answer(escrow: FileEscrow) -> None:
    asyncio.run(escrow.reserve("attempt"))
    assert recalled(escrow) is None


def test_an_answer_with_any_byte_changed_is_no_answer(escrow: FileEscrow, tmp_path: Path) -> None:
    path, whole = kept_file(escrow, tmp_path)
    for place in range(len(whole)):
        # The lowest bit alone: most of these are as good JSON, and as good base64, as what was kept.
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert recalled(escrow) is None, f"byte {place}"


def test_an_answer_that_was_cut_off_is_no_answer(escrow: FileEscrow, tmp_path: Path) -> None:
    path, whole = kept_file(escrow, tmp_path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert recalled(escrow) is None, f"{length} bytes"
