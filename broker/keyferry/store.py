"""What the engine asks of the place where private state lives: a directory, or Secrets in the operator's namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Set as AbstractSet

    from keyferry.model import ObjectKey
    from keyferry.record import Record, Versioned


class Store(Protocol):
    """Records with compare-and-swap. Every method may raise StoreUnavailable; none leaves a record half-written."""

    origin: str
    """Names this state; a record that carries another name came from elsewhere (a clone, a wrong restore)."""

    digest_key: bytes
    """Secret key of the fingerprints that stand in records and tombstones."""

    async def read(self, key: ObjectKey, uid: str) -> Versioned | None:
        """Return the record of the identity of this name and uid as it is now, never from a cache.

        ``uid`` is empty where nothing but the record itself would name it. A store that keeps records by name alone
        returns whatever has the name, and its uid is for the caller to compare.
        """
        ...

    def forget(self, key: ObjectKey, uid: str) -> None:
        """Remember nothing of an identity: another process may write its record, or has written it."""
        ...

    def records(self, known: AbstractSet[str] = frozenset()) -> AsyncIterator[Versioned]:
        """Yield every record there is, one at a time; those of the uids in ``known`` need not be told."""
        ...

    async def create(self, record: Record) -> Versioned:
        """Write the first version. Raises Conflict when there is a record already."""
        ...

    async def replace(self, held: Versioned, record: Record) -> Versioned:
        """Write ``record`` if the stored version is still ``held``'s. Raises Conflict otherwise."""
        ...

    async def bury(self, held: Versioned) -> None:
        """Turn the record of an identity that is gone into an order to revoke. Raises Conflict."""
        ...

    def buried(self) -> AsyncIterator[Versioned]:
        """Yield the orders to revoke."""
        ...

    async def settle(self, held: Versioned) -> None:
        """Forget an order to revoke that is done with."""
        ...

    async def user_of(self, digest: str) -> str:
        """Return the uid that uses the seed with this digest, empty where it was never used."""
        ...

    async def tombstone(self, digest: str, uid: str) -> str:
        """Remember that ``uid`` uses the seed with this digest, unless somebody does; return whose it is."""
        ...

    def holder_is_gone(self, holder: str) -> bool:
        """Tell whether the process that made a claim is known to have ended (never a guess)."""
        ...
