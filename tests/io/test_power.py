"""What is on the disk when the power goes: content before its name, and the name before anybody hears of it."""

from __future__ import annotations

import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.io.file_escrow import DIRECTORY, FileEscrow
from keyferry.io.file_store import FileStore
from keyferry.io.state_dir import StateDir
from keyferry.model import HttpResponse, ObjectKey, TokenSet
from keyferry.record import Claim, Record
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN = Record(
    uid="u",
    key=ObjectKey("batch", "nightly"),
    origin="here",
    revision=1,
    token=TokenSet(SecretValue("at"), "Bearer", 1.0, 61.0),
)
CLAIM = Claim("digest", "attempt", 1, "me", 1.0, 10.0)
ANSWER = HttpResponse(200, {"content-type": "application/json"}, b'{"access_token": "at"}' * 20_000)


class Disk:
    """Knows which writes the kernel may still hold back, by the calls that are made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unwritten: set[str] = set()
        """Files of which some content may not be on the disk."""
        self.unnamed: set[str] = set()
        """Names that may not be on the disk, or not yet with what they were given to."""
        for name, note in {"write": self._wrote, "pwrite": self._wrote, "fsync": self._synced}.items():
            monkeypatch.setattr(os, name, _noting(getattr(os, name), note))
        monkeypatch.setattr(os, "rename", self._renaming(os.rename))
        monkeypatch.setattr(os, "replace", self._renaming(os.replace))

    def keeps(self, path: Path) -> bool:
        """Tell whether a file is there after a cut as it is now."""
        return str(path.resolve(strict=True)) not in self.unwritten | self.unnamed

    def _wrote(self, descriptor: int) -> None:
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_SYNC:
            self.unwritten.add(_path(descriptor))

    def _synced(self, descriptor: int) -> None:
        path = _path(descriptor)
        self.unwritten.discard(path)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.unnamed = {name for name in self.unnamed if str(Path(name).parent) != path}

    def _renaming(self, rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: str, target: str, **where: int) -> None:
            old, new = (
                str(Path(_path(where[key]) if where.get(key) is not None else "/", name))
                for key, name in (("src_dir_fd", source), ("dst_dir_fd", target))
            )
            rename(source, target, **where)
            self.unnamed.add(new)
            self.unwritten.discard(new)
            if old in self.unwritten:  # the name may come first, and then there is nothing behind it
                self.unwritten = (self.unwritten - {old}) | {new}

        return renamed


def _noting(call: Callable[..., Any], note: Callable[[int], None]) -> Callable[..., Any]:
    def noted(descriptor: int, *arguments: Any) -> Any:
        result = call(descriptor, *arguments)
        note(descriptor)
        return result

    return noted


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir.open(tmp_path / "state") as state:
        yield state


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(replace(PLAIN, refresh_token=SecretValue("rt")), id="a refresh token"),
        pytest.param(replace(PLAIN, claim=CLAIM), id="a claim"),
        pytest.param(replace(PLAIN, wrong_subject=True), id="somebody else's login"),
    ],
)
async def test_what_cannot_be_had_again_is_on_the_disk_before_it_counts(
    state: StateDir, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    disk, store = Disk(monkeypatch), FileStore(state, executor)
    place = state.path / "records" / "batch" / "nightly.json"
    held = await store.create(record)
    assert disk.keeps(place)
    held = await store.replace(held, replace(record, generation=2))
    assert disk.keeps(place)
    await store.bury(held)
    assert disk.keeps(state.path / "gone" / "u.json")


async def test_a_token_that_is_simply_asked_for_again_waits_for_no_disk(
    state: StateDir, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    await FileStore(state, executor).create(PLAIN)
    assert not disk.keeps(state.path / "records" / "batch" / "nightly.json")


async def test_a_seed_is_known_as_sent_before_it_is(
    state: StateDir, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    await FileStore(state, executor).tombstone("digest", "u")
    assert disk.keeps(state.path / "seeds" / "digest")


async def test_an_answer_is_on_the_disk_before_it_is_used(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, escrow = Disk(monkeypatch), FileEscrow(tmp_path, executor)
    await escrow.reserve("attempt")
    await escrow.keep("attempt", ANSWER)
    assert disk.keeps(tmp_path / DIRECTORY / "attempt")
    assert await escrow.recall("attempt") is not None
