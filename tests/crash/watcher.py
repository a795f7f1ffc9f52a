"""Reads token files all the time, as a workload might, and remembers all that it saw."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path
    from types import TracebackType

PAUSE = 0.001


class Watcher:
    """A thread that reads ``token`` and ``token.json`` of identities' directories without a pause to speak of."""

    def __init__(self) -> None:
        self._directories: tuple[Path, ...] = ()
        self._seen: defaultdict[Path, set[bytes]] = defaultdict(set)
        self._missing: list[Path] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.reads = 0

    def add(self, directory: Path) -> None:
        """Watch one more identity."""
        self._directories = (*self._directories, directory)

    def contents(self, path: Path) -> set[bytes]:
        """Return what a file was seen to hold."""
        return set(self._seen[path])

    def faults(self, issued: Collection[str]) -> list[str]:
        """Return what was wrong with any file at any time; ``issued`` are all access tokens that there ever were."""
        faults = [f"{path} was gone after it had been there" for path in self._missing]
        for path, contents in list(self._seen.items()):
            faults += [f"{path} held {content!r}" for content in contents if not _whole(path, content, issued)]
        return faults

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for directory in self._directories:
                self._read(directory / "token")
                self._read(directory / "token.json")
            time.sleep(PAUSE)

    def _read(self, path: Path) -> None:
        self.reads += 1
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            if self._seen.get(path):
                self._missing.append(path)
            return
        self._seen[path].add(content)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()


def _whole(path: Path, content: bytes, issued: Collection[str]) -> bool:
    if path.suffix != ".json":
        return content.decode("ascii", "replace") in issued
    try:
        document = json.loads(content)
    except ValueError:
        return False
    return document["access_token"] in issued and {"issued_at", "expires_at", "revision"} <= document.keys()
