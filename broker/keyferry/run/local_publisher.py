"""The engine's publisher over files: ``FilePublisher`` in threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.render import Delivery
from keyferry.run.publisher import FilePublisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from keyferry.model import ObjectKey
    from keyferry.publication import Publication, Published
    from keyferry.record import Record
    from keyferry.render import Endpoint


class LocalPublisher:
    """Implements ``keyferry.engine.ports.Publisher`` on one machine."""

    delivery = Delivery.DIRECTORY

    def __init__(
        self, out: Path, *, key: bytes, executor: Executor, endpoint: Callable[[ObjectKey], Endpoint | None]
    ) -> None:
        self._endpoint = endpoint
        self._files = FilePublisher(out, key=key, executor=executor)

    def prepare(self) -> int:
        """Create the output directory and clean up after killed processes. Blocks."""
        return self._files.prepare()

    def directory(self, key: ObjectKey) -> Path:
        """Return where an identity's files are."""
        return self._files.directory(key)

    def place(self, key: ObjectKey) -> str:
        """Return where an identity's files are, as an absolute path."""
        return str(self._files.directory(key).absolute())

    def endpoint(self, key: ObjectKey) -> Endpoint | None:
        """Return the loopback endpoints of an identity, where they are served."""
        return self._endpoint(key)

    async def publish(self, publication: Publication, record: Record) -> Published:  # noqa: ARG002 - kept beside
        """Make the files be as it says."""
        return await self._files.apublish(publication)

    async def observe(self, key: ObjectKey) -> Published | None:
        """Return what is there."""
        return await self._files.aobserve(key)

    async def observe_many(self, keys: Iterable[ObjectKey]) -> Mapping[ObjectKey, Published | None]:
        """Return what is there of each; those that cannot be read are left out."""
        return await self._files.aobserve_many(keys)

    async def withdraw(self, key: ObjectKey, uid: str) -> None:  # noqa: ARG002 - here a name is all there is
        """Remove what is ours."""
        await self._files.awithdraw(key)

    async def missing(self, keys: Iterable[ObjectKey]) -> list[ObjectKey]:
        """Return those of which a file is not there any more."""
        return await self._files.amissing(keys)
