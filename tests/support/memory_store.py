"""A store and an escrow in memory, which fail on command as a disk or an API server does."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from keyferry.errors import Conflict, StoreUnavailable
from keyferry.record import Record, Versioned
from keyferry.record_json import dumps, loads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from collections.abc import Set as AbstractSet

    from keyferry.model import HttpResponse, ObjectKey


class Trouble(Enum):
    """What befalls one operation."""

    NONE = "none"
    LOST = "lost"
    """It is refused, and nothing happened."""
    REPLY_LOST = "reply lost"
    """It happened, and the caller is told that it did not."""
    OVERTAKEN = "overtaken"
    """It is carried out twice, as by a client that lost the first reply: the second time finds the record moved on."""


class MemoryStore:
    """Implements `keyferry.store.Store`. Records are kept as the bytes that a real store would hold.

    `troubles` befall the next writes, one each; `reads` the next reads. `on_write` is called before each write.
    """

    def __init__(self) -> None:
        self.origin = "memory"
        self.digest_key = b"k" * 32
        self.troubles: deque[Trouble] = deque()
        self.reads: deque[Trouble] = deque()
        self.on_write: Callable[[], None] = lambda: None
        self.history: list[Record] = []
        """Every version ever written, in order."""
        self._records: dict[str, bytes] = {}
        """By uid."""
        self._buried: dict[str, Versioned] = {}
        self._tombstones: dict[str, str] = {}
        self.gone: set[str] = set()
        """Holders known to have ended."""

    def peek(self, key: ObjectKey) -> Versioned | None:
        """Return the record without any trouble."""
        return next(
            (held for held in map(self._held, self._records) if held is not None and held.record.key == key), None
        )

    async def read(self, key: ObjectKey, uid: str) -> Versioned | None:
        if self.reads and self.reads.popleft() is not Trouble.NONE:
            raise StoreUnavailable("the store cannot be read")
        return self._held(uid) if uid else self.peek(key)

    def forget(self, key: ObjectKey, uid: str) -> None:
        """Do nothing: it is all here."""

    async def records(self, known: AbstractSet[str] = frozenset()) -> AsyncIterator[Versioned]:
        for uid in [uid for uid in self._records if uid not in known]:
            held = self._held(uid)
            if held is not None:
                yield held

    async def create(self, record: Record) -> Versioned:
        return self._write(None, record)

    async def replace(self, held: Versioned, record: Record) -> Versioned:
        return self._write(held, record)

    async def bury(self, held: Versioned) -> None:
        trouble = self._befall()
        self._compare(held.record.uid, held.version)
        self._buried[held.record.uid] = held
        del self._records[held.record.uid]
        if trouble is Trouble.REPLY_LOST:
            raise StoreUnavailable("the store did not answer")

    async def buried(self) -> AsyncIterator[Versioned]:
        for held in list(self._buried.values()):
            yield held

    async def settle(self, held: Versioned) -> None:
        self._buried.pop(held.record.uid, None)

    async def user_of(self, digest: str) -> str:
        return self._tombstones.get(digest, "")

    async def tombstone(self, digest: str, uid: str) -> str:
        return self._tombstones.setdefault(digest, uid)

    def holder_is_gone(self, holder: str) -> bool:
        return holder in self.gone

    def _write(self, held: Versioned | None, record: Record) -> Versioned:
        trouble = self._befall()
        written = self._put(held, record)
        self.history.append(record)
        if trouble is Trouble.REPLY_LOST:
            raise StoreUnavailable("the store did not answer")
        if trouble is Trouble.OVERTAKEN:
            raise Conflict("the record was written meanwhile")
        return written

    def _put(self, held: Versioned | None, record: Record) -> Versioned:
        """Write a record over another, or as the first."""
        self._compare(record.uid, held.version if held is not None else None)
        version = 1 if held is None else int(held.version) + 1
        self._records[record.uid] = dumps(record, version)
        return Versioned(record, str(version))

    def _befall(self) -> Trouble:
        self.on_write()
        trouble = self.troubles.popleft() if self.troubles else Trouble.NONE
        if trouble is Trouble.LOST:
            raise StoreUnavailable("the store cannot be written")
        return trouble

    def _held(self, uid: str) -> Versioned | None:
        data = self._records.get(uid)
        if data is None:
            return None
        record, version = loads(data)
        return Versioned(record, str(version))

    def _compare(self, uid: str, version: str | None) -> None:
        current = self._held(uid)
        if (current.version if current is not None else None) != version:
            raise Conflict("the record was written by somebody else meanwhile")


class MemoryEscrow:
    """Implements `keyferry.escrow.Escrow`; `failing` names the operations that are refused."""

    def __init__(self) -> None:
        self.answers: dict[str, HttpResponse | None] = {}
        """By attempt id; None where the space is only reserved."""
        self.failing: set[str] = set()

    async def reserve(self, attempt_id: str) -> None:
        self._fail("reserve")
        self.answers[attempt_id] = None

    async def keep(self, attempt_id: str, answer: HttpResponse) -> None:
        self._fail("keep")
        self.answers[attempt_id] = answer

    async def recall(self, attempt_id: str) -> HttpResponse | None:
        self._fail("recall")
        return self.answers.get(attempt_id)

    async def release(self, attempt_id: str) -> None:
        self._fail("release")
        self.answers.pop(attempt_id, None)

    async def attempts(self) -> frozenset[str]:
        return frozenset(self.answers)

    def _fail(self, operation: str) -> None:
        if operation in self.failing:
            raise StoreUnavailable(f"the escrow cannot {operation}")
