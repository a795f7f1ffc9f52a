"""A directory that appears at once with all its files: built under a temporary name, then renamed into its place."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from keyferry.io.disk_errors import explain
from keyferry.io.files import temporary_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.io.files import Folder

_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


@contextlib.contextmanager
def new_folder(parent: Folder, name: str) -> Iterator[Folder]:
    """Yield a directory to fill, which gets its ``name`` in ``parent`` when the block ends without an error.

    What is in it must be synced by then. Raises ``FileExistsError`` where the name is taken by anything but an empty
    directory, ``PublishError`` as ``Folder`` does; on any error nothing is left behind.
    """
    temporary = temporary_name()
    place = parent.path / name
    try:
        with parent.new_subfolder(temporary) as folder:
            folder.path = place  # an error names the place that people know
            yield folder
        try:
            parent.rename(temporary, name)
        except OSError as error:
            if error.errno in _TAKEN:
                raise FileExistsError(error.errno, os.strerror(error.errno)) from None
            raise explain(error, "create the directory", place, "Nothing was published.") from error
    except BaseException:
        with contextlib.suppress(OSError):
            parent.remove_tree(temporary)
        raise
