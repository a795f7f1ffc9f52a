"""The resource files of ``keyferry run``: read at the start, and again when they change."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keyferry.spec.problem import Problem
from keyferry.spec.resources import Loaded, load_documents, merge_loaded
from keyferry.spec.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SUFFIXES: Final = (".yaml", ".yml", ".json")
LARGEST_FILE: Final = 16 << 20

Stamp = tuple[int, int, int]
"""Modification time (ns), size, inode."""


@dataclass(slots=True)
class _File:
    stamp: Stamp
    loaded: Loaded


@dataclass(slots=True)
class ResourceFiles:
    """Reads everything under the given paths; an unchanged file is not parsed again. It blocks."""

    paths: Sequence[Path]
    default_namespace: str = "default"
    _files: dict[Path, _File] = field(default_factory=dict)
    _places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Device and inode of each directory that held resource files: another one there is another mount."""
    _sharing: Sharing = field(default_factory=Sharing)

    def changed(self) -> bool:
        """Tell whether any file appeared, vanished or changed since ``load``."""
        seen = 0
        for path, stamp in self._walk([]):
            known = self._files.get(path)
            if known is None or known.stamp != stamp:
                return True
            seen += 1
        return seen != len(self._files)

    def load(self) -> Loaded:
        """Return all resources, with every file's problems. ``complete`` is False where anything was unreadable."""
        problems: list[Problem] = []
        files: dict[Path, _File] = {}
        unreadable = unfinished = False
        for path, stamp in self._walk(problems):
            known = self._files.get(path)
            if known is not None and known.stamp == stamp:
                files[path] = known
                continue
            # A file is empty while it is being written anew, and stays so when the disk is full: that deletes nothing.
            unfinished = unfinished or stamp[1] == 0
            if stamp[1] == 0 and known is not None and known.loaded.identities:
                problems.append(Problem("", _EMPTIED, source=str(path)))
                files[path] = known
                continue
            try:
                with path.open("rb") as file:
                    text = file.read(LARGEST_FILE + 1)
            except OSError as error:
                problems.append(Problem("", f"cannot be read: {os.strerror(error.errno or 0)}", source=str(path)))
                unreadable = True
                continue
            loaded = load_documents(text, str(path), default_namespace=self.default_namespace, sharing=self._sharing)
            files[path] = _File(stamp, loaded)
        self._files = files
        problems += self._swapped_places()
        merged = merge_loaded(file.loaded for file in files.values())
        return Loaded(
            providers=merged.providers,
            identities=merged.identities,
            secrets=merged.secrets,
            config_maps=merged.config_maps,
            problems=(*problems, *merged.problems),
            invalid=merged.invalid,
            complete=merged.complete and not unreadable and not unfinished and not problems,
        )

    def covers(self, source: str) -> bool:
        """Tell whether a file (as a record names it) lies under one of the paths, and that path is really there.

        A directory without any resource file may be one that is not mounted yet.
        """
        place = Path(source)
        return any(
            place == path or (path in place.parents and any(path in known.parents for known in self._files))
            for path in self.paths
        )

    def _swapped_places(self) -> Iterator[Problem]:
        """Yield the directories that held resource files and are other ones now, without any: an unmounted disk."""
        in_use = {path.parent for path in self._files}
        for place in in_use:
            identity = _identity(place)
            if identity is not None:
                self._places[place] = identity
        for place in self._places.keys() - in_use:
            identity = _identity(place)
            if place in self.paths and identity is None:
                continue  # told of by the walk
            if identity is None or identity == self._places[place]:
                del self._places[place]
            else:
                yield Problem("", _UNMOUNTED, source=str(place))

    def _walk(self, problems: list[Problem]) -> Iterator[tuple[Path, Stamp]]:
        for path in self.paths:
            if path.is_dir():
                yield from self._walk_directory(path, problems)
                continue
            stamp = _stamp(path)
            if stamp is None:
                problems.append(Problem("", "is not there", source=str(path)))
            else:
                yield path, stamp

    def _walk_directory(self, directory: Path, problems: list[Problem]) -> Iterator[tuple[Path, Stamp]]:
        def failed(error: OSError) -> None:
            problems.append(
                Problem("", f"cannot be read: {os.strerror(error.errno or 0)}", source=str(error.filename or directory))
            )

        for place, folders, names in os.walk(directory, onerror=failed):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    path = Path(place) / name
                    stamp = _stamp(path)
                    if stamp is not None:
                        yield path, stamp


_EMPTIED: Final = (
    "is empty now, as if it were half-written: its resources stay as they were. Write it again, or delete it to let"
    " them go"
)
_UNMOUNTED: Final = (
    "is another directory than before, without any resource file, as if a disk had been unmounted: its resources stay"
    " as they were"
)


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
