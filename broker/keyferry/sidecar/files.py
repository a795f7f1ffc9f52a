"""The files of the pod: every one whole or absent, and all of one answer in place before the last one's go.

They lie on a volume in memory, so nothing is synced: that would make nothing safer, since the volume ends with the
pod, and a process that is killed loses nothing that the kernel has.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

from keyferry.io.disk_errors import Translated
from keyferry.io.files import Folder, split_relative
from keyferry.io.leftovers import sweep_temporaries
from keyferry.secret import SecretValue
from keyferry.web.presented import new_placeholder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

CLIENTS_OWN: Final = ".tiled"
"""A directory that clients write in, and delete from (``keyferry.render.tiled.CACHE_FOLDER``)."""
OWN: Final = ".keyferry"
"""Directory of what is not of one identity; no identity can be named so."""
PLACEHOLDER: Final = "placeholder"
TOKENS: Final = "tokens"
"""Directory in that one, of the sidecar alone: what it had last, for when it is started again."""

FILE_MODE: Final = 0o644
FOLDER_MODE: Final = 0o755
CLIENTS_MODE: Final = 0o777
"""Any user of the pod may write there; without the sticky bit, for clients delete what we wrote."""
OWN_FILE_MODE: Final = 0o600
OWN_FOLDER_MODE: Final = 0o700
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_SHORTEST_PLACEHOLDER: Final = 43
"""Characters that 256 bits need as URL-safe text."""


class PodFiles:
    """The directory that a pod's containers share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> SecretValue:
        """Clean up after a killed process; return what workloads of this pod present to its endpoints.

        Raises PublishError.
        """
        sweep_temporaries(self.root, older_than=0.0)
        with Folder.open(self.root, OWN, mode=FOLDER_MODE) as folder:
            kept = folder.read(PLACEHOLDER, limit=1024) or b""
            if len(kept) >= _SHORTEST_PLACEHOLDER and kept.isascii():
                return SecretValue(kept.decode())
            made = new_placeholder()
            folder.write(PLACEHOLDER, made.reveal().encode(), mode=FILE_MODE, fsync=False)
            return made

    def write_own(self, name: str, data: bytes) -> None:
        """Write a file that is not of one identity. Raises PublishError."""
        with Folder.open(self.root, OWN, mode=FOLDER_MODE) as folder:
            folder.write(name, data, mode=FILE_MODE, fsync=False)

    def of(self, identity: str, known: Iterable[str] = ()) -> IdentityFiles:
        """Return the files of an identity; ``known`` are those that were written before this process began."""
        return IdentityFiles(self.root, identity, known)


class IdentityFiles:
    """The files of one identity. Calls block for as long as memory takes, which is no time."""

    def __init__(self, root: Path, identity: str, known: Iterable[str] = ()) -> None:
        """``known`` are the files that were written before this process began."""
        self._root, self._identity = root, identity
        self._known = frozenset(known)
        self._deletable: dict[str, bytes] = {}
        """What lies where clients may delete it."""

    @property
    def may_go_missing(self) -> bool:
        """Tell whether there is anything to `put_back`."""
        return bool(self._deletable)

    def apply(self, files: Mapping[str, bytes]) -> None:
        """Make the files be these. Raises PublishError; then those that were there before are all still there."""
        with contextlib.ExitStack() as stack:
            staged = [
                (folder, name, self._stage(stack, folder, name, data))
                for folder, name, data in self._places(stack, files)
            ]
            for folder, name, temporary in staged:
                with Translated("replace", folder.path, name, kept="What was there stays, and Keyferry tries again."):
                    folder.rename(temporary, name)
        gone = (self._known | set(self._present())) - files.keys()
        self._known = frozenset(files)
        self._deletable = {path: data for path, data in files.items() if path.startswith(f"{CLIENTS_OWN}/")}
        self._remove(gone)

    def put_back(self) -> list[str]:
        """Write what a client deleted; return which files. Raises PublishError."""
        base = f"{self._root}/{self._identity}"
        missing = {path: data for path, data in self._deletable.items() if not os.path.lexists(f"{base}/{path}")}
        for path, data in missing.items():
            with self._open(path) as folder:
                folder.write(path.rpartition("/")[2], data, mode=FILE_MODE, fsync=False)
        return list(missing)

    def keep(self, token: bytes) -> None:
        """Keep a token for a sidecar that is started again, where its user alone can read it. Raises PublishError."""
        with (
            Folder.open(self._root, OWN, mode=FOLDER_MODE) as own,
            own.subfolder(TOKENS, mode=OWN_FOLDER_MODE) as folder,
        ):
            folder.write(self._identity, token, mode=OWN_FILE_MODE, fsync=False)

    def kept(self) -> bytes | None:
        """Return what `keep` kept; None where nothing is there that this user alone could write. Raises PublishError.

        It is for the endpoints, which hand it to the pod's own containers, to whoever presents the placeholder that
        lies beside it. So neither does it open more than that to whoever reads it, nor gains anything who forges it.
        """
        try:
            with Folder.open(self._root, f"{OWN}/{TOKENS}", create=False) as folder:
                status = folder.status(self._identity)
                ours = status is not None and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS
                return folder.read(self._identity) if ours else None
        except FileNotFoundError:
            return None

    def _open(self, path: str) -> Folder:
        """Open the directory that a file is in, with the mode that it should have."""
        own = Folder.open(self._root, self._identity, mode=FOLDER_MODE)
        *above, _ = split_relative(path)
        if not above:
            return own
        with own:
            return own.subfolder("/".join(above), mode=CLIENTS_MODE if above[0] == CLIENTS_OWN else FOLDER_MODE)

    def _places(self, stack: contextlib.ExitStack, files: Mapping[str, bytes]) -> Iterator[tuple[Folder, str, bytes]]:
        folders: dict[str, Folder] = {}
        for path, data in files.items():
            *above, name = split_relative(path)
            place = "/".join(above)
            if place not in folders:
                folders[place] = stack.enter_context(self._open(path))
            yield folders[place], name, data

    @staticmethod
    def _stage(stack: contextlib.ExitStack, folder: Folder, name: str, data: bytes) -> str:
        temporary, _ = folder.stage(name, data, mode=FILE_MODE, fsync=False)
        # Removed whatever happens: once it is renamed there is nothing under that name.
        stack.callback(folder.remove, temporary)
        return temporary

    def _present(self) -> list[str]:
        """Return what is there, but for what clients may have put there themselves."""
        found: list[str] = []
        base = f"{self._root}/{self._identity}"
        for above, folders, names in os.walk(base):
            below = above.removeprefix(base).lstrip("/")
            if not below and CLIENTS_OWN in folders:
                folders.remove(CLIENTS_OWN)
            found += [f"{below}/{name}" if below else name for name in names]
        return found

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            top, slash, rest = path.partition("/")
            # The first level stays: containers may have it mounted, and would not see one that is made anew.
            with (
                contextlib.suppress(FileNotFoundError),
                Folder.open(self._root / self._identity, top if slash else "", create=False) as folder,
            ):
                folder.remove(rest if slash else top)
