"""What a replica does in the shards that it holds: the engine, and what around it hangs on whose an identity is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from keyferry.engine import Engine
    from keyferry_operator.following import Follower
    from keyferry_operator.report import ClusterReporter

LAST_WORDS: Final = 5.0
"""Seconds that the last statuses and Events are given when a shard is handed over, or the operator stops."""


@final
class ShardWork:
    """Implements ``keyferry_operator.sharing.Work``."""

    def __init__(self, engine: Engine, follower: Follower, reporter: ClusterReporter) -> None:
        self._engine = engine
        self._follower = follower
        self._reporter = reporter

    async def gain(self, shards: frozenset[int], undisturbed: frozenset[int] = frozenset()) -> None:
        """Look after the identities of more shards. Raises StoreError."""
        unknown = await self._engine.gain(shards, undisturbed)
        self._follower.resume()
        await self._follower.let_go(unknown)

    def lose(self, shards: frozenset[int]) -> None:
        """Begin nothing more, and tell nothing more."""
        self._engine.lose(shards)

    async def hand_over(self, shards: frozenset[int]) -> None:
        """Finish what is under way, and tell how it went."""
        await self._engine.hand_over(shards)
        await self._reporter.flush(LAST_WORDS)
