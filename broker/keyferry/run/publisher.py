"""Token files under ``OUT/<namespace>/<identity>/``: published whole, observed cheaply, withdrawn without a trace.

Beside the files lies a record, ``.keyferry.json``. It names them and says of which identity and revision they are, and
is signed with a key of the private state, so that an edited or copied record is noticed. It holds no token. The record
always names at least the files that are there: it is written before the first of them and corrected after the last,
so that a process killed in between never mistakes its own files for somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import stat
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, final

from keyferry.errors import PublishError, Reason, RetryClass
from keyferry.io.files import TEMPORARY_PREFIX, Folder, split_relative, subfolders, sweep_temporaries
from keyferry.model import ObjectKey
from keyferry.publication import Publication, Published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

RECORD_NAME: Final = ".keyferry.json"
"""The record's file name in an identity's directory."""

_VERSION: Final = 1
_LOCKS: Final = 64

_T = TypeVar("_T")


class _Entry(NamedTuple):
    """One file as it was written: by the first three it is known unchanged at a glance, by the digest for certain."""

    size: int
    mtime_ns: int
    inode: int
    digest: str


class _About(NamedTuple):
    """What a record says of the publication as a whole."""

    uid: str
    revision: int
    generation: int
    issued_at: float
    expires_at: float
    spec_hash: str
    files_hash: str


class _Record(NamedTuple):
    """The record as read."""

    about: _About | None
    """None where the file is not a record at all."""
    files: dict[str, _Entry | None]
    """None stands at a file that a publication had yet to write."""
    genuine: bool
    """Signed by us, for this very place."""


@final
class FilePublisher:
    """Publishes token files under one output directory. Its methods may be called from many threads at once.

    ``publish``, ``observe``, ``observe_all``, ``withdraw`` and ``missing`` block on the disk; their twins with a
    leading ``a`` run them in ``executor`` (default: the event loop's own). They raise ``PublishError``.
    """

    def __init__(self, out: Path, *, key: bytes, executor: Executor | None = None) -> None:
        self._out = out
        self._key = key
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

        Each file is replaced at once; files of the previous publication that are no longer named are removed. Raises
        ``PublishError``: with ``Reason.SECRET_NOT_OWNED``, before anything is written, where somebody else's file or
        record is in the way; else where the disk does not take a file: then every file is the old or the new one.
        """
        key, files = publication.key, publication.files
        _check_names(files)
        about = _about(publication)
        with self._lock(key), Folder.open(self._out, str(key)) as folder:
            old = self._read_record(folder, key)
            owned = _owned(folder, publication, old)
            entries = self._unchanged(folder, files, owned)
            done = all(entries.values())
            if not (done and old is not None and old.genuine and old.about == about and old.files == entries):
                if old is None or not old.genuine or not files.keys() <= owned.keys():
                    self._write_record(folder, key, about, {**owned, **dict.fromkeys(files)})
                for name in files:
                    if entries[name] is None:
                        entries[name] = self._write(folder, name, files[name])
                for name in owned.keys() - files.keys():
                    folder.remove(name)
                self._write_record(folder, key, about, entries)
                _sync(folder, files)
            self._names[key] = tuple(files)
        return Published(*about, names=tuple(files), intact=True)

    def observe(self, key: ObjectKey) -> Published | None:
        """Return what lies in an identity's directory, or None where there is no record of ours.

        Costs one short read and a stat for each file; a file is read only where its stat is not as recorded.
        """
        with self._lock(key):
            try:
                folder = Folder.open(self._out, str(key), create=False)
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

    def observe_all(self) -> dict[ObjectKey, Published]:
        """Return ``observe`` of every identity that has a directory; those that cannot be read are left out."""
        observed: dict[ObjectKey, Published] = {}
        for namespace in subfolders(self._out):
            for name in subfolders(self._out / namespace):
                key = ObjectKey(namespace, name)
                # Its next publication meets the same failure, and is where it belongs to be told.
                with contextlib.suppress(PublishError):
                    if (published := self.observe(key)) is not None:
                        observed[key] = published
        return observed

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
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def _lock(self, key: ObjectKey) -> threading.Lock:
        return self._locks[hash(key) % _LOCKS]

    def _digest(self, purpose: bytes, data: bytes) -> str:
        return hmac.digest(self._key, b"keyferry %b\0%b" % (purpose, data), "sha256").hex()

    def _write(self, folder: Folder, name: str, data: bytes) -> _Entry:
        status = folder.write(name, data)
        return _Entry(status.st_size, status.st_mtime_ns, status.st_ino, self._digest(b"file", data))

    def _unchanged(
        self, folder: Folder, files: Mapping[str, bytes], owned: Mapping[str, _Entry | None]
    ) -> dict[str, _Entry | None]:
        """Return the entry of every file that already lies there with this content, and None for the others."""
        entries: dict[str, _Entry | None] = {}
        for name, data in files.items():
            entry = owned.get(name)
            same = entry is not None and hmac.compare_digest(entry.digest, self._digest(b"file", data))
            entries[name] = self._current(folder, name, entry) if same and entry is not None else None
        return entries

    def _current(self, folder: Folder, name: str, entry: _Entry) -> _Entry | None:
        """Return the entry as the file is now, where its content is still what was written; else None."""
        status = folder.status(name)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return None
        if (status.st_mtime_ns, status.st_ino) == (entry.mtime_ns, entry.inode):
            return entry
        data = folder.read(name, limit=entry.size)
        if data is None or not hmac.compare_digest(self._digest(b"file", data), entry.digest):
            return None
        return entry._replace(mtime_ns=status.st_mtime_ns, inode=status.st_ino)

    def _write_record(self, folder: Folder, key: ObjectKey, about: _About, files: Mapping[str, _Entry | None]) -> None:
        body = {
            "version": _VERSION,
            "namespace": key.namespace,
            "name": key.name,
            **about._asdict(),
            "files": {name: entry and entry._asdict() for name, entry in files.items()},
        }
        record = {"record": body, "signature": self._digest(b"record", _canonical(body))}
        folder.write(RECORD_NAME, json.dumps(record, indent=1).encode() + b"\n")

    def _read_record(self, folder: Folder, key: ObjectKey) -> _Record | None:
        data = folder.read(RECORD_NAME)
        if data is None:
            return None
        try:
            content = json.loads(data)
            body, signature = content["record"], str(content["signature"])
            about = _About(
                str(body["uid"]),
                int(body["revision"]),
                int(body["generation"]),
                float(body["issued_at"]),
                float(body["expires_at"]),
                str(body["spec_hash"]),
                str(body["files_hash"]),
            )
            files = {str(name): _entry(entry) for name, entry in body["files"].items()}
            here = (body["version"], body["namespace"], body["name"]) == (_VERSION, key.namespace, key.name)
            expected = self._digest(b"record", _canonical(body))
            genuine = here and hmac.compare_digest(expected.encode(), signature.encode())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return _Record(None, {}, genuine=False)
        return _Record(about, files, genuine)


def _about(publication: Publication) -> _About:
    return _About(
        publication.uid,
        publication.revision,
        publication.generation,
        publication.issued_at,
        publication.expires_at,
        publication.spec_hash,
        publication.files_hash,
    )


def _entry(fields: dict[str, Any] | None) -> _Entry | None:
    if fields is None:
        return None
    return _Entry(int(fields["size"]), int(fields["mtime_ns"]), int(fields["inode"]), str(fields["digest"]))


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


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


def _owned(folder: Folder, publication: Publication, old: _Record | None) -> dict[str, _Entry | None]:
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
