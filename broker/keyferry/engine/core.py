"""The engine: which identity is worked on when, and what follows from how it went."""

from __future__ import annotations

import asyncio
import enum
import logging
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.chain import IdentityChain
from keyferry.engine.desk import Desk
from keyferry.engine.provider import Drivers
from keyferry.engine.roster import Roster
from keyferry.engine.status import Event, IdentityStatus, Level
from keyferry.engine.undertaker import Undertaker
from keyferry.engine.worker import Worker
from keyferry.errors import KeyferryError, Reason
from keyferry.plan import CLOCK_LEEWAY
from keyferry.scheduler import Agenda, Queue
from keyferry.spec.identity import DeletionPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from keyferry.engine.credentials import Reference
    from keyferry.engine.entry import Entry, ProviderKey
    from keyferry.engine.ports import Ports
    from keyferry.ledger import Checkpoint
    from keyferry.model import ObjectKey
    from keyferry.record import Record, Versioned
    from keyferry.spec.resources import IdentityResource, ProviderResource

log = logging.getLogger(__name__)

LONGEST_SLEEP: Final = 30.0
"""Seconds after which the wall clock is read again: it may have jumped, or the machine have slept."""
RENEW_INTERVAL: Final = 60.0
"""Seconds between renewals on demand of one identity."""
CHECKS_AT_ONCE: Final = 32
TAKEN_UP_AT_ONCE: Final = 500
"""Stored records that are decided on at the start with one look at what is published."""
UNEXPECTED_WAIT: Final = 60.0
"""Seconds after which a turn that met a defect of ours is tried again."""
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


class Waive(enum.Enum):
    """Whether looking at an identity forgives its last failure."""

    NEVER = enum.auto()
    IF_CHANGED = enum.auto()
    """Where only a change helps, it has to be a change of what failed: a refused password is not tried again because
    another key of its Secret, or the provider's rate, is another now."""
    ALWAYS = enum.auto()


class Engine:
    """Keeps the tokens of all declared identities fresh. Everything runs in one event loop."""

    def __init__(self, ports: Ports, settings: EngineSettings, *, checkpoint: Checkpoint | None = None) -> None:
        self._ports = ports
        self._settings = settings
        self._stopping = False
        self._drivers = Drivers(ports)
        self.roster = Roster(ports, self._drivers)
        self._chain = IdentityChain(ports, self.roster, self._nudge)
        self._desk = Desk(ports, settings.holder, self._chain, checkpoint, lambda: not self._stopping)
        self._undertaker = Undertaker(ports, self._drivers, self._chain, self._in_use)
        self._agenda = Agenda()
        self._queue = Queue()
        self.exchange_seconds: Callable[[str, float], None] = lambda _provider, _seconds: None
        """Observes how long a request took; for metrics."""
        self._worker = Worker(
            ports,
            self.roster,
            self._desk,
            self._chain,
            self._agenda,
            self._queue,
            suspend_all=settings.suspend_all,
            observe_seconds=self._observe_seconds,
        )
        self.open_claims: set[str] = set()
        """Attempt ids of the claims that were open when the engine started."""
        self._revoking: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking = 0
        self._started = False
        self._watchers: set[asyncio.Event] = set()
        self._leaving: dict[ObjectKey, DeletionPolicy] = {}
        self._clock_offset = ports.clock.now() - ports.clock.boottime()

    # --- what is declared ---------------------------------------------------------------------------------------------

    def declare_provider(self, resource: ProviderResource) -> None:
        """Take in a new or changed provider, and look at the identities that use it."""
        self._look_at(self.roster.declare_provider(resource), waive=Waive.IF_CHANGED)

    def drop_provider(self, key: ProviderKey) -> None:
        """Forget a provider."""
        known = self.roster.providers.get(key)
        if known is not None:
            self._queue.drain_lane(known.lane_name)
        self._look_at(self.roster.drop_provider(key))

    def declare_identity(self, resource: IdentityResource) -> None:
        """Take in a new or changed identity; a change waives its backoff."""
        known = self.roster.entries.get(resource.key)
        if known is not None and known.resource.spec == resource.spec:
            known.resource = resource
            return
        self._leaving.pop(resource.key, None)
        self._queue.discard(resource.key)  # it may have waited for another provider
        entry = self.roster.declare_identity(resource)
        self._look_at({entry.key}, waive=Waive.ALWAYS)
        self._look_at(self.roster.presenters_of(entry.key), waive=Waive.ALWAYS)

    def refuse_identity(self, key: ObjectKey, error: KeyferryError) -> None:
        """Say that an identity's new version is not valid; its last good version goes on."""
        entry = self.roster.entries.get(key)
        if entry is not None:
            self._ports.reporter.report(entry.status(error.reason, error.message))

    async def drop_identity(self, key: ObjectKey) -> None:
        """Let an identity go: bury its private state as an order to revoke, and withdraw its files.

        Raises StoreError where its state cannot be put away; it is then one of ``leaving``, to be dropped again.
        """
        entry = self.roster.drop_identity(key)
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
            self._look_at(self.roster.presenters_of(key))
        if key in self._leaving:
            held = await self._ports.store.read(key)
            if held is not None and entry is not None:
                held = self._with_order(entry, held)
            await self._let_go(key, self._leaving[key], held)
            self._leaving.pop(key, None)

    @property
    def leaving(self) -> frozenset[ObjectKey]:
        """Identities that were dropped and whose private state could not be put away yet."""
        return frozenset(self._leaving)

    @property
    def open_revocations(self) -> int:
        """How many identities that are gone have credentials still to be revoked."""
        return self._undertaker.open_orders

    async def let_go_record(self, held: Versioned) -> None:
        """Let an identity go of which only the record is left."""
        order = held.record.revocation
        policy = DeletionPolicy(order.policy) if order is not None else DeletionPolicy.DELETE
        await self._let_go(held.record.key, policy, held)

    def credentials_changed(self, references: Iterable[Reference]) -> None:
        """Wake exactly the identities that use a changed Secret or ConfigMap; their backoff is waived."""
        for reference in references:
            self._look_at(self.roster.users_of(reference), waive=Waive.IF_CHANGED)

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
        self._look_at({key}, waive=Waive.ALWAYS)
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
            self._look_at({key})
            return 0.0
        wait = entry.last_renewal + self._settings.renew_interval - now
        if wait > 0:
            return wait
        entry.last_renewal = now
        entry.wanted_remaining = minimum_remaining
        self._look_at({key})
        return 0.0

    def republish(self, key: ObjectKey) -> None:
        """Look at an identity whose files are missing or changed."""
        self._look_at({key})

    def status(self, key: ObjectKey) -> IdentityStatus:
        """Return the status of one identity. Raises KeyError."""
        return self._status(self.roster.entries[key])

    def statuses(self) -> list[IdentityStatus]:
        """Return the status of every identity, by namespace and name."""
        return [self._status(self.roster.entries[key]) for key in sorted(self.roster.entries)]

    async def wait_for(self, key: ObjectKey, done: Callable[[IdentityStatus], bool], patience: float) -> bool:
        """Wait until an identity's status satisfies ``done``; False when ``patience`` seconds passed first."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            async with asyncio.timeout(patience):
                while key not in self.roster.entries or not done(self.status(key)):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return False
        finally:
            self._watchers.discard(changed)
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
        self._started = True
        for key in self.roster.entries.keys() - seen:
            await self._worker.begin(self.roster.entries[key])
        return unknown

    async def run(self) -> None:
        """Work until ``stop`` is called, then finish what is under way."""
        while not self._stopping:
            self._wake.clear()
            self._notice_jump()
            self._start_checks()
            self._start_exchanges()
            self._start_revocations()
            timeout = self._pause()
            if timeout > 0:
                await self._sleep(timeout)
        await self._drain()

    def stop(self) -> None:
        """Start nothing new; ``run`` returns when spends and commits under way are done."""
        self._stopping = True
        self._wake.set()

    async def close(self) -> None:
        """Close the connections."""
        await self._drivers.close()

    def _notice_jump(self) -> None:
        """After the wall clock was set back, look at everybody: their times lie too far ahead now.

        A jump ahead, or a machine that slept, needs no more than the agenda: what is due by the clock is due.
        """
        offset = self._ports.clock.now() - self._ports.clock.boottime()
        jump, self._clock_offset = offset - self._clock_offset, offset
        if jump >= -CLOCK_LEEWAY:
            return
        log.warning("the clock went back by %.0f s; every identity is looked at", -jump)
        for entry in self.roster.entries.values():
            entry.shift(jump)
        self._undertaker.shift(jump)
        self._look_at(sorted(self.roster.entries, key=lambda key: self.roster.entries[key].expiration_time))

    def _look_at(self, keys: Iterable[ObjectKey], *, waive: Waive = Waive.NEVER) -> None:
        """Put identities on the agenda for now."""
        if not self._started:
            return
        for key in keys:
            entry = self.roster.entries.get(key)
            if entry is None:
                continue
            if waive is not Waive.NEVER:
                entry.waive(always=waive is Waive.ALWAYS)
            if entry.busy:
                entry.again = True
            else:
                self._agenda.put(key, 0.0)
        self._wake.set()

    def _nudge(self, key: ObjectKey) -> None:
        self._look_at({key})

    def _start_checks(self) -> None:
        now = self._ports.clock.now()
        while self._checking < CHECKS_AT_ONCE:
            key = self._agenda.pop_due(now)
            if key is None:
                return
            entry = self.roster.entries.get(key)
            if entry is None or entry.busy or key in self._queue:
                continue
            entry.busy = True
            self._checking += 1
            self._spawn(self._worker.check(entry), entry, checking=True)

    def _start_exchanges(self) -> None:
        lanes = {provider.lane_name: provider.lane for provider in self.roster.providers.values()}
        while True:
            taken = self._queue.take(lanes, self._ports.clock.monotonic())
            if taken is None:
                return
            entry = self.roster.entries.get(taken[1])
            if entry is None or entry.busy:
                lanes[taken[0]].finish()
                continue
            entry.busy = True
            self._spawn(self._worker.exchange(entry, lanes[taken[0]].finish), entry, checking=False)

    def _start_revocations(self) -> None:
        due = self._undertaker.next_time() <= self._ports.clock.now()
        if due and not self._settings.suspend_all and (self._revoking is None or self._revoking.done()):
            self._revoking = asyncio.create_task(self._undertaker.work())
            self._revoking.add_done_callback(lambda _task: self._wake.set())
            self._keep_task(self._revoking)

    def _pause(self) -> float:
        clock = self._ports.clock
        lanes = {provider.lane_name: provider.lane for provider in self.roster.providers.values()}
        waits = [LONGEST_SLEEP, self._queue.next_wait(lanes, clock.monotonic())]
        if (self._revoking is None or self._revoking.done()) and not self._settings.suspend_all:
            waits.append(self._undertaker.next_time() - clock.now())
        if self._checking < CHECKS_AT_ONCE:
            waits.append(self._agenda.next_time() - clock.now())
        return min(waits)

    async def _sleep(self, seconds: float) -> None:
        """Wait until something happens, at most for so long."""
        sleeping = asyncio.ensure_future(self._ports.clock.sleep(seconds))
        sleeping.add_done_callback(self._slept)
        try:
            await self._wake.wait()
        finally:
            sleeping.cancel()

    def _slept(self, sleeping: asyncio.Future[None]) -> None:
        if not sleeping.cancelled():
            self._wake.set()

    async def _drain(self) -> None:
        """Let spends and commits finish; what takes longer stays in the ledger for the next process."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self._settings.drain)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=1)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _observe_seconds(self, provider: str, seconds: float) -> None:
        self.exchange_seconds(provider, seconds)

    def _spawn(self, work: Coroutine[Any, Any, None], entry: Entry, *, checking: bool) -> None:
        task = asyncio.create_task(self._guard(work, entry, checking=checking))
        self._keep_task(task)

    def _keep_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None], entry: Entry, *, checking: bool) -> None:
        """Run one identity's turn; a defect of ours costs that identity a minute, and nobody else anything."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - the last line of defence
            # The message of an unexpected error may hold anything, so its type and place must do.
            place = "".join(traceback.format_tb(error.__traceback__)[-3:])
            log.error("unexpected %s while working on %s\n%s", type(error).__name__, entry.key, place)  # noqa: TRY400
            self._agenda.put(entry.key, self._ports.clock.now() + UNEXPECTED_WAIT)
        finally:
            entry.busy = False
            self._checking -= checking
            if entry.again:
                entry.again = False
                self._agenda.put(entry.key, 0.0)
            for watcher in self._watchers:
                watcher.set()
            self._wake.set()

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
        self._wake.set()

    def _with_order(self, entry: Entry, held: Versioned) -> Versioned:
        """Return the record with the order to revoke as the resources say it now, not as the last exchange noted it."""
        provider = self.roster.provider_of(entry)
        if provider is None or held.record.revocation is None:
            return held
        order = replace(held.record.revocation, policy=entry.resource.spec.deletion_policy.value)
        return replace(held, record=replace(held.record, revocation=order))

    async def _in_use(self, gone: Record) -> bool:
        """Tell whether a declared identity publishes the access token of one that is gone."""
        for key, entry in list(self.roster.entries.items()):
            if entry.spec_hash == gone.spec_hash and key.namespace == gone.key.namespace:
                held = await self._ports.store.read(key)
                token = held.record.token if held is not None else None
                if token is not None and gone.token is not None and token.access_token == gone.token.access_token:
                    return True
        return False

    def _status(self, entry: Entry) -> IdentityStatus:
        reason, message = entry.reported or (Reason.PENDING, "")
        return entry.status(reason, message)
