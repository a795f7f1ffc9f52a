"""Files that are whole or absent: written beside their place, synced, then renamed into it.

Everything below an opened ``Folder`` is reached by directory descriptors that never follow a symbolic link, so that a
link planted inside the directory leads nowhere. All calls block: run them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from typing import TYPE_CHECKING, Final, Self, final

from keyferry.errors import PublishError, RetryClass
from keyferry.io.disk_errors import Translated, explain

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

TEMPORARY_PREFIX: Final = ".keyferry-tmp-"
"""How the name of every file begins that is not yet in its place."""

READ_LIMIT: Final = 1 << 20
"""Bytes that are read of a file unless the caller says otherwise."""

_KEPT: Final = "What was there before stays as it was, and Keyferry tries again."
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that somebody put there would wait for its writer.
_OPEN_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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

    __slots__ = ("_below", "_descriptor", "_mode", "_root")

    def __init__(self, descriptor: int, root: Path, below: str = "", mode: int | None = None) -> None:
        self._descriptor = descriptor
        self._root = root
        self._below = below
        self._mode = mode

    @property
    def path(self) -> Path:
        """Where it was opened: for messages only, and so put together only when one is needed."""
        return self._root / self._below if self._below else self._root

    @path.setter
    def path(self, path: Path) -> None:
        self._root, self._below = path, ""

    @classmethod
    def open(cls, root: Path, relative: str = "", *, create: bool = True, mode: int | None = None) -> Self:
        """Open ``root`` (links are followed: it is the user's own choice) and ``relative`` below it (no links).

        What is missing is created with mode 0700, or ``mode``; those below ``root`` then get that mode also where
        they are there. Raises ``PublishError``; where ``create`` is false and there is no such directory,
        ``FileNotFoundError``.
        """
        if relative and "/" not in relative and mode is None:
            with contextlib.suppress(OSError):  # whatever it was, the long way meets it as well, and says so
                below, *_ = split_relative(relative)
                return cls(os.open(f"{root}/{below}", _OPEN_FOLDER | os.O_NOFOLLOW), root, below)
        with _opening(root, create=create):
            folder = cls(_open_root(root, create=create, mode=0o700 if mode is None else mode), root, mode=mode)
        return folder._descend(relative, create=create) if relative else folder

    def subfolder(self, relative: str, *, create: bool = True, mode: int | None = None) -> Self:
        """Open the directory ``relative`` below this one, as ``open`` does; ``mode`` None is this one's."""
        folder = type(self)(os.dup(self._descriptor), self._root, self._below, self._mode if mode is None else mode)
        return folder._descend(relative, create=create)  # noqa: SLF001 - of the same class

    def new_subfolder(self, name: str) -> Self:
        """Make and open a directory of which nothing is there yet. Raises ``PublishError``."""
        below = f"{self._below}/{name}" if self._below else name
        with _opening(self._root, below, create=True):
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
            return type(self)(os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=self._descriptor), self._root, below)

    def _descend(self, relative: str, *, create: bool) -> Self:
        """Become the directory ``relative`` below; closed where that fails."""
        self._below = f"{self._below}/{relative}" if self._below else relative
        try:
            for part in split_relative(relative):
                with _opening(self._root, self._below, create=create):
                    self._descriptor = _step_down(self._descriptor, part, create=create)
                    if create and self._mode is not None:
                        _set_mode(self._descriptor, self._mode)
        except BaseException:
            self.close()
            raise
        return self

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
        temporary, status = self.stage(name, data, mode=mode, fsync=fsync)
        with Translated("write", self._root, self._below, name, kept=_KEPT):
            try:
                self.rename(temporary, name)
            except BaseException:
                self._discard(temporary)
                raise
        return status

    def stage(self, name: str, data: bytes, *, mode: int = 0o600, fsync: bool = True) -> tuple[str, os.stat_result]:
        """Write beside its place what is to be ``name`` in this directory: ``rename`` it then, or ``remove`` it.

        Return its name until then, and its status. Raises as ``write`` does.
        """
        temporary = temporary_name()
        with Translated("write", self._root, self._below, name, kept=_KEPT):
            try:
                return temporary, _write_new(self._descriptor, temporary, data, mode=mode, fsync=fsync)
            except BaseException:
                self._discard(temporary)
                raise

    def _discard(self, temporary: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self._descriptor)

    def create(self, relative: str, data: bytes) -> os.stat_result:
        """Write a new file right under its name, synced: for a directory that nobody looks into yet."""
        *above, name = split_relative(relative)
        if above:
            with self.subfolder("/".join(above)) as folder:
                return folder.create(name, data)
        with Translated("write", self._root, self._below, name):
            return _write_new(self._descriptor, name, data, mode=0o600, fsync=True)

    def read(self, relative: str, *, limit: int = READ_LIMIT) -> bytes | None:
        """Return the content of a regular file, or None where there is none.

        Raises ``PublishError`` where it is a link, a special file, longer than ``limit`` bytes, or cannot be read.
        """
        *above, name = split_relative(relative)
        with Translated("read", self._root, self._below, relative):
            try:
                if above:
                    with self.subfolder("/".join(above), create=False) as folder:
                        return folder.read(name, limit=limit)
                descriptor = os.open(name, _OPEN_READ, dir_fd=self._descriptor)
            except FileNotFoundError:
                return None
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise PublishError(
                        f"{self.path / relative} is not a regular file, so it is not read. Move it away."
                    )
                if status.st_size > limit:
                    raise PublishError(
                        f"{self.path / relative} is longer than {limit} bytes, so it is not one of ours and not read."
                    )
                return read_at_most(descriptor, status.st_size)
            finally:
                os.close(descriptor)

    def status(self, relative: str) -> os.stat_result | None:
        """Return the status of what lies there (of a link itself), or None where there is nothing."""
        *above, name = split_relative(relative)
        with Translated("look at", self._root, self._below, relative):
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
        with Translated("remove", self._root, self._below, relative):
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

    def rename(self, old: str, new: str) -> None:
        """Give another name to what is directly in this directory. Raises OSError."""
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove_tree(self, name: str) -> None:
        """Remove the directory ``name`` in this one with all that is in it; no link is followed. Raises OSError."""
        remove_tree(name, self._descriptor)

    def sync(self) -> None:
        """Make the names in this directory durable."""
        with Translated(
            "sync the directory",
            self._root,
            self._below,
            kept="The files are in place, but may be lost with the power.",
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


_PROCESS: Final = os.urandom(8).hex()
_serial: Final = itertools.count()


def temporary_name() -> str:
    """Return a name that nothing has yet: a new random number for each would cost a system call."""
    return f"{TEMPORARY_PREFIX}{_PROCESS}-{os.getpid()}-{next(_serial)}"


def remove_tree(name: str, descriptor: int) -> None:
    """Remove the directory ``name`` of an open one, with all that is in it; no link is followed. Raises OSError."""
    import shutil  # noqa: PLC0415 - it brings every compression along, and a sidecar that starts removes no trees

    shutil.rmtree(name, dir_fd=descriptor)


def _opening(root: Path, below: str = "", *, create: bool) -> Translated:
    """Raise what goes wrong at opening a directory; that it is not there is an error only where it was to be made."""
    kept = "Nothing was written." if create else ""
    return Translated("open the directory", root, below, kept=kept, missing_is_told=create)


def _open_root(root: Path, *, create: bool, mode: int) -> int:
    try:
        return os.open(root, _OPEN_FOLDER)
    except FileNotFoundError:
        if not create:
            raise
    root.mkdir(mode=mode, parents=True, exist_ok=True)
    return os.open(root, _OPEN_FOLDER)


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


def _set_mode(descriptor: int, mode: int) -> None:
    # Whatever the umask took away; what another user made stays as they made it.
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, mode)


def _write_new(folder: int, name: str, data: bytes, *, mode: int, fsync: bool) -> os.stat_result:
    # Each write is synced by itself (O_SYNC): a call less than fsync, and every call costs a thread the interpreter.
    descriptor = os.open(name, OPEN_NEW | (os.O_SYNC if fsync else 0), 0o600, dir_fd=folder)
    try:
        write_all(descriptor, data)
        status = os.fstat(descriptor)
        if stat.S_IMODE(status.st_mode) != mode:  # the umask may have taken bits away that the caller wants
            os.fchmod(descriptor, mode)
            if fsync:
                os.fsync(descriptor)
            status = os.fstat(descriptor)
        return status
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, in as many calls as it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_at_most(descriptor: int, limit: int) -> bytes:
    """Return the next ``limit`` bytes of a regular file, fewer where it ends."""
    data = os.read(descriptor, limit)
    while len(data) < limit and (more := os.read(descriptor, limit - len(data))):
        data += more
    return data
