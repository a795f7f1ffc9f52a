"""Shards: how several processes share the identities.

An identity falls to the shard of its provider, so that a provider's rate and breaker are whole in one process.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyferry.record import Record


class Shards:
    """Which of so many shards this process works on."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.held: frozenset[int] = frozenset()

    @property
    def all(self) -> frozenset[int]:
        """Every shard there is."""
        return frozenset(range(self.count))

    def of(self, provider: str) -> int:
        """Return the shard of a provider, by its uid, or by its name where it has none or is not there."""
        if self.count == 1:
            return 0
        digest = hashlib.sha256(provider.encode()).digest()
        return int.from_bytes(digest[:8]) % self.count

    def of_order(self, record: Record) -> int:
        """Return the shard whose holder puts away, and revokes, what an identity that is gone has left."""
        return self.of(record.shard) if record.shard else 0
