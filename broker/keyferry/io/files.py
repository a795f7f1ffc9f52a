"""Files that are whole or absent: written beside their place, synced, then renamed into it.

Everything below an opened ``Folder`` is reached by directory descriptors that never follow a symbolic link, so that a
link planted inside the directory leads nowhere. All calls block: run them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Final, Self, final

from keyferry.errors import PublishError, RetryClass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

TEMPORARY_PREFIX: Final = ".keyferry-tmp-"
"""How the name of every file begins that is not yet in its place."""

STALE_AFTER: Final = 60.0
"""Seconds after which a temporary file has no writer any more: writing one takes milliseconds."""

READ_LIMIT: Final = 1 << 20
"""Bytes that are read of a file unless the caller says otherwise."""

_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_TEMPORARY: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that somebody put there would wait for its writer.
_OPEN_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_EXPLANATIONS: Final[dict[int, tuple[str, str]]] = {
    errno.ENOSPC: ("the disk is full", "Free some space on that file system."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or ask for a larger quota."),
    errno.EFBIG: ("the file is larger than this process may write", "Raise its file size limit (`ulimit -f`)."),
    errno.EROFS: ("the file system is read-only", "Mount it writable, or choose another directory with --out."),
    errno.EACCES: ("permission was denied", "Make the directory writable for the user that runs Keyferry."),
    errno.EPERM: ("the operation is not permitted", "Look at the owner and the attributes of file and directory."),
    errno.EISDIR: ("a directory has that name", "Move the directory away, or choose another file name."),
    errno.ENOTDIR: (
        "a part of its path is a symbolic link or not a directory",
        "Keyferry follows no links below the output directory: move it away, or choose another directory.",
    ),
    errno.ELOOP: ("it is a symbolic link", "Keyferry follows no links below the output directory: move it away."),
    errno.ENAMETOOLONG: ("the name is too long for that file system", "Choose a shorter file name."),
    errno.EIO: ("the disk reported an input/output error", "Look at the system log for a failing disk."),
}


def explain(error: OSError, doing: str, path: Path | str, kept: str) -> PublishError:
    """Return ``error`` as a sentence for people: what failed, at which file, what stays, what to do.

    ``doing`` continues "Cannot …"; ``kept`` is a whole sentence on what holds meanwhile.
    """
    number = error.errno or 0
    what, advice = _EXPLANATIONS.get(number, (os.strerror(number).lower() if number else str(error), ""))
    name = errno.errorcode.get(number, "")
    sentences = [f"Cannot {doing} {path}: {what}{f' ({name})' if name else ''}.", kept, advice]
    return PublishError(" ".join(part for part in sentences if part))


@contextlib.contextmanager
def _translated(doing: str, path: Path, relative: str = "", kept: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, doing, path / relative, kept) from error


def split_relative(relative: str) -> tuple[str, ...]:
    """Return the components of a relative path; raise ``PublishError`` for one that is absolute, empty or climbs."""
    parts = tuple(relative.split("/"))
    if "\0" in relative or any(part in ("", ".", "..") for part in parts):
        raise PublishError(
            f"The file name {relative!r} is not a plain relative path, so nothing was written under it."
            " Use names without empty parts, '.' and '..'.",
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    return parts


@final
class Folder:
    """An open directory, through which its files are written, read and removed. Close it, or use it in ``with``."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path
        """Where it was opened: for messages only."""

    @classmethod
    def open(cls, root: Path, relative: str = "", *, create: bool = True) -> Self:
        """Open ``root`` (links are followed: it is the user's own choice) and ``relative`` below it (no links).

        What is missing is created with mode 0700. Raises ``PublishError``; where ``create`` is false and there is no
        such directory, ``FileNotFoundError``.
        """
        with _translated_unless_missing(create, "open the directory", root):
            if create:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = cls(os.open(root, _OPEN_FOLDER), root)
        if not relative:
            return folder
        with folder:
            return folder.subfolder(relative, create=create)

    def subfolder(self, relative: str, *, create: bool = True) -> Self:
        """Open the directory ``relative`` below this one, as ``open`` does."""
        path = self.path / relative
        descriptor = os.dup(self._descriptor)
        try:
            for part in split_relative(relative):
                with _translated_unless_missing(create, "open the directory", path):
                    descriptor = _step_down(descriptor, part, create=create)
        except BaseException:
            os.close(descriptor)
            raise
        return type(self)(descriptor, path)

    def write(self, relative: str, data: bytes, *, mode: int = 0o600, fsync: bool = True) -> os.stat_result:
        """Put ``data`` at ``relative`` at once and whole; return the new file's status.

        Directories on the way are created with mode 0700. With ``fsync`` the content is on the disk before the file
        gets its name; the directory entry itself is durable only after ``sync``. On any failure what was there stays,
        nothing is left behind, and a ``PublishError`` says so.
        """
        *above, name = split_relative(relative)
        if above:
            with self.subfolder("/".join(above)) as folder:
                return folder.write(name, data, mode=mode, fsync=fsync)
        temporary = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        kept = "What was there before stays as it was, and Keyferry tries again."
        with _translated("write", self.path, name, kept):
            descriptor = os.open(temporary, _OPEN_TEMPORARY, 0o600, dir_fd=self._descriptor)
            try:
                try:
                    _write_all(descriptor, data)
                    # The umask may have taken bits away that the caller wants.
                    os.fchmod(descriptor, mode)
                    if fsync:
                        os.fsync(descriptor)
                    status = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
                os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=self._descriptor)
                raise
        return status

    def read(self, relative: str, *, limit: int = READ_LIMIT) -> bytes | None:
        """Return the content of a regular file, or None where there is none.

        Raises ``PublishError`` where it is a link, a special file, longer than ``limit`` bytes, or cannot be read.
        """
        *above, name = split_relative(relative)
        with _translated("read", self.path, relative):
            try:
                if above:
                    with self.subfolder("/".join(above), create=False) as folder:
                        return folder.read(name, limit=limit)
                descriptor = os.open(name, _OPEN_READ, dir_fd=self._descriptor)
            except FileNotFoundError:
                return None
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise PublishError(
                        f"{self.path / relative} is not a regular file, so it is not read. Move it away."
                    )
                data = _read_at_most(descriptor, limit + 1)
            finally:
                os.close(descriptor)
        if len(data) > limit:
            raise PublishError(
                f"{self.path / relative} is longer than {limit} bytes, so it is not one of ours and is not read."
            )
        return data

    def status(self, relative: str) -> os.stat_result | None:
        """Return the status of what lies there (of a link itself), or None where there is nothing."""
        *above, name = split_relative(relative)
        with _translated("look at", self.path, relative):
            try:
                if above:
                    with self.subfolder("/".join(above), create=False) as folder:
                        return folder.status(name)
                return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def remove(self, relative: str) -> bool:
        """Remove a file, and the directories on its way that became empty; False where it was not there."""
        *above, name = split_relative(relative)
        with _translated("remove", self.path, relative):
            try:
                if not above:
                    os.unlink(name, dir_fd=self._descriptor)
                    return True
                with self.subfolder("/".join(above), create=False) as folder:
                    removed = folder.remove(name)
            except FileNotFoundError:
                removed = False
        self._prune(above)
        return removed

    def remove_folder(self, name: str) -> bool:
        """Remove the directory ``name`` in this one if it is empty; False where it is not, or not there."""
        try:
            os.rmdir(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise explain(error, "remove the directory", self.path / name, "") from error
        return True

    def sync(self) -> None:
        """Make the names in this directory durable."""
        with _translated(
            "sync the directory", self.path, kept="The files are in place, but may be lost with the power."
        ):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Give the descriptor back; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _prune(self, parts: list[str]) -> None:
        for depth in range(len(parts) - 1, -1, -1):
            try:
                if depth:
                    with self.subfolder("/".join(parts[:depth]), create=False) as folder:
                        emptied = folder.remove_folder(parts[depth])
                else:
                    emptied = self.remove_folder(parts[0])
            except FileNotFoundError:
                continue
            if not emptied:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_file(
    directory: Folder | Path, relative: str, data: bytes, *, mode: int = 0o600, fsync: bool = True
) -> os.stat_result:
    """Write one file atomically, as ``Folder.write`` does; a path is opened (and created) for this one file."""
    if isinstance(directory, Folder):
        return directory.write(relative, data, mode=mode, fsync=fsync)
    with Folder.open(directory) as folder:
        status = folder.write(relative, data, mode=mode, fsync=fsync)
        if fsync:
            folder.sync()
        return status


def read_file(path: Path, *, limit: int = READ_LIMIT) -> bytes | None:
    """Return the content of the regular file at ``path``, at most ``limit`` bytes; None where there is none.

    Raises ``PublishError`` as ``Folder.read`` does. Directories on the way may be links, the file itself may not.
    """
    try:
        with Folder.open(path.parent, create=False) as folder:
            return folder.read(path.name, limit=limit)
    except FileNotFoundError:
        return None


def subfolders(path: Path) -> list[str]:
    """Return the names of the directories in ``path``, in order and without links; none where it does not exist."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise explain(error, "list the directory", path, "") from error


def sweep_temporaries(root: Path, *, now: float | None = None, older_than: float = STALE_AFTER) -> int:
    """Remove temporary files below ``root`` that a killed process left; return how many. Links are not followed.

    ``now`` is Unix time (default: the clock's), ``older_than`` seconds. What cannot be removed is left for next time.
    """
    limit = (time.time() if now is None else now) - older_than
    swept = 0
    with _translated("search", root), contextlib.suppress(FileNotFoundError):
        for _, _, names, descriptor in os.fwalk(root, follow_symlinks=False):
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    swept += _sweep(descriptor, name, limit)
    return swept


def _sweep(descriptor: int, name: str, limit: float) -> bool:
    with contextlib.suppress(OSError):
        if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mtime < limit:
            os.unlink(name, dir_fd=descriptor)
            return True
    return False


@contextlib.contextmanager
def _translated_unless_missing(create: bool, doing: str, path: Path) -> Iterator[None]:  # noqa: FBT001 - private
    try:
        yield
    except FileNotFoundError as error:
        if not create:
            raise
        raise explain(error, doing, path, "Nothing was written.") from error
    except OSError as error:
        raise explain(error, doing, path, "Nothing was written." if create else "") from error


def _step_down(descriptor: int, name: str, *, create: bool) -> int:
    """Open the directory ``name`` inside, close ``descriptor`` in exchange, and return the new one."""
    try:
        below = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
    except FileNotFoundError:
        if not create:
            raise
        with contextlib.suppress(FileExistsError):  # another thread may have made it meanwhile
            os.mkdir(name, 0o700, dir_fd=descriptor)
        below = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
    os.close(descriptor)
    return below


def _read_at_most(descriptor: int, limit: int) -> bytes:
    chunks: list[bytes] = []
    while limit > 0 and (chunk := os.read(descriptor, limit)):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
