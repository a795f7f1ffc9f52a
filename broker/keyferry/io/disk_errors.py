"""What the system says of a file or a directory, as a sentence for people."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import PublishError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

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


@final
class Translated:
    """Raises the system's errors as ``explain`` says them; a class, since a generator costs more than many a call."""

    __slots__ = ("_doing", "_kept", "_missing_is_told", "_place")

    def __init__(self, doing: str, root: Path, *below: str, kept: str = "", missing_is_told: bool = True) -> None:
        self._doing = doing
        self._place = root, below  # put together only when something goes wrong
        self._kept = kept
        self._missing_is_told = missing_is_told

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and (self._missing_is_told or not isinstance(error, FileNotFoundError)):
            root, below = self._place
            raise explain(error, self._doing, root.joinpath(*below), self._kept) from error
