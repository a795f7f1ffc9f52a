"""Identities that go: their private state becomes the order to revoke, and their files are withdrawn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from keyferry.engine.status import Event, Level
from keyferry.errors import KeyferryError, Reason
from keyferry.spec.identity import DeletionPolicy

if TYPE_CHECKING:
    from keyferry.engine.entry import Entry
    from keyferry.engine.loop import Loop
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.engine.undertaker import Undertaker
    from keyferry.engine.worker import Worker
    from keyferry.model import ObjectKey
    from keyferry.record import Versioned
    from keyferry.scheduler import Agenda, Queue


class Departures:
    """Lets identities go."""

    def __init__(
        self,
        ports: Ports,
        roster: Roster,
        agenda: Agenda,
        queue: Queue,
        worker: Worker,
        undertaker: Undertaker,
        loop: Loop,
    ) -> None:
        self._ports = ports
        self._roster = roster
        self._agenda = agenda
        self._queue = queue
        self._loop = loop
        self._worker = worker
        self._undertaker = undertaker
        self._leaving: dict[ObjectKey, DeletionPolicy] = {}

    async def drop(self, key: ObjectKey) -> None:
        """Let an identity go: bury its private state as an order to revoke, and withdraw its files.

        Raises StoreError where its state cannot be put away; it is then one of ``leaving``, to be dropped again.
        """
        entry = self._roster.drop_identity(key)
        self._agenda.discard(key)
        self._queue.discard(key)
        if entry is not None:
            self._leaving[key] = entry.resource.spec.deletion_policy
            while entry.busy:  # a spend under way is finished, so that what it brings is revoked as well
                await self._ports.clock.sleep(0.05)
            self._agenda.discard(key)
            self._queue.discard(key)
            await self._worker.last_look(entry)
            self._ports.reporter.forget(key)
            self._loop.look_at(self._roster.presenters_of(key))
        if key in self._leaving:
            held = await self._ports.store.read(key)
            if held is not None and entry is not None:
                held = self._with_order(entry, held)
            await self._let_go(key, self._leaving[key], held)
            self._leaving.pop(key, None)

    def cancel(self, key: ObjectKey) -> None:
        """Take back that an identity goes: it is declared again."""
        self._leaving.pop(key, None)

    @property
    def leaving(self) -> frozenset[ObjectKey]:
        """Identities that were dropped and whose private state could not be put away yet."""
        return frozenset(self._leaving)

    async def let_go_record(self, held: Versioned) -> None:
        """Let an identity go of which only the record is left."""
        order = held.record.revocation
        policy = DeletionPolicy(order.policy) if order is not None else DeletionPolicy.DELETE
        await self._let_go(held.record.key, policy, held)

    async def _let_go(self, key: ObjectKey, policy: DeletionPolicy, held: Versioned | None) -> None:
        """Bury the record, then withdraw the files; Retain leaves them, with nobody to renew them."""
        if held is not None and held.record.origin != self._ports.store.origin:
            return  # another state's: neither its credentials nor its files are ours to touch
        if held is not None:
            buried = replace(held, record=replace(held.record, buried_at=self._ports.clock.now()))
            await self._ports.store.bury(buried)
            self._undertaker.add(buried)
        if policy is not DeletionPolicy.RETAIN:
            try:
                await self._ports.publisher.withdraw(key)
            except KeyferryError as error:
                self._ports.reporter.event(Event(Level.WARNING, "withdraw_failed", error.reason, error.message, key))
        await self._ports.reporter.remember(key, None)
        self._ports.reporter.event(Event(Level.INFO, "removed", Reason.ISSUED, f"ServiceIdentity {key} is gone", key))
        self._loop.wake()

    def _with_order(self, entry: Entry, held: Versioned) -> Versioned:
        """Return the record with the order to revoke as the resources say it now, not as the last exchange noted it."""
        provider = self._roster.provider_of(entry)
        if provider is None or held.record.revocation is None:
            return held
        order = replace(held.record.revocation, policy=entry.resource.spec.deletion_policy.value)
        return replace(held, record=replace(held.record, revocation=order))
