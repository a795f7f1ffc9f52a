"""Answers that arrived and are not committed yet, as files in the state directory.

The space is set aside before the credential is spent, so the disk cannot be full when the answer comes. A file counts
only when it is whole: its first line says how long the answer is and what its digest is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import PublishError, StoreUnavailable
from keyferry.io.files import Folder
from keyferry.io.state_dir import unavailable
from keyferry.io.threads import in_thread
from keyferry.model import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path
    from typing import TypeVar

    T = TypeVar("T")

DIRECTORY: Final = "escrow"
RESERVED: Final = 1 << 17
"""Bytes set aside for an answer; real ones are a few kilobytes, and a longer one is written if there is space."""

KEPT_HEADERS: Final = frozenset({"content-type", "retry-after", "date"})


@final
class FileEscrow:
    """Implements ``keyferry.escrow.Escrow``."""

    def __init__(self, root: Path, executor: Executor) -> None:
        self._directory = root / DIRECTORY
        self._executor = executor

    async def reserve(self, attempt_id: str) -> None:
        """Set the space aside; what a process that died had set aside for the same attempt is used again."""

        def work() -> None:
            with self._folder() as folder:
                folder.sync()
            descriptor = os.open(
                self._directory / attempt_id, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                os.posix_fallocate(descriptor, 0, RESERVED)
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    (self._directory / attempt_id).unlink()
                raise
            finally:
                os.close(descriptor)

        await self._in_thread("reserve space in", work)

    async def keep(self, attempt_id: str, answer: HttpResponse) -> None:
        """Write the answer into its place."""
        payload = json.dumps(
            {
                "status": answer.status,
                "headers": {name: value for name, value in answer.headers.items() if name in KEPT_HEADERS},
                "body": base64.b64encode(answer.body).decode(),
            }
        ).encode()
        head = f"{len(payload)} {hashlib.sha256(payload).hexdigest()}\n".encode()

        def work() -> None:
            descriptor = os.open(
                self._directory / attempt_id, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                data, offset = head + payload, 0
                while offset < len(data):
                    offset += os.pwrite(descriptor, data[offset:], offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        await self._in_thread("write", work)

    async def recall(self, attempt_id: str) -> HttpResponse | None:
        """Return the answer where a whole one was kept."""

        def work() -> HttpResponse | None:
            try:
                data = (self._directory / attempt_id).read_bytes()
            except FileNotFoundError:
                return None
            return _parse(data)

        return await self._in_thread("read", work)

    async def release(self, attempt_id: str) -> None:
        """Remove the file; one that cannot be removed is swept at the next start."""

        def work() -> None:
            with contextlib.suppress(OSError):
                (self._directory / attempt_id).unlink()

        await self._in_thread("clean up", work)

    async def attempts(self) -> frozenset[str]:
        """Return the names of the files."""

        def work() -> frozenset[str]:
            try:
                return frozenset(path.name for path in self._directory.iterdir())
            except FileNotFoundError:
                return frozenset()

        return await self._in_thread("read", work)

    def sweep(self, wanted: set[str]) -> int:
        """Remove, at the start, what belongs to no open claim; return how many. Blocks."""
        swept = 0
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.iterdir():
                if path.name not in wanted:
                    with contextlib.suppress(OSError):
                        path.unlink()
                        swept += 1
        return swept

    def _folder(self) -> Folder:
        return Folder.open(self._directory)

    async def _in_thread(self, doing: str, work: Callable[[], T]) -> T:
        try:
            return await in_thread(self._executor, work)
        except PublishError as error:
            raise StoreUnavailable(error.message) from error
        except OSError as error:
            raise unavailable(doing, self._directory, error) from error


def _parse(data: bytes) -> HttpResponse | None:
    head, _, rest = data.partition(b"\n")
    try:
        length, digest = head.decode("ascii").split(" ")
        payload = rest[: int(length)]
        if len(payload) != int(length) or hashlib.sha256(payload).hexdigest() != digest:
            return None
        kept = json.loads(payload)
        return HttpResponse(kept["status"], kept["headers"], base64.b64decode(kept["body"]))
    except (ValueError, KeyError, TypeError):
        return None
