"""Token files under ``OUT/<namespace>/<identity>/``: published whole, observed cheaply, withdrawn without a trace.

Beside the files lies a record, ``.keyferry.json``. It names them and says of which identity and revision they are, and
is signed with a key of the private state, so that an edited or copied record is noticed. It holds no token. The record
always names at least the files that are there, so that a process killed half-way never mistakes its own files for
somebody else's: a first publication appears with its record at once, and a later one writes the record before the
first changed file and again after the last.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
import threading
from typing import TYPE_CHECKING, Final, TypeVar, final

from keyferry.errors import PublishError, Reason, RetryClass
from keyferry.io.files import TEMPORARY_PREFIX, Folder, split_relative, subfolders
from keyferry.io.leftovers import sweep_temporaries
from keyferry.io.new_folder import new_folder
from keyferry.io.threads import in_thread
from keyferry.model import ObjectKey
from keyferry.publication import Publication, Published
from keyferry.run.publication_record import RECORD_NAME, About, FileEntry, PublicationRecord, Seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

_LOCKS: Final = 64

_T = TypeVar("_T")


@final
class FilePublisher:
    """Publishes token files under one output directory. Its methods may be called from many threads at once.

    ``publish``, ``observe``, ``observe_all``, ``withdraw`` and ``missing`` block on the disk; their twins with a
    leading ``a`` run them in ``executor`` (default: the event loop's own). They raise ``PublishError``.
    """

    def __init__(self, out: Path, *, key: bytes, executor: Executor | None = None) -> None:
        self._out = out
        self._seal = Seal(key)
        self._executor = executor
        # A cancelled ``apublish`` leaves its thread at work: a lock keeps the next one for the identity apart from it.
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))
        self._names: dict[ObjectKey, tuple[str, ...]] = {}

    def directory(self, key: ObjectKey) -> Path:
        """Return the directory of an identity, whether it exists or not."""
        return self._out / key.namespace / key.name

    def prepare(self) -> int:
        """Create the output directory and remove what killed processes left half-written; return how many files."""
        Folder.open(self._out).close()
        return sweep_temporaries(self._out)

    def publish(self, publication: Publication) -> Published:
        """Make the directory be as ``publication`` says, and return that; write only what differs.

        A directory that is new appears with all its files at once; in one that is there, each file is replaced at
        once. Files of the previous publication that are no longer named are removed. Raises
        ``PublishError``: with ``Reason.SECRET_NOT_OWNED``, before anything is written, where somebody else's file or
        record is in the way; else where the disk does not take a file: then every file is the old or the new one.
        """
        key, files = publication.key, publication.files
        _check_names(files)
        about = About.of(publication)
        with self._lock(key), Folder.open(self._out, key.namespace) as namespace:
            if not self._create(namespace, publication, about):
                with namespace.subfolder(key.name) as folder:
                    self._update(folder, publication, about)
            self._names[key] = tuple(files)
        return Published(*about, names=tuple(files), intact=True)

    def _create(self, namespace: Folder, publication: Publication, about: About) -> bool:
        """Publish a directory that was not there, whole and at once; False where something is there already."""
        key, files = publication.key, publication.files
        if namespace.status(key.name) is not None:
            return False
        try:
            with new_folder(namespace, key.name) as folder:
                entries = {name: self._seal.entry(folder.create(name, data), data) for name, data in files.items()}
                folder.create(RECORD_NAME, self._seal.write(key, about, entries))
                _sync(folder, files)
        except FileExistsError:
            return False
        namespace.sync()
        return True

    def _update(self, folder: Folder, publication: Publication, about: About) -> None:
        """Make a directory that is there be as the publication says."""
        key, files = publication.key, publication.files
        old = self._read_record(folder, key)
        owned = _owned(folder, publication, old)
        entries = self._unchanged(folder, files, owned)
        done = all(entries.values())
        if done and old is not None and old.genuine and old.about == about and old.files == entries:
            return
        if old is None or not old.genuine or not files.keys() <= owned.keys():
            folder.write(RECORD_NAME, self._seal.write(key, about, {**owned, **dict.fromkeys(files)}))
        for name in files:
            if entries[name] is None:
                entries[name] = self._seal.entry(folder.write(name, files[name]), files[name])
        for name in owned.keys() - files.keys():
            folder.remove(name)
        folder.write(RECORD_NAME, self._seal.write(key, about, entries))
        _sync(folder, files)

    def observe(self, key: ObjectKey) -> Published | None:
        """Return what lies in an identity's directory, or None where there is no record of ours.

        Costs one short read and a stat for each file; a file is read only where its stat is not as recorded.
        """
        if not os.path.lexists(f"{self._out}/{key}"):  # before the first token: cheaper than to open what is above it
            return None
        try:
            with Folder.open(self._out, key.namespace, create=False) as namespace:
                return self._observe(namespace, key)
        except FileNotFoundError:
            return None

    def observe_many(self, keys: Iterable[ObjectKey]) -> dict[ObjectKey, Published | None]:
        """Return ``observe`` of each of ``keys``; those that cannot be read are left out.

        Their next publication meets the same failure, and is where it belongs to be told.
        """
        observed: dict[ObjectKey, Published | None] = {}
        for name, group in itertools.groupby(keys, key=lambda key: key.namespace):
            together = list(group)
            try:
                with Folder.open(self._out, name, create=False) as namespace:
                    for key in together:
                        with contextlib.suppress(PublishError):
                            observed[key] = self._observe(namespace, key)
            except FileNotFoundError:
                observed.update(dict.fromkeys(together))
            except PublishError:
                continue
        return observed

    def observe_all(self) -> dict[ObjectKey, Published]:
        """Return ``observe`` of every identity that has a directory; those that cannot be read are left out."""
        folders = [(namespace, subfolders(self._out / namespace)) for namespace in subfolders(self._out)]
        keys = [ObjectKey(namespace, name) for namespace, names in folders for name in names]
        return {key: published for key, published in self.observe_many(keys).items() if published is not None}

    def withdraw(self, key: ObjectKey) -> None:
        """Remove the files that the record names, the record, and the directory if it is empty then.

        Nothing happens where nothing is published. Raises ``PublishError`` with ``Reason.SECRET_NOT_OWNED``, and
        removes nothing, where the record is not ours or was edited.
        """
        with self._lock(key):
            self._names.pop(key, None)
            try:
                folder = Folder.open(self._out, str(key), create=False)
            except FileNotFoundError:
                return
            with folder:
                record = self._read_record(folder, key)
                if record is None:
                    return
                if not record.genuine:
                    raise _foreign(
                        folder.path / RECORD_NAME,
                        "so nothing in its directory was removed",
                        "If its files are no longer needed, remove the directory by hand.",
                    )
                for name in record.files:
                    folder.remove(name)
                folder.remove(RECORD_NAME)
            with Folder.open(self._out, key.namespace) as namespace:
                namespace.remove_folder(key.name)

    def missing(self, key: ObjectKey) -> bool:
        """Tell whether a file that was published is gone: as when a Tiled client deletes the token that it gave up on.

        Looks only whether the files exist, so that it may be asked every second. False where nothing is published.
        """
        names = self._names.get(key)
        if names is None:
            published = self.observe(key)
            return published is not None and not published.intact
        directory = self.directory(key)
        return not all(os.path.lexists(directory / name) for name in names)

    async def apublish(self, publication: Publication) -> Published:
        """Run ``publish`` in the executor."""
        return await self._run(self.publish, publication)

    async def aobserve(self, key: ObjectKey) -> Published | None:
        """Run ``observe`` in the executor."""
        return await self._run(self.observe, key)

    async def aobserve_many(self, keys: Iterable[ObjectKey]) -> dict[ObjectKey, Published | None]:
        """Run ``observe_many`` in the executor."""
        return await self._run(self.observe_many, list(keys))

    async def aobserve_all(self) -> dict[ObjectKey, Published]:
        """Run ``observe_all`` in the executor."""
        return await self._run(self.observe_all)

    async def awithdraw(self, key: ObjectKey) -> None:
        """Run ``withdraw`` in the executor."""
        await self._run(self.withdraw, key)

    async def amissing(self, keys: Iterable[ObjectKey]) -> list[ObjectKey]:
        """Return those of ``keys`` that are ``missing`` something, asked in the executor all in one go."""
        asked = list(keys)
        return await self._run(lambda: [key for key in asked if self.missing(key)])

    async def _run(self, function: Callable[..., _T], *arguments: object) -> _T:
        return await in_thread(self._executor, functools.partial(function, *arguments))

    def _observe(self, namespace: Folder, key: ObjectKey) -> Published | None:
        with self._lock(key):
            try:
                folder = namespace.subfolder(key.name, create=False)
            except FileNotFoundError:
                return None
            with folder:
                record = self._read_record(folder, key)
                if record is None or record.about is None:
                    return None
                intact = record.genuine and all(
                    entry is not None and self._current(folder, name, entry) is not None
                    for name, entry in record.files.items()
                )
            if record.genuine:
                self._names[key] = tuple(record.files)
            return Published(*record.about, names=tuple(record.files), intact=intact)

    def _lock(self, key: ObjectKey) -> threading.Lock:
        return self._locks[hash(key) % _LOCKS]

    def _unchanged(
        self, folder: Folder, files: Mapping[str, bytes], owned: Mapping[str, FileEntry | None]
    ) -> dict[str, FileEntry | None]:
        """Return the entry of every file that already lies there with this content, and None for the others."""
        entries: dict[str, FileEntry | None] = {}
        for name, data in files.items():
            entry = owned.get(name)
            same = entry is not None and self._seal.matches(entry, data)
            entries[name] = self._current(folder, name, entry) if same and entry is not None else None
        return entries

    def _current(self, folder: Folder, name: str, entry: FileEntry) -> FileEntry | None:
        """Return the entry as the file is now, where its content is still what was written; else None."""
        status = folder.status(name)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return None
        if (status.st_mtime_ns, status.st_ino) == (entry.mtime_ns, entry.inode):
            return entry
        data = folder.read(name, limit=entry.size)
        if data is None or not self._seal.matches(entry, data):
            return None
        return entry._replace(mtime_ns=status.st_mtime_ns, inode=status.st_ino)

    def _read_record(self, folder: Folder, key: ObjectKey) -> PublicationRecord | None:
        data = folder.read(RECORD_NAME)
        return None if data is None else self._seal.read(key, data)


def _check_names(files: Mapping[str, bytes]) -> None:
    for name in files:
        parts = split_relative(name)
        if parts[0] == RECORD_NAME or any(part.startswith(TEMPORARY_PREFIX) for part in parts):
            raise PublishError(
                f"The file name {name!r} is kept for Keyferry itself, so nothing was written."
                " Choose another name in spec.target.files.",
                reason=Reason.INVALID_SPEC,
                retry=RetryClass.NEEDS_CONFIGURATION,
            )


def _owned(folder: Folder, publication: Publication, old: PublicationRecord | None) -> dict[str, FileEntry | None]:
    """Return the files there that are ours, by name; raise ``PublishError`` where somebody else's are in the way.

    A genuine record is ours whatever its uid: the identity was created anew. One that is not is believed nothing but
    that it is of the same identity: then the files of the same names are ours, and are all written afresh.
    """
    if old is not None and old.genuine:
        owned = old.files
    elif old is not None and old.about is not None and old.about.uid == publication.uid:
        return dict.fromkeys(publication.files)
    elif old is not None:
        raise _foreign(folder.path / RECORD_NAME, "so nothing was written there", _HOW_TO_GO_ON)
    else:
        owned = {}
    for name in publication.files.keys() - owned.keys():
        if folder.status(name) is not None:
            raise _foreign(folder.path / name, "so it was left as it is and nothing was written", _HOW_TO_GO_ON)
    return owned


_HOW_TO_GO_ON: Final = (
    "Move it away, or choose another output directory or file name, and run `keyferry renew` for this identity."
)


def _foreign(path: Path, consequence: str, advice: str) -> PublishError:
    return PublishError(
        f"{path} was not written by this Keyferry (its state directory knows nothing of it), {consequence}. {advice}",
        reason=Reason.SECRET_NOT_OWNED,
        retry=RetryClass.NEEDS_CONFIGURATION,
    )


def _sync(folder: Folder, names: Iterable[str]) -> None:
    for above in sorted({name.rpartition("/")[0] for name in names} - {""}):
        with folder.subfolder(above) as nested:
            nested.sync()
    folder.sync()
