"""Which identities this engine looks after: those of the shards that it holds, and none while they change hands."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from keyferry.engine.entry import Care
from keyferry.engine.status import APPROVAL_PENDING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from keyferry.engine.departures import Departures
    from keyferry.engine.entry import Entry
    from keyferry.engine.loop import Loop
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.engine.undertaker import Undertaker
    from keyferry.engine.worker import Worker
    from keyferry.model import ObjectKey
    from keyferry.record import Versioned

TAKEN_UP_AT_ONCE: Final = 500
"""Stored records that are decided on with one look at what is published."""
LOOK: Final = 0.05
"""Seconds between looks at whether what is under way is over."""


class Custody:
    """Takes identities up, with no exchange and no write, and stops looking after them, with nothing buried."""

    def __init__(
        self,
        ports: Ports,
        roster: Roster,
        worker: Worker,
        undertaker: Undertaker,
        departures: Departures,
        loop: Loop,
        *,
        drain: float,
    ) -> None:
        """``drain`` is for how many seconds what is under way may go on when a shard is handed over."""
        self._ports = ports
        self._roster = roster
        self._shards = roster.shards
        self._worker = worker
        self._undertaker = undertaker
        self._departures = departures
        self._loop = loop
        self._drain = drain
        self._gaining: frozenset[int] = frozenset()
        self._lost: dict[int, set[Entry]] = {}
        """By shard that was lost, whom it held then."""
        self._turn = asyncio.Lock()
        self.open_claims: set[str] = set()
        """Attempt ids of the claims and approvals that were open when their identities were taken up."""

    async def rescue(self, attempt_ids: Collection[str]) -> frozenset[str]:
        """Commit the answers in the escrow that open claims of declared identities wait for (see ``Engine.rescue``)."""
        wanted = set()
        async for held in self._ports.store.records():
            claims = {claim.attempt_id for claim in held.record.claims} & set(attempt_ids)
            if not claims:
                continue
            wanted |= claims
            entry = self._roster.entries.get(held.record.key)
            if entry is not None and entry.uid in ("", held.record.uid):
                await self._worker.last_look(entry)
        return frozenset(wanted)

    # --- gaining ------------------------------------------------------------------------------------------------------

    async def gain(self, shards: frozenset[int], undisturbed: frozenset[int]) -> list[Versioned]:
        """Look after the identities of more shards, from what is stored of them.

        Those of ``undisturbed`` were lost, and nobody else had them since: there it goes on with what it knows, among
        which may be tokens that could not be written meanwhile.

        Returns the records of which no identity is declared, where it falls to one of these shards to put them away.
        Raises StoreError; then no shard is gained, and it is to be tried again.
        """
        async with self._turn:
            for shard in (shards & undisturbed & self._lost.keys()) - self._shards.held:
                self._resume(shard)
            self._gaining = shards - self._shards.held
            try:
                return await self._gain(self._gaining) if self._gaining else []
            finally:
                self._gaining = frozenset()

    def _resume(self, shard: int) -> None:
        self._shards.held |= {shard}
        known = self._lost.pop(shard)
        for entry in list(self._roster.entries.values()):
            if self._roster.shard_of(entry) != shard or entry.care is Care.FULL:
                continue
            if entry in known:
                entry.care = Care.FULL
                entry.publish_failure = None
                self._loop.look_at({entry.key})
            else:
                self._adopt(entry)

    async def _gain(self, shards: frozenset[int]) -> list[Versioned]:
        chosen = {
            entry.key: entry
            for entry in self._roster.entries.values()
            if entry.care is Care.NONE and not entry.busy and self._roster.shard_of(entry) in shards
        }
        for key, entry in chosen.items():
            self._ports.store.forget(key, entry.uid)
            entry.begin_anew()
        for shard in shards:
            self._lost.pop(shard, None)
        self._undertaker.drop(shards)
        await self._recall_failures(chosen)
        known = frozenset(entry.uid for key, entry in self._roster.entries.items() if key not in chosen)
        unknown: list[Versioned] = []
        alive: set[str] = set()
        stored: list[tuple[Entry, Versioned]] = []
        async for held in self._ports.store.records(known - {""}):
            taken = chosen.get(held.record.key)
            if taken is None or taken.uid not in ("", held.record.uid):
                if self._shards.of_order(held.record) in shards and not self._is_declared(held):
                    unknown.append(held)  # gone, or created again under the same name
                continue
            del chosen[taken.key]
            alive.add(held.record.uid)
            self.open_claims |= {claim.attempt_id for claim in held.record.claims}
            if held.record.approval is not None:
                self.open_claims.add(held.record.approval.attempt_id)
            stored.append((taken, held))
            if len(stored) >= TAKEN_UP_AT_ONCE:
                await self._take_up(stored)
                stored = []
        await self._take_up(stored)
        await self._undertaker.load(alive, shards)
        self._shards.held |= self._gaining
        await self._begin_rest(chosen)
        return unknown

    def _is_declared(self, held: Versioned) -> bool:
        entry = self._roster.entries.get(held.record.key)
        return entry is not None and entry.uid in ("", held.record.uid)

    async def _recall_failures(self, chosen: dict[ObjectKey, Entry]) -> None:
        for key, failure in (await self._ports.reporter.failures()).items():
            entry = chosen.get(key)
            if entry is not None:
                entry.failure_kept = True
                if failure.code != APPROVAL_PENDING:  # the private state knows whether a person is still being asked
                    entry.failure = failure

    async def _take_up(self, stored: list[tuple[Entry, Versioned]]) -> None:
        ours = [(entry, held) for entry, held in stored if self._is_gained(entry)]
        for entry, _ in ours:
            entry.care = Care.FULL
        await self._worker.take_up(ours)
        self._loop.look_at(())

    async def _begin_rest(self, unstored: Collection[ObjectKey]) -> None:
        """Begin with those of which nothing is stored, and look at those that came while the records were read."""
        for entry in list(self._roster.entries.values()):
            if entry.care is Care.FULL or self._roster.shard_of(entry) not in self._shards.held:
                continue
            if entry.key in unstored:
                entry.care = Care.FULL
                await self._worker.begin(entry)
            else:
                self._adopt(entry)
        self._loop.look_at(())

    def _is_gained(self, entry: Entry) -> bool:
        """Tell whether an entry is still to be taken up: it may be gone, or the shard lost, by now."""
        return self._roster.entries.get(entry.key) is entry and self._roster.shard_of(entry) in self._gaining

    # --- one identity that moves --------------------------------------------------------------------------------------

    def assign(self, keys: Iterable[ObjectKey]) -> None:
        """Take up, or leave to others, the identities whose provider is new, or another one now."""
        for key in keys:
            entry = self._roster.entries.get(key)
            if entry is None:
                continue
            ours = self._roster.shard_of(entry) in self._shards.held
            if ours and entry.care is not Care.FULL:
                self._adopt(entry)
            elif not ours and entry.care is Care.FULL:
                self._leave(entry, Care.NONE)

    async def strays(self) -> list[Versioned]:
        """Look again for what falls to us: return records of which no identity is declared. Raises StoreError.

        What an identity leaves while its shard changes hands is seen by nobody at first.
        """
        known = frozenset(entry.uid for entry in self._roster.entries.values()) - {""}
        found = [
            held
            async for held in self._ports.store.records(known)
            if self._shards.of_order(held.record) in self._shards.held and not self._is_declared(held)
        ]
        await self._undertaker.load(frozenset(), self._shards.held)
        return found

    def welcome(self, entry: Entry) -> None:
        """Look after an identity that was just declared for the first time, where it is ours."""
        if self._roster.shard_of(entry) in self._shards.held:
            entry.care = Care.FULL

    def _adopt(self, entry: Entry) -> None:
        """Look after an identity that another process may have worked on until now."""
        if not entry.busy:
            self._ports.store.forget(entry.key, entry.uid)
            entry.begin_anew()
        entry.care = Care.FULL
        self._loop.look_at({entry.key})

    # --- leaving shards to others -------------------------------------------------------------------------------------

    def lose(self, shards: frozenset[int]) -> None:
        """Begin nothing more in shards that another process may work on already; nothing more is told of them.

        What is being spent is finished all the same: its claim keeps others from it.
        """
        held = shards & self._shards.held
        left = self._quit(shards, Care.NONE)
        for shard in held:
            self._lost[shard] = {entry for entry in left if self._roster.shard_of(entry) == shard}

    async def hand_over(self, shards: frozenset[int]) -> None:
        """Finish what is under way in these shards, for as long as ``drain``, and stop looking after them."""
        entries = self._quit(shards, Care.ENDING)
        deadline = self._ports.clock.monotonic() + self._drain
        while self._is_busy(entries, shards) and self._ports.clock.monotonic() < deadline:
            await self._ports.clock.sleep(LOOK)
        self._undertaker.drop(shards)
        for entry in entries:
            if entry.care is Care.ENDING:
                entry.care = Care.NONE
            if entry.care is Care.NONE and not entry.busy:
                self._ports.store.forget(entry.key, entry.uid)

    def _quit(self, shards: frozenset[int], care: Care) -> list[Entry]:
        self._shards.held -= shards
        self._gaining -= shards
        left = [
            entry
            for entry in self._roster.entries.values()
            if entry.care is not Care.NONE and self._roster.shard_of(entry) in shards
        ]
        for entry in left:
            self._leave(entry, care)
        return left

    def _leave(self, entry: Entry, care: Care) -> None:
        entry.care = care
        self._loop.discard(entry.key)
        if care is Care.NONE:
            self._ports.reporter.forget(entry.key)

    def _is_busy(self, entries: list[Entry], shards: frozenset[int]) -> bool:
        return (
            any(entry.busy for entry in entries)
            or self._departures.is_busy(shards)
            or self._undertaker.is_working(shards)
        )
