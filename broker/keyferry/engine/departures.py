"""Identities that go: their private state becomes the order to revoke, and their files are withdrawn."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.entry import Care
from keyferry.engine.job import order_to_revoke
from keyferry.engine.status import Event, Level
from keyferry.errors import KeyferryError, Reason
from keyferry.scheduler.lane import backoff
from keyferry.spec.identity import DeletionPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.engine.undertaker import Undertaker
    from keyferry.engine.worker import Worker
    from keyferry.model import ObjectKey
    from keyferry.record import Versioned
    from keyferry.scheduler import Agenda, Queue

log = logging.getLogger(__name__)

BUSY_LOOK: Final = 0.05
"""Seconds between looks at whether the last exchange of an identity that goes is over."""


@dataclass(slots=True, eq=False)
class Departure:
    """One identity on its way out."""

    key: ObjectKey
    uid: str
    """Empty where only its record names it, and that was not read yet."""
    policy: DeletionPolicy
    entry: Entry | None
    """None where there was only a record."""
    held: Versioned | None
    attempts: int = 0
    next_attempt: float = 0.0
    """Unix seconds."""
    taken: bool = False
    """Whether a task of the loop has it."""
    done: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Departures:
    """Lets identities go, each by name and uid: another one may have the name by then. Tries until it succeeds."""

    def __init__(
        self,
        ports: Ports,
        roster: Roster,
        agenda: Agenda,
        queue: Queue,
        worker: Worker,
        undertaker: Undertaker,
        look_at: Callable[[Iterable[ObjectKey]], None],
    ) -> None:
        """``look_at`` has the loop look at identities, and at what is leaving."""
        self._ports = ports
        self._roster = roster
        self._agenda = agenda
        self._queue = queue
        self._look_at = look_at
        self._worker = worker
        self._undertaker = undertaker
        self._leaving: dict[tuple[ObjectKey, str], Departure] = {}

    @property
    def leaving(self) -> frozenset[ObjectKey]:
        """Identities that were dropped and whose private state could not be put away yet."""
        return frozenset(key for key, _ in self._leaving)

    def dismiss(self, key: ObjectKey, uid: str = "") -> None:
        """Look after an identity no more; that it is put away follows, and is tried again where it fails.

        With ``uid``, only the identity of this uid.
        """
        entry = self._roster.entries.get(key)
        if entry is None or uid not in ("", entry.uid):
            return
        self._roster.drop_identity(key)
        self._agenda.discard(key)
        self._queue.discard(key)
        self._ports.reporter.forget(key)
        if entry.care is not Care.NONE:  # else another process puts it away
            policy = entry.resource.spec.deletion_policy
            self._leaving[key, entry.uid] = Departure(key, entry.uid, policy, entry, None)
        self._look_at(self._roster.presenters_of(key))

    def dismiss_record(self, held: Versioned) -> None:
        """Do the same for an identity of which only the record is left."""
        record = held.record
        order = record.revocation
        policy = DeletionPolicy(order.policy) if order is not None else DeletionPolicy.DELETE
        self._leaving.setdefault((record.key, record.uid), Departure(record.key, record.uid, policy, None, held))
        self._look_at(())

    def cancel(self, key: ObjectKey, uid: str) -> None:
        """Take back that an identity goes: it is declared again. An empty uid stands for whatever it was."""
        for departure in [*self._of(key, uid)]:
            departure.done = True
            del self._leaving[key, departure.uid]

    async def finish(self, key: ObjectKey, uid: str = "") -> None:
        """Put away now what leaves under this name. Raises StoreError where that fails; it is tried again."""
        for departure in [*self._of(key, uid)]:
            await self._attempt(departure)

    def is_busy(self, shards: frozenset[int]) -> bool:
        """Tell whether an identity of these shards is being put away just now."""
        busy = (each.entry for each in self._leaving.values() if each.turn.locked() and each.entry is not None)
        return any(self._roster.shard_of(entry) in shards for entry in busy)

    def next_time(self) -> float:
        """Return when to try next (Unix seconds), infinity where nothing is leaving."""
        times = (each.next_attempt for each in self._leaving.values() if not each.taken)
        return min(times, default=float("inf"))

    def take_due(self, now: float) -> list[Departure]:
        """Return what is to be put away now, each to be handed to ``work``."""
        due = [each for each in self._leaving.values() if each.next_attempt <= now and not each.taken]
        for departure in due:
            departure.taken = True
        return due

    async def work(self, departure: Departure) -> None:
        """Put away one, or plan the next try. Raises nothing."""
        try:
            await self._attempt(departure)
        except KeyferryError as error:
            log.warning(
                "the private state of ServiceIdentity %s, which is gone, could not be put away yet: %s. It is tried"
                " again.",
                departure.key,
                error,
            )
        except Exception as error:  # noqa: BLE001 - its message may hold anything
            log.error("unexpected %s while letting %s go", type(error).__name__, departure.key)  # noqa: TRY400
        finally:
            departure.taken = False

    def _of(self, key: ObjectKey, uid: str) -> Iterator[Departure]:
        return (each for each in self._leaving.values() if each.key == key and uid in ("", each.uid))

    async def _attempt(self, departure: Departure) -> None:
        async with departure.turn:
            if departure.done:
                return
            departure.attempts += 1
            # Should it end in a way that nobody foresaw, it is tried again as well.
            pause = backoff(departure.attempts, self._ports.rng.random())
            departure.next_attempt = self._ports.clock.now() + pause
            await self._put_away(departure)
            if not departure.done:
                departure.done = True
                del self._leaving[departure.key, departure.uid]
        # Whoever has the name now may have been planned by the one that went.
        self._look_at([departure.key])

    async def _put_away(self, departure: Departure) -> None:
        entry, held = departure.entry, departure.held
        if entry is not None:
            while entry.busy:  # a spend under way is finished, so that what it brings is revoked as well
                await self._ports.clock.sleep(BUSY_LOOK)
            await self._worker.last_look(entry)
        if departure.done:  # taken back meanwhile
            return
        if held is None or departure.attempts > 1:
            held = await self._ports.store.read(departure.key, entry.uid if entry is not None else departure.uid)
        if held is None and departure.attempts > 1:
            # It was put away by an earlier try, whose answer was lost.
            await self._undertaker.load(frozenset())
        if held is not None and entry is not None:
            held = self._with_order(entry, held)
        await self._let_go(departure, held)

    async def _let_go(self, departure: Departure, held: Versioned | None) -> None:
        """Bury the record, then withdraw the files; Retain leaves them, with nobody to renew them."""
        key = departure.key
        if held is not None and held.record.origin != self._ports.store.origin:
            return  # another state's: neither its credentials nor its files are ours to touch
        if held is not None:
            buried = replace(held, record=replace(held.record, buried_at=self._ports.clock.now()))
            await self._ports.store.bury(buried)
            self._undertaker.add(buried)
        if departure.policy is not DeletionPolicy.RETAIN:
            try:
                await self._ports.publisher.withdraw(key, held.record.uid if held is not None else departure.uid)
            except KeyferryError as error:
                self._ports.reporter.event(Event(Level.WARNING, "withdraw_failed", error.reason, error.message, key))
        if key not in self._roster.entries:
            await self._ports.reporter.remember(key, None)
        self._ports.reporter.event(Event(Level.INFO, "removed", Reason.ISSUED, f"ServiceIdentity {key} is gone", key))

    def _with_order(self, entry: Entry, held: Versioned) -> Versioned:
        """Return the record with the order to revoke as the resources say it now, not as the last exchange noted it.

        What was only published, and read again after a restart, has no order yet.
        """
        record = replace(held.record, shard=self._roster.shard_name(entry))
        provider = self._roster.provider_of(entry)
        if provider is not None:
            noted = record.revocation or order_to_revoke(entry.resource.spec, provider)
            order = replace(noted, policy=entry.resource.spec.deletion_policy.value)
            record = replace(record, revocation=order)
        return replace(held, record=record)
