"""The engine's publisher over files: ``FilePublisher`` in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.run.publisher import FilePublisher

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Executor
    from pathlib import Path

    from keyferry.model import ObjectKey
    from keyferry.publication import Publication, Published


class LocalPublisher:
    """Implements ``keyferry.engine.ports.Publisher`` on one machine."""

    def __init__(self, out: Path, *, key: bytes, executor: Executor) -> None:
        self._files = FilePublisher(out, key=key, executor=executor)

    def prepare(self) -> int:
        """Create the output directory and clean up after killed processes. Blocks."""
        return self._files.prepare()

    def directory(self, key: ObjectKey) -> Path:
        """Return where an identity's files are."""
        return self._files.directory(key)

    async def publish(self, publication: Publication) -> Published:
        """Make the files be as it says."""
        return await self._files.apublish(publication)

    async def observe(self, key: ObjectKey) -> Published | None:
        """Return what is there."""
        return await self._files.aobserve(key)

    async def withdraw(self, key: ObjectKey) -> None:
        """Remove what is ours."""
        await self._files.awithdraw(key)

    async def missing(self, keys: Iterable[ObjectKey]) -> list[ObjectKey]:
        """Return those of which a file is not there any more."""
        return await self._files.amissing(keys)
