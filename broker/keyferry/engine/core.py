"""The engine: which identity is worked on when, and what follows from how it went."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from keyferry.engine.chain import IdentityChain
from keyferry.engine.credentials import Reference, Referent
from keyferry.engine.custody import Custody
from keyferry.engine.departures import Departures
from keyferry.engine.desk import Desk
from keyferry.engine.discards import Discards
from keyferry.engine.entry import Care
from keyferry.engine.job import ASKABLE
from keyferry.engine.links import Links
from keyferry.engine.loop import Loop, Waive
from keyferry.engine.outlet import Outlet
from keyferry.engine.provider import Drivers
from keyferry.engine.questions import Questions
from keyferry.engine.roster import Roster
from keyferry.engine.shards import Shards
from keyferry.engine.signing import LabArchivesSigner
from keyferry.engine.survey import survey
from keyferry.engine.undertaker import Undertaker
from keyferry.engine.worker import Worker
from keyferry.errors import Reason
from keyferry.scheduler import Agenda, Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from keyferry.engine.entry import Entry, ProviderKey
    from keyferry.engine.ports import Ports
    from keyferry.engine.settings import EngineSettings
    from keyferry.engine.status import IdentityStatus
    from keyferry.engine.survey import Findings
    from keyferry.errors import KeyferryError
    from keyferry.ledger import Checkpoint
    from keyferry.model import ObjectKey
    from keyferry.record import Versioned
    from keyferry.spec.resources import IdentityResource, ProviderResource

log = logging.getLogger(__name__)


class Engine:
    """Keeps the tokens of all declared identities fresh. Everything runs in one event loop."""

    def __init__(self, ports: Ports, settings: EngineSettings, *, checkpoint: Checkpoint | None = None) -> None:
        self._ports = ports
        self._settings = settings
        self._drivers = Drivers(ports)
        self._shards = Shards(settings.shards)
        self.roster = Roster(ports, self._drivers, self._shards, page_url=settings.page_url)
        links = Links(settings.page_url, ports.store.digest_key, settings.link_lifetime)
        self._chain = IdentityChain(ports, self.roster, self._nudge)
        self.issued_listeners = self._chain.listeners
        self._undertaker = Undertaker(ports, self.roster, self._drivers, self._chain)
        self._agenda = Agenda()
        self._queue = Queue()
        self.exchange_seconds: Callable[[str, float], None] = lambda _provider, _seconds: None
        """Observes how long a request took; for metrics."""
        self._worker = Worker(
            ports,
            self.roster,
            Desk(
                ports,
                settings.holder,
                self._chain,
                checkpoint,
                self._may_begin,
                links,
                Discards(self.roster, self._undertaker, self._look_at),
                prompts=settings.prompts,
                settle_margin=settings.settle_margin,
            ),
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
        self._custody = Custody(
            ports,
            self.roster,
            self._worker,
            self._undertaker,
            self._departures,
            self._loop,
            drain=settings.drain,
        )
        self.labarchives = LabArchivesSigner(ports, self.roster, self._observe_seconds)
        """Signs LabArchives calls for workloads."""
        self.outlet = Outlet(ports, self.roster)
        """Hands tokens out for pods."""
        self.approvals = Questions(ports, self.roster, self._loop, links)
        """What people are asked, for the approval page."""

    # --- what is declared ---------------------------------------------------------------------------------------------

    def declare_provider(self, resource: ProviderResource) -> None:
        """Take in a new or changed provider, and look at the identities that use it."""
        key: ProviderKey = (resource.kind.value, resource.key)
        known = self.roster.providers.get(key)
        moved = known is None or known.resource.uid != resource.uid
        affected = self.roster.declare_provider(resource)
        if moved:
            self._custody.assign(self.roster.users_of_provider(key))
        self._loop.look_at(affected, waive=Waive.IF_CHANGED)

    def drop_provider(self, key: ProviderKey) -> None:
        """Forget a provider."""
        known = self.roster.providers.get(key)
        if known is not None:
            self._queue.drain_lane(known.lane_name)
        affected = self.roster.drop_provider(key)
        self._custody.assign(affected)
        self._loop.look_at(affected)

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
            known = None
        elif known is not None and known.resource.spec == resource.spec:
            known.resource = resource
            return
        self._departures.cancel(resource.key, resource.uid)
        self._queue.discard(resource.key)  # it may have waited for another provider
        entry = self.roster.declare_identity(resource)
        if known is None:
            self._custody.welcome(entry)
        else:
            self._custody.assign({entry.key})
        self._loop.look_at({entry.key}, waive=Waive.ALWAYS)
        self._loop.look_at(self.roster.presenters_of(entry.key), waive=Waive.ALWAYS)

    def note_revision(self, key: ObjectKey, revision: int) -> None:
        """Take note of the revision that an identity's status tells: private state that is behind it is in doubt."""
        entry = self.roster.entries.get(key)
        if entry is not None:
            entry.told_revision = max(entry.told_revision, revision)

    def refuse_identity(self, key: ObjectKey, error: KeyferryError) -> None:
        """Say that an identity's, or its provider's, new version is not valid; the last good version goes on."""
        entry = self.roster.entries.get(key)
        if entry is not None and entry.care is Care.FULL:
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
        if self._settings.suspend_all:
            log.warning("there is private state of %s, which is not declared; it is kept for now", held.record.key)
            return
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
        wait = self._take_turn(entry)
        if wait <= 0:
            entry.renew = True
            self._loop.look_at({key}, waive=Waive.ALWAYS)
        return wait

    def login(self, key: ObjectKey) -> bool:
        """Have a person asked now, also where the session is still good; False where the grant asks nobody.

        A question that is open stays as it is. Raises KeyError.
        """
        entry = self.roster.entries[key]
        if entry.resource.spec.grant.type not in ASKABLE:
            return False
        if entry.prompt is None:
            entry.login = True
        self._loop.look_at({key}, waive=Waive.ALWAYS)
        return True

    def want(self, key: ObjectKey, minimum_remaining: float) -> float:
        """Ask for a token that lives for at least so many seconds more; renews at a bounded rate.

        Returns 0, or for how many seconds a renewal is still refused.
        """
        entry = self.roster.entries[key]
        left = entry.expiration_time - self._ports.clock.now()
        if left >= minimum_remaining:
            return 0.0
        if left <= 0:  # that is worked on without being asked, and must not use up the next request
            self._loop.look_at({key})
            return 0.0
        wait = self._take_turn(entry)
        if wait <= 0:
            entry.wanted_remaining = minimum_remaining
            # To wait for a person who is asked anew keeps nobody from the session that is there.
            self._loop.look_at({key}, waive=Waive.NEVER if entry.prompt is None else Waive.IF_CHANGED)
        return wait

    def _take_turn(self, entry: Entry) -> float:
        """Return 0 where a renewal on demand may begin, and note that it does; else for how many seconds not yet."""
        now = self._ports.clock.monotonic()
        wait = entry.last_renewal + self._settings.renew_interval - now
        if wait > 0:
            return wait
        entry.last_renewal = now
        return 0.0

    def republish(self, key: ObjectKey) -> None:
        """Look at an identity whose files are missing or changed."""
        self._loop.look_at({key})

    def status(self, key: ObjectKey) -> IdentityStatus:
        """Return the status of one identity. Raises KeyError."""
        return self._status(self.roster.entries[key])

    def statuses(self) -> list[IdentityStatus]:
        """Return the status of every identity that this engine looks after, by namespace and name."""
        return [self._status(self.roster.entries[key]) for key in sorted(self.own_identities())]

    def own_identities(self) -> list[ObjectKey]:
        """Return the identities that this engine looks after."""
        return [key for key in self.roster.entries if self.looks_after(key)]

    def looks_after(self, key: ObjectKey) -> bool:
        """Tell whether this engine looks after an identity."""
        entry = self.roster.entries.get(key)
        return entry is not None and entry.care is Care.FULL

    async def wait_for(self, key: ObjectKey, done: Callable[[IdentityStatus], bool], patience: float) -> bool:
        """Wait until an identity's status satisfies ``done``; False when ``patience`` seconds passed first."""
        known = self.roster.entries
        return await self._loop.wait_for(lambda: key in known and done(self.status(key)), patience)

    def queue_depth(self) -> int:
        """How many identities wait for an exchange."""
        return len(self._queue)

    def lanes(self) -> dict[str, Any]:
        """Return the lanes of the providers that this engine works for, by name; for metrics."""
        return {provider.lane_name: provider.lane for provider in self.roster.held_providers()}

    # --- the work -----------------------------------------------------------------------------------------------------

    async def start(self) -> list[Versioned]:
        """Look after all identities: ``gain`` of every shard there is."""
        return await self.gain(self._shards.all)

    async def gain(self, shards: frozenset[int], undisturbed: frozenset[int] = frozenset()) -> list[Versioned]:
        """Look after the identities of these shards, too: rebuild their schedule from what is stored.

        Nothing is exchanged for it and nothing written. In those of ``undisturbed`` that were lost before, where nobody
        else worked since, it goes on with what it knows instead. Returns the records of which no identity is declared.
        Raises StoreError; it is then to be called again.
        """
        return await self._custody.gain(shards, undisturbed)

    def lose(self, shards: frozenset[int]) -> None:
        """Begin nothing more in these shards, since another process may be working on them; to be called at once."""
        self._custody.lose(shards)

    async def hand_over(self, shards: frozenset[int]) -> None:
        """Finish what is under way in these shards, then look after them no longer. Nothing is buried."""
        await self._custody.hand_over(shards)

    async def strays(self) -> list[Versioned]:
        """Look again for records of which no identity is declared, and for orders to revoke. Raises StoreError."""
        return await self._custody.strays()

    def issued_elsewhere(self, key: ObjectKey) -> None:
        """Take note that another process renewed an identity: those that wait for its token are woken."""
        self._chain.issued(key)

    def holds_provider(self, uid: str) -> bool:
        """Tell whether a provider falls to a shard that is looked after."""
        return self._shards.of(uid) in self._shards.held

    @property
    def held_shards(self) -> frozenset[int]:
        """The shards whose identities are looked after."""
        return self._shards.held

    @property
    def open_claims(self) -> set[str]:
        """Attempt ids of the claims that were open when their identities were taken up."""
        return self._custody.open_claims

    async def rescue(self, attempt_ids: Collection[str]) -> frozenset[str]:
        """Commit the answers in the escrow that open claims of declared identities wait for, and do nothing else.

        Returns which of the answers belong to such a claim, committed now or not. It needs no ``start``, and another
        process may work on the same store meanwhile. Raises StoreError.
        """
        return await self._custody.rescue(attempt_ids)

    async def run(self) -> None:
        """Work until ``stop`` is called, then finish what is under way."""
        await self._loop.run()

    def stop(self) -> None:
        """Start nothing new; ``run`` returns when spends and commits under way are done."""
        self._loop.stop()

    async def close(self) -> None:
        """Close the connections."""
        await self._drivers.close()

    def _may_begin(self, key: ObjectKey) -> bool:
        entry = self.roster.entries.get(key)
        return not self._loop.stopping and (entry is None or entry.care is Care.FULL)

    def _nudge(self, key: ObjectKey) -> None:
        self._loop.look_at({key})

    def _look_at(self, keys: Iterable[ObjectKey]) -> None:
        self._loop.look_at(keys)

    def _observe_seconds(self, provider: str, seconds: float) -> None:
        self.exchange_seconds(provider, seconds)

    def _status(self, entry: Entry) -> IdentityStatus:
        reason, message = entry.reported or (Reason.PENDING, "")
        return entry.status(reason, message)
