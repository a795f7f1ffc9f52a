"""What the ledger asks of the place that keeps a raw answer between its arrival and its commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keyferry.model import HttpResponse


class Escrow(Protocol):
    """Keeps answers by attempt id, on storage that outlives the process."""

    async def reserve(self, attempt_id: str) -> None:
        """Set space aside, so that a full disk is noticed before a credential is spent. Raises StoreUnavailable.

        An attempt may have space already: an approval is asked about under one id by one process after another.
        """
        ...

    async def keep(self, attempt_id: str, answer: HttpResponse) -> None:
        """Write the answer durably. Raises StoreUnavailable."""
        ...

    async def recall(self, attempt_id: str) -> HttpResponse | None:
        """Return a whole answer that was kept, or None."""
        ...

    async def release(self, attempt_id: str) -> None:
        """Forget the answer and its space."""
        ...

    async def attempts(self) -> frozenset[str]:
        """Return the ids of all attempts that have an answer or space here. Raises StoreUnavailable."""
        ...
