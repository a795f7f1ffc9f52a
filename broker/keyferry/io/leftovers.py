"""Removes the temporary files and directories that a killed process left."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from keyferry.io.disk_errors import Translated
from keyferry.io.files import TEMPORARY_PREFIX, remove_tree

if TYPE_CHECKING:
    from pathlib import Path

STALE_AFTER: Final = 60.0
"""Seconds after which a temporary file has no writer any more: writing one takes milliseconds."""


def sweep_temporaries(root: Path, *, now: float | None = None, older_than: float = STALE_AFTER) -> int:
    """Remove temporary files and directories below ``root`` that a killed process left; return how many.

    ``now`` is Unix time (default: the clock's), ``older_than`` seconds. What cannot be removed is left for next time.
    Links are not followed.
    """
    limit = (time.time() if now is None else now) - older_than
    swept = 0
    with Translated("search", root), contextlib.suppress(FileNotFoundError):
        for _, folders, names, descriptor in os.fwalk(root, follow_symlinks=False):
            for name in (name for name in (*folders, *names) if name.startswith(TEMPORARY_PREFIX)):
                swept += _sweep(descriptor, name, limit)
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY_PREFIX)]
    return swept


def _sweep(descriptor: int, name: str, limit: float) -> bool:
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if status.st_mtime < limit:
            if stat.S_ISDIR(status.st_mode):
                remove_tree(name, descriptor)
            else:
                os.unlink(name, dir_fd=descriptor)
            return True
    return False
