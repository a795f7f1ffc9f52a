"""The private state as files: one record a file, replaced whole, compared and swapped under a lock.

The state directory's own lock keeps other brokers out; the lock here keeps the threads of this one apart, and a second
process that got in all the same (a network file system without working locks) from overwriting unseen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import Conflict, PublishError, StoreError, StoreUnavailable
from keyferry.io.disk_errors import Translated
from keyferry.io.files import OPEN_NEW, Folder, read_at_most, temporary_name, write_all
from keyferry.io.state_dir import unavailable
from keyferry.io.threads import in_thread
from keyferry.record import Record, Versioned
from keyferry.record_json import dumps, loads, version_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from collections.abc import Set as AbstractSet
    from concurrent.futures import Executor
    from typing import TypeVar

    from keyferry.io.state_dir import StateDir
    from keyferry.model import ObjectKey

    T = TypeVar("T")

RECORDS: Final = "records"
GONE: Final = "gone"
SEEDS: Final = "seeds"
RECORD_LIMIT: Final = 4 << 20
VERSION_LIMIT: Final = 64
"""Bytes at the beginning of a record that hold its version."""
BATCH: Final = 200
"""Records read in one visit of a thread."""

LOCKS: Final = "locks"
SLOTS: Final = 32
"""Locks that the records share by their names."""


@final
class FileStore:
    """Implements ``keyferry.store.Store`` over a state directory."""

    def __init__(self, state: StateDir, executor: Executor) -> None:
        self.origin = state.origin
        self.digest_key = state.digest_key
        self._state = state
        self._root = state.path
        self._executor = executor
        self._locks = tuple(Lock() for _ in range(SLOTS))

    async def read(self, key: ObjectKey, uid: str) -> Versioned | None:  # noqa: ARG002 - files have names only
        """Return the record as it is on the disk, whoever's it is: nobody but the record names an identity's uid."""
        return await self._in_thread(lambda: self._read(_path(key)))

    def forget(self, key: ObjectKey, uid: str) -> None:
        """Do nothing: whatever is asked for is read from the disk."""

    async def records(self, known: AbstractSet[str] = frozenset()) -> AsyncIterator[Versioned]:  # noqa: ARG002 - all are read
        """Yield every record; a damaged one is left out (its identity then meets it and says so)."""
        names = await self._in_thread(lambda: list(self._names(RECORDS)))
        async for versioned in self._read_many(names):
            yield versioned

    async def create(self, record: Record) -> Versioned:
        """Write the first version."""
        return await self._in_thread(lambda: self._write(_path(record.key), None, record))

    async def replace(self, held: Versioned, record: Record) -> Versioned:
        """Write the next version over the one that ``held`` names."""
        return await self._in_thread(lambda: self._write(_path(record.key), held, record))

    async def bury(self, held: Versioned) -> None:
        """Move the record to the orders to revoke."""

        def move() -> None:
            self._compare(_path(held.record.key), self._version(_path(held.record.key)), held)
            self._write(f"{GONE}/{held.record.uid}.json", None, held.record, overwrite=True)
            self._remove(_path(held.record.key), held)

        await self._in_thread(move)

    async def buried(self) -> AsyncIterator[Versioned]:
        """Yield the orders to revoke."""
        names = await self._in_thread(lambda: list(self._names(GONE)))
        async for versioned in self._read_many(names):
            yield versioned

    async def settle(self, held: Versioned) -> None:
        """Forget an order to revoke."""
        await self._in_thread(lambda: self._remove(f"{GONE}/{held.record.uid}.json", held))

    async def user_of(self, digest: str) -> str:
        """Read whose the tombstone is, where there is one."""

        def look() -> str:
            with self._folder() as folder:
                return (folder.read(f"{SEEDS}/{digest}") or b"").decode("ascii", "replace")

        return await self._in_thread(look)

    async def tombstone(self, digest: str, uid: str) -> str:
        """Create the tombstone, or read whose it is."""

        def bury() -> str:
            with self._exclusive(digest), self._folder() as folder:
                there = folder.read(f"{SEEDS}/{digest}")
                if there is not None:
                    return there.decode("ascii", "replace")
                folder.write(f"{SEEDS}/{digest}", uid.encode())
                with folder.subfolder(SEEDS) as seeds:
                    seeds.sync()
                return uid

        return await self._in_thread(bury)

    def holder_is_gone(self, holder: str) -> bool:
        """Every holder but this process is: the state directory's lock would not have been free otherwise."""
        return holder != self._state.holder

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(self._executor, work)
        except PublishError as error:
            raise StoreUnavailable(error.message) from error
        except OSError as error:
            raise unavailable("use", self._root, error) from error

    async def _read_many(self, names: list[str]) -> AsyncIterator[Versioned]:
        for start in range(0, len(names), BATCH):
            part = names[start : start + BATCH]
            for versioned in await self._in_thread(lambda part=part: list(self._readable(part))):  # type: ignore[misc]
                yield versioned

    def _readable(self, names: list[str]) -> Iterator[Versioned]:
        for name in names:
            with contextlib.suppress(StoreError):
                versioned = self._read(name)
                if versioned is not None:
                    yield versioned

    def _names(self, top: str) -> Iterator[str]:
        base = self._root / top
        for directory, _, files in os.walk(base):
            relative = Path(directory).relative_to(self._root).as_posix()
            yield from (f"{relative}/{name}" for name in files if name.endswith(".json") and not name.startswith("."))

    def _read(self, name: str) -> Versioned | None:
        data = self._content(name, RECORD_LIMIT)
        if data is None:
            return None
        try:
            record, version = loads(data)
        except StoreError as error:
            raise StoreError(
                f"{self._root / name}: {error.message}. Nothing was sent. Restore the file from a backup, or move it"
                " away to start over."
            ) from None
        return Versioned(record, str(version))

    def _content(self, name: str, limit: int) -> bytes | None:
        """Return the beginning of a file, at most ``limit`` bytes; None where it is empty or not there.

        An empty one is a record that was not synced, for it held nothing that could not be had again, when the power
        went.
        """
        try:
            descriptor = os.open(f"{self._root}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return read_at_most(descriptor, min(limit, os.fstat(descriptor).st_size)) or None
        finally:
            os.close(descriptor)

    def _version(self, name: str) -> str | None:
        """Return which version of a record is stored."""
        head = self._content(name, VERSION_LIMIT)
        if head is None:
            return None
        version = version_of(head)
        if version is not None:
            return str(version)
        held = self._read(name)  # which says what is wrong with it
        return held.version if held is not None else None

    def _write(self, name: str, held: Versioned | None, record: Record, *, overwrite: bool = False) -> Versioned:
        """Write a record, durably where it holds what cannot be had again; an order to revoke always is."""
        durable = overwrite or is_precious(record)
        with self._exclusive(name):
            self._compare(name, None if overwrite else self._version(name), held)
            version = 1 if held is None else int(held.version) + 1
            if durable:
                self._put_durably(name, dumps(record, version))
            else:
                self._put(name, dumps(record, version))
        return Versioned(record, str(version))

    def _put_durably(self, name: str, data: bytes) -> None:
        directory, _, file = name.rpartition("/")
        with self._opened(directory) as folder:
            folder.write(file, data)
            folder.sync()

    def _put(self, name: str, data: bytes) -> None:
        """Replace a file whole, without a sync, in as few calls as it takes: each has the thread wait for the loop."""
        place = f"{self._root}/{name}"
        temporary = f"{place.rpartition('/')[0]}/{temporary_name()}"
        with Translated("write", self._root, name, kept="What was there before stays as it was."):
            try:
                descriptor = os.open(temporary, OPEN_NEW, 0o600)
            except FileNotFoundError:  # the first of its namespace
                Folder.open(self._root, name.rpartition("/")[0]).close()
                descriptor = os.open(temporary, OPEN_NEW, 0o600)
            try:
                try:
                    write_all(descriptor, data)
                finally:
                    os.close(descriptor)
                os.rename(temporary, place)  # noqa: PTH104 - no path object for each record
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
                raise

    def _remove(self, name: str, held: Versioned) -> None:
        with self._exclusive(name):
            current = self._read(name)
            if current is None:
                return
            if current.record.uid != held.record.uid:
                raise Conflict(f"{self._root / name} belongs to another identity by now")
            with self._folder() as folder:
                folder.remove(name)

    def _compare(self, name: str, found: str | None, held: Versioned | None) -> None:
        if found != (held.version if held is not None else None):
            raise Conflict(f"{self._root / name} was written by somebody else meanwhile")

    def _folder(self) -> Folder:
        return Folder.open(self._root)

    def _opened(self, directory: str) -> Folder:
        """Open a directory by its whole path: the state directory is nobody's but ours, so no link leads elsewhere."""
        try:
            return Folder.open(Path(f"{self._root}/{directory}"), create=False)
        except FileNotFoundError:
            return Folder.open(self._root, directory)

    @contextlib.contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        """Hold the lock that ``name`` falls under: against our own threads, and against another process."""
        slot = zlib.crc32(name.encode()) % SLOTS
        with self._locks[slot]:
            descriptor = _open_lock(f"{self._root}/{LOCKS}/{slot}")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def is_precious(record: Record) -> bool:
    """Tell whether a record holds more than a token that is simply asked for again when it is lost."""
    return (
        record.refresh_token is not None
        or record.previous is not None
        or record.claim is not None
        or bool(record.seed)
        or bool(record.api_keys)
        or record.wrong_subject
        or record.authorized_as is not None
    )


def _open_lock(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        Folder.open(Path(path).parent).close()
        return os.open(path, flags, 0o600)


def _path(key: ObjectKey) -> str:
    return f"{RECORDS}/{key.namespace}/{key.name}.json"
