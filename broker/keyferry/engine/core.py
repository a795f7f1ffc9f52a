"""The engine: which identity is worked on when, and what follows from how it went."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.engine.chain import IdentityChain
from keyferry.engine.credentials import Reference, Referent
from keyferry.engine.departures import Departures
from keyferry.engine.desk import Desk
from keyferry.engine.loop import Loop, Waive
from keyferry.engine.provider import Drivers
from keyferry.engine.roster import Roster
from keyferry.engine.survey import survey
from keyferry.engine.undertaker import Undertaker
from keyferry.engine.worker import Worker
from keyferry.errors import Reason
from keyferry.scheduler import Agenda, Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from keyferry.engine.entry import Entry, ProviderKey
    from keyferry.engine.ports import Ports
    from keyferry.engine.status import IdentityStatus
    from keyferry.engine.survey import Findings
    from keyferry.errors import KeyferryError
    from keyferry.ledger import Checkpoint
    from keyferry.model import ObjectKey
    from keyferry.record import Versioned
    from keyferry.spec.resources import IdentityResource, ProviderResource

RENEW_INTERVAL: Final = 60.0
"""Seconds between renewals on demand of one identity."""
TAKEN_UP_AT_ONCE: Final = 500
"""Stored records that are decided on at the start with one look at what is published."""
DRAIN: Final = 60.0
"""Seconds that exchanges under way are given to finish when the engine stops."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine behaves; the defaults are right for people."""

    holder: str
    suspend_all: bool = False
    """Start without exchanging anything (after a restore)."""
    renew_interval: float = RENEW_INTERVAL
    drain: float = DRAIN


class Engine:
    """Keeps the tokens of all declared identities fresh. Everything runs in one event loop."""

    def __init__(self, ports: Ports, settings: EngineSettings, *, checkpoint: Checkpoint | None = None) -> None:
        self._ports = ports
        self._settings = settings
        self._drivers = Drivers(ports)
        self.roster = Roster(ports, self._drivers)
        self._chain = IdentityChain(ports, self.roster, self._nudge)
        self._undertaker = Undertaker(ports, self.roster, self._drivers, self._chain)
        self._agenda = Agenda()
        self._queue = Queue()
        self.exchange_seconds: Callable[[str, float], None] = lambda _provider, _seconds: None
        """Observes how long a request took; for metrics."""
        self._worker = Worker(
            ports,
            self.roster,
            Desk(ports, settings.holder, self._chain, checkpoint, lambda: not self._loop.stopping),
            self._chain,
            self._agenda,
            self._queue,
            suspend_all=settings.suspend_all,
            observe_seconds=self._observe_seconds,
        )
        self._departures = Departures(
            ports, self.roster, self._agenda, self._queue, self._worker, self._undertaker, self._look_at
        )
        self._loop = Loop(
            ports,
            self.roster,
            self._agenda,
            self._queue,
            self._worker,
            self._undertaker,
            self._departures,
            suspend_all=settings.suspend_all,
            drain=settings.drain,
        )
        self.open_claims: set[str] = set()
        """Attempt ids of the claims that were open when the engine started."""

    # --- what is declared ---------------------------------------------------------------------------------------------

    def declare_provider(self, resource: ProviderResource) -> None:
        """Take in a new or changed provider, and look at the identities that use it."""
        self._loop.look_at(self.roster.declare_provider(resource), waive=Waive.IF_CHANGED)

    def drop_provider(self, key: ProviderKey) -> None:
        """Forget a provider."""
        known = self.roster.providers.get(key)
        if known is not None:
            self._queue.drain_lane(known.lane_name)
        self._loop.look_at(self.roster.drop_provider(key))

    def refuse_provider(self, key: ProviderKey, error: KeyferryError) -> None:
        """Say that a provider's new version is not valid; its last good version, where there is one, goes on."""
        users = self.roster.refuse_provider(key, error)
        if key in self.roster.providers:
            for user in users:
                self.refuse_identity(user, error)
        else:
            self._loop.look_at(users)

    def recheck_namespace(self, namespace: str) -> None:
        """Look at the identities of a namespace whose labels changed: providers are offered by those."""
        self._loop.look_at(self.roster.recheck_namespace(namespace), waive=Waive.IF_CHANGED)

    async def survey(self, key: ProviderKey, *, afresh: bool = False) -> Findings | None:
        """Return what is known of a provider; None where it is not declared."""
        provider = self.roster.providers.get(key)
        if provider is None:
            return None
        return await survey(
            provider, self._ports, lambda seconds: self._observe_seconds(provider.name, seconds), afresh=afresh
        )

    def declare_identity(self, resource: IdentityResource) -> None:
        """Take in a new or changed identity; a change waives its backoff.

        One of the same name and another uid is another identity: the old one is let go.
        """
        known = self.roster.entries.get(resource.key)
        if known is not None and resource.uid and known.uid and known.uid != resource.uid:
            self._departures.dismiss(resource.key)  # it was created again under the same name
        elif known is not None and known.resource.spec == resource.spec:
            known.resource = resource
            return
        self._departures.cancel(resource.key, resource.uid)
        self._queue.discard(resource.key)  # it may have waited for another provider
        entry = self.roster.declare_identity(resource)
        self._loop.look_at({entry.key}, waive=Waive.ALWAYS)
        self._loop.look_at(self.roster.presenters_of(entry.key), waive=Waive.ALWAYS)

    def refuse_identity(self, key: ObjectKey, error: KeyferryError) -> None:
        """Say that an identity's, or its provider's, new version is not valid; the last good version goes on."""
        entry = self.roster.entries.get(key)
        if entry is not None:
            self._ports.reporter.report(entry.status(error.reason, error.message))

    async def drop_identity(self, key: ObjectKey) -> None:
        """Let an identity go: bury its private state as an order to revoke, and withdraw its files.

        Raises StoreError where its state cannot be put away; it is then one of ``leaving``, and tried again.
        """
        self._departures.dismiss(key)
        await self._departures.finish(key)

    def dismiss_identity(self, key: ObjectKey, uid: str) -> None:
        """Let the identity of this name and uid go as soon as can be; what fails is tried again."""
        self._departures.dismiss(key, uid)

    def dismiss_record(self, held: Versioned) -> None:
        """Do the same for an identity of which only the record is left."""
        self._departures.dismiss_record(held)

    @property
    def leaving(self) -> frozenset[ObjectKey]:
        """Identities that were dropped and whose private state could not be put away yet."""
        return self._departures.leaving

    @property
    def open_revocations(self) -> int:
        """How many identities that are gone have credentials still to be revoked."""
        return self._undertaker.open_orders

    async def let_go_record(self, held: Versioned) -> None:
        """Let an identity go of which only the record is left. Raises StoreError; it is tried again."""
        self._departures.dismiss_record(held)
        await self._departures.finish(held.record.key, held.record.uid)

    def credentials_changed(self, references: Iterable[Reference]) -> None:
        """Wake exactly the identities that use what changed; their backoff is waived."""
        for reference in references:
            # No fingerprint tells whether a ServiceAccount was labelled meanwhile.
            waive = Waive.ALWAYS if reference.kind is Referent.SERVICE_ACCOUNT else Waive.IF_CHANGED
            self._loop.look_at(self.roster.users_of(reference), waive=waive)

    # --- what people ask for ------------------------------------------------------------------------------------------

    def renew(self, key: ObjectKey) -> float:
        """Renew now; return 0, or for how many seconds that is still refused (once a minute at most)."""
        entry = self.roster.entries[key]
        now = self._ports.clock.monotonic()
        wait = entry.last_renewal + self._settings.renew_interval - now
        if wait > 0:
            return wait
        entry.last_renewal = now
        entry.renew = True
        self._loop.look_at({key}, waive=Waive.ALWAYS)
        return 0.0

    def want(self, key: ObjectKey, minimum_remaining: float) -> float:
        """Ask for a token that lives for at least so many seconds more; renews at a bounded rate.

        Returns 0, or for how many seconds a renewal is still refused.
        """
        entry = self.roster.entries[key]
        left = entry.expiration_time - self._ports.clock.now()
        now = self._ports.clock.monotonic()
        if left >= minimum_remaining:
            return 0.0
        if left <= 0:  # that is worked on without being asked, and must not use up the next request
            self._loop.look_at({key})
            return 0.0
        wait = entry.last_renewal + self._settings.renew_interval - now
        if wait > 0:
            return wait
        entry.last_renewal = now
        entry.wanted_remaining = minimum_remaining
        self._loop.look_at({key})
        return 0.0

    def republish(self, key: ObjectKey) -> None:
        """Look at an identity whose files are missing or changed."""
        self._loop.look_at({key})

    def status(self, key: ObjectKey) -> IdentityStatus:
        """Return the status of one identity. Raises KeyError."""
        return self._status(self.roster.entries[key])

    def statuses(self) -> list[IdentityStatus]:
        """Return the status of every identity, by namespace and name."""
        return [self._status(self.roster.entries[key]) for key in sorted(self.roster.entries)]

    async def wait_for(self, key: ObjectKey, done: Callable[[IdentityStatus], bool], patience: float) -> bool:
        """Wait until an identity's status satisfies ``done``; False when ``patience`` seconds passed first."""
        changed = asyncio.Event()
        self._loop.watchers.add(changed)
        try:
            async with asyncio.timeout(patience):
                while key not in self.roster.entries or not done(self.status(key)):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return False
        finally:
            self._loop.watchers.discard(changed)
        return True

    def queue_depth(self) -> int:
        """How many identities wait for an exchange."""
        return len(self._queue)

    def lanes(self) -> dict[str, Any]:
        """Return the providers' lanes by name; for metrics."""
        return {provider.lane_name: provider.lane for provider in self.roster.providers.values()}

    # --- the work -----------------------------------------------------------------------------------------------------

    async def start(self) -> list[Versioned]:
        """Rebuild the schedule from what is stored, without an exchange and without a write.

        Returns the records of which no identity is declared. Raises StoreError.
        """
        for key, failure in (await self._ports.reporter.failures()).items():
            entry = self.roster.entries.get(key)
            if entry is not None:
                entry.failure = failure
                entry.failure_kept = True
        unknown: list[Versioned] = []
        seen: set[ObjectKey] = set()
        alive: set[str] = set()
        stored: list[tuple[Entry, Versioned]] = []
        async for held in self._ports.store.records():
            entry = self.roster.entries.get(held.record.key)
            if entry is None or (entry.uid and entry.uid != held.record.uid):
                unknown.append(held)  # gone, or created again under the same name
                continue
            seen.add(entry.key)
            alive.add(held.record.uid)
            if held.record.claim is not None:
                self.open_claims.add(held.record.claim.attempt_id)
            stored.append((entry, held))
            if len(stored) >= TAKEN_UP_AT_ONCE:
                await self._worker.take_up(stored)
                stored = []
        await self._worker.take_up(stored)
        await self._undertaker.load(alive)
        self._loop.started = True
        for key in self.roster.entries.keys() - seen:
            await self._worker.begin(self.roster.entries[key])
        return unknown

    async def run(self) -> None:
        """Work until ``stop`` is called, then finish what is under way."""
        await self._loop.run()

    def stop(self) -> None:
        """Start nothing new; ``run`` returns when spends and commits under way are done."""
        self._loop.stop()

    async def close(self) -> None:
        """Close the connections."""
        await self._drivers.close()

    def _nudge(self, key: ObjectKey) -> None:
        self._loop.look_at({key})

    def _look_at(self, keys: Iterable[ObjectKey]) -> None:
        self._loop.look_at(keys)

    def _observe_seconds(self, provider: str, seconds: float) -> None:
        self.exchange_seconds(provider, seconds)

    def _status(self, entry: Entry) -> IdentityStatus:
        reason, message = entry.reported or (Reason.PENDING, "")
        return entry.status(reason, message)
