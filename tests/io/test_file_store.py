import asyncio
import contextlib
import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from keyferry.errors import Conflict, StoreError
from keyferry.io.file_store import LOCKS, SLOTS, FileStore, is_precious
from keyferry.io.state_dir import StateDir
from keyferry.model import ObjectKey, TokenSet
from keyferry.question import Account
from keyferry.record import Claim, Record
from keyferry.secret import SecretValue

KEY = ObjectKey("batch", "nightly")
PLAIN = Record(uid="u", key=KEY, origin="here", revision=1, token=TokenSet(SecretValue("at"), "Bearer", 1.0, 61.0))
PRECIOUS = replace(PLAIN, refresh_token=SecretValue("rt"), generation=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    with StateDir.open(tmp_path / "state") as state, ThreadPoolExecutor(4) as executor:
        yield FileStore(state, executor)


def place(tmp_path: Path) -> Path:
    return tmp_path / "state" / "records" / "batch" / "nightly.json"


@pytest.mark.parametrize("record", [PLAIN, PRECIOUS])
async def test_a_record_is_read_back_and_replaced_only_by_who_saw_the_last_version(
    store: FileStore, record: Record
) -> None:
    assert await store.read(KEY, PLAIN.uid) is None
    first = await store.create(record)
    assert await store.read(KEY, PLAIN.uid) == first
    second = await store.replace(first, replace(record, revision=2))
    assert (await store.read(KEY, PLAIN.uid)) == second
    with pytest.raises(Conflict):
        await store.replace(first, record)
    with pytest.raises(Conflict):
        await store.create(record)
    assert [held async for held in store.records()] == [second]


async def test_another_process_at_the_same_record_is_waited_for(store: FileStore, tmp_path: Path) -> None:
    held = await store.create(PRECIOUS)
    with contextlib.ExitStack() as others:
        for slot in range(SLOTS):
            lock = others.enter_context((tmp_path / "state" / LOCKS / str(slot)).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        writing = asyncio.create_task(store.replace(held, PRECIOUS))
        assert not (await asyncio.wait([writing], timeout=0.5))[0]
    await writing


async def test_an_order_to_revoke_outlives_the_record(store: FileStore) -> None:
    held = await store.create(PRECIOUS)
    await store.bury(held)
    assert await store.read(KEY, PLAIN.uid) is None
    orders = [order async for order in store.buried()]
    assert [order.record for order in orders] == [PRECIOUS]
    await store.settle(orders[0])
    assert not [order async for order in store.buried()]


async def test_a_record_that_moved_on_is_not_buried(store: FileStore) -> None:
    held = await store.create(PRECIOUS)
    await store.replace(held, replace(PRECIOUS, generation=2))
    with pytest.raises(Conflict):
        await store.bury(held)


async def test_a_seed_belongs_to_who_came_first(store: FileStore) -> None:
    assert await store.tombstone("digest", "first") == "first"
    assert await store.tombstone("digest", "second") == "first"
    assert await store.tombstone("digest", "first") == "first"


async def test_an_empty_file_is_a_record_that_the_power_took(store: FileStore, tmp_path: Path) -> None:
    await store.create(PLAIN)
    place(tmp_path).write_bytes(b"")
    assert await store.read(KEY, PLAIN.uid) is None
    assert not [held async for held in store.records()]
    assert (await store.create(PLAIN)).record == PLAIN


async def test_a_damaged_record_is_told_of_by_name_and_not_by_content(store: FileStore, tmp_path: Path) -> None:
    await store.create(PRECIOUS)
    place(tmp_path).write_bytes(place(tmp_path).read_bytes()[:-9])
    with pytest.raises(StoreError) as caught:
        await store.read(KEY, PLAIN.uid)
    assert str(place(tmp_path)) in str(caught.value)
    assert "rt" not in str(caught.value).replace(str(tmp_path), "").split()


@pytest.mark.parametrize(
    ("record", "precious"),
    [
        (PLAIN, False),
        (PRECIOUS, True),
        (replace(PLAIN, seed="digest"), True),
        (replace(PLAIN, api_keys=("0123abcd",)), True),
        (replace(PLAIN, claim=Claim("digest", "attempt", 1, "holder", 1.0, 10.0)), True),
        (replace(PLAIN, wrong_subject=True), True),
        (replace(PLAIN, authorized_as=Account("ada")), True),
    ],
)
def test_only_what_can_be_had_again_is_not_synced(record: Record, *, precious: bool) -> None:
    assert is_precious(record) is precious
