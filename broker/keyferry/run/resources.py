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
    """Reads everything under the given paths; an unchanged file is not parsed again. Blocks: call it in a thread."""

    paths: Sequence[Path]
    default_namespace: str = "default"
    _files: dict[Path, _File] = field(default_factory=dict)
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
        """Return all resources, with the problems of every file. ``complete`` is False where anything was unreadable."""
        problems: list[Problem] = []
        files: dict[Path, _File] = {}
        unreadable = False
        for path, stamp in self._walk(problems):
            known = self._files.get(path)
            if known is not None and known.stamp == stamp:
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
        merged = merge_loaded(file.loaded for file in files.values())
        return Loaded(
            providers=merged.providers,
            identities=merged.identities,
            secrets=merged.secrets,
            config_maps=merged.config_maps,
            problems=(*problems, *merged.problems),
            invalid=merged.invalid,
            complete=merged.complete and not unreadable and not problems,
        )

    def covers(self, source: str) -> bool:
        """Tell whether a file (as a record names it) lies under one of the paths."""
        place = Path(source)
        return any(place == path or path in place.parents for path in self.paths)

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


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
