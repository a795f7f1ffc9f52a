"""One identity's turn: look, act on the plan's step, and take note of how it went."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Final

from keyferry.engine.asking import SessionGoesOn
from keyferry.engine.breakers import Breakers
from keyferry.engine.chain import WAITING
from keyferry.engine.foresight import Foresight
from keyferry.engine.job import REFRESHING
from keyferry.engine.outcome import failure_of, waiting_for_provider
from keyferry.engine.provider import Channel, Provider
from keyferry.engine.status import APPROVAL_PENDING, Level
from keyferry.engine.telling import Teller
from keyferry.errors import (
    ApprovalPending,
    Conflict,
    KeyferryError,
    Reason,
    RetryClass,
    StoreError,
)
from keyferry.frozen import replace
from keyferry.plan import Action, next_renewal, plan
from keyferry.scheduler.lane import backoff
from keyferry.spec.grant import GrantType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyferry.engine.chain import IdentityChain
    from keyferry.engine.desk import Desk
    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.model import ObjectKey
    from keyferry.plan import Observed, Step
    from keyferry.publication import Published
    from keyferry.record import Versioned
    from keyferry.scheduler import Agenda, Queue


QUARREL_WAIT: Final = 60.0
"""Seconds between writings of files that somebody changes as soon as they are written."""


class Worker:
    """Carries out checks and exchanges; the engine says which and when."""

    def __init__(
        self,
        ports: Ports,
        roster: Roster,
        desk: Desk,
        chain: IdentityChain,
        agenda: Agenda,
        queue: Queue,
        *,
        suspend_all: bool,
        observe_seconds: Callable[[str, float], None],
    ) -> None:
        self._ports = ports
        self._roster = roster
        self._desk = desk
        self._chain = chain
        self._agenda = agenda
        self._queue = queue
        self._suspend_all = suspend_all
        self._observe_seconds = observe_seconds
        self._teller = Teller(ports, roster)
        self._foresight = Foresight(ports, self._teller)
        self._breakers = Breakers(ports, roster, agenda, queue, self._teller)
        desk.stuck = self._teller.stuck

    # --- looking ------------------------------------------------------------------------------------------------------

    async def take_up(self, stored: list[tuple[Entry, Versioned]]) -> None:
        """Decide on stored records at the start, with one look at what is published."""
        published = await self._ports.publisher.observe_many([entry.key for entry, _ in stored])
        for entry, held in stored:
            self._take_up(entry, held, published)

    def _take_up(self, entry: Entry, held: Versioned, published: Mapping[ObjectKey, Published | None]) -> None:
        self._adopt(entry, held)
        may_have_new_code = entry.resource.spec.grant.type is GrantType.LABARCHIVES_CODE
        stopped = entry.failure is not None or entry.refusal is not None
        unsettled = bool(held.record.claims) or bool(held.record.thrown)
        needs_closer_look = unsettled or stopped or may_have_new_code or self._foresight.is_due(entry, held.record)
        if needs_closer_look or entry.key not in published:
            self._agenda.put(entry.key, 0.0)
            return
        provider = self._roster.provider_of(entry)
        observed = self._desk.facts(entry, provider, held, published[entry.key], suspended=self._suspend_all)
        entry.shown = observed.published
        step = plan(observed, self._ports.clock.now())
        if step.action is Action.KEEP:
            self._keep(entry, step)
        else:
            self._agenda.put(entry.key, 0.0)

    async def begin(self, entry: Entry) -> None:
        """Begin with an identity of which nothing is stored: it is looked at when its turn for an exchange comes."""
        provider = self._roster.provider_of(entry)
        suspended = self._suspend_all or entry.resource.spec.suspend
        if provider is None or suspended or entry.refusal is not None or entry.failure is not None:
            self._agenda.put(entry.key, 0.0)
        else:
            await self._enqueue(entry, provider)

    async def check(self, entry: Entry) -> None:
        """Look at one identity and do, or queue, what its plan says."""
        provider = self._roster.provider_of(entry)
        if entry.refusal is not None or provider is None:
            if entry.refusal is not None:
                self._teller.refused(entry, entry.refusal)
                self._look_again(entry, math.inf)
            return
        try:
            await self._waive(entry, provider)
            observed, held, recovered = await self._look(entry, provider)
        except KeyferryError as error:
            await self._failed(entry, provider, error)
            return
        if recovered is not None:
            await self._finish(entry, provider, recovered)
            return
        step = plan(observed, self._ports.clock.now())
        match step.action:
            case Action.KEEP:
                if step.reason is Reason.ISSUED:
                    await self._recovered(entry)  # what failed was a look, and this one succeeded
                await self._foresight.look(entry, held)
                self._keep(entry, step)
            case Action.PUBLISH:
                if held is not None:
                    await self._publish_first(entry, provider, observed, held, step)
            case Action.EXCHANGE:
                await self._enqueue(entry, provider)

    async def _look(self, entry: Entry, provider: Provider) -> tuple[Observed, Versioned | None, Versioned | None]:
        """Return what is observed, the record, and the record again where it was committed just now."""
        observed, held = await self._observe(entry, provider)
        note = self._teller.note(entry)
        recovered = await self._desk.recover(entry, provider, observed, held, note)
        if recovered is not None:
            return observed, held, recovered
        observed, held, confirmed = await self._desk.hear(entry, provider, observed, held, note)
        return observed, held, held if confirmed else None

    async def _publish_first(
        self, entry: Entry, provider: Provider, observed: Observed, held: Versioned, step: Step
    ) -> None:
        """Write the files again, then do what else is to be done: a renewal may be due, or a failure last."""
        if not await self._publish(entry, provider, held, step.why):
            return
        following = plan(replace(observed, published=entry.shown), self._ports.clock.now())
        match following.action:
            case Action.KEEP:
                self._keep(entry, following)
            case Action.EXCHANGE:
                await self._enqueue(entry, provider)
            case Action.PUBLISH:  # somebody undoes what is written; once a minute is often enough for that quarrel
                self._agenda.put(entry.key, self._ports.clock.now() + QUARREL_WAIT)

    async def last_look(self, entry: Entry) -> None:
        """Commit an answer that waits for its record, before the identity goes: what it brought is revoked as well."""
        provider = self._roster.provider_of(entry)
        if provider is None:
            return
        try:
            await self._look(entry, provider)
        except KeyferryError as error:
            self._teller.event(entry, Level.WARNING, "note", error.reason, error.message)

    async def exchange(self, entry: Entry, release: Callable[[], None]) -> None:
        """Get the next token for one identity; ``release`` gives its lane's slot back."""
        provider = self._roster.provider_of(entry)
        if provider is None or entry.refusal is not None:
            release()
            self._agenda.put(entry.key, 0.0)
            return
        try:
            held = await self._exchange(entry, provider)
        except KeyferryError as error:
            release()
            await self._failed(entry, provider, error)
            return
        except BaseException:
            release()
            raise
        release()
        if held is None:
            self._agenda.put(entry.key, 0.0)
            return
        await self._finish(entry, provider, held)

    async def _finish(self, entry: Entry, provider: Provider, held: Versioned) -> None:
        """Publish what was committed, and plan for it."""
        self._renewed(entry, held)
        await self._recovered(entry)
        if await self._publish(entry, provider, held, "renewed"):
            upcoming = next_renewal(held.record, refreshes=entry.resource.spec.grant.type in REFRESHING)
            self._look_again(entry, upcoming)
            self._teller.issued(entry)
            await self._foresight.look(entry, held)
        self._chain.issued(entry.key)

    async def _exchange(self, entry: Entry, provider: Provider) -> Versioned | None:
        """Look again, since time passed in the queue, and exchange; None where that is not the step any more."""
        observed, held = await self._observe(entry, provider)
        if plan(observed, self._ports.clock.now()).action is not Action.EXCHANGE:
            return None
        self._teller.working(entry, "renewing")
        # Noted before anything is read for use: what changes during the exchange has not been tried.
        entry.tried = await self._desk.cause(entry, provider)
        driver = await provider.driver()
        channel = Channel(provider, driver, self._ports, lambda seconds: self._observe_seconds(provider.name, seconds))
        try:
            committed = await self._desk.exchange(entry, provider, channel, observed, held, self._teller.note(entry))
        except KeyferryError as error:
            self._breakers.blame(provider, error)
            raise
        self._breakers.answered(provider)
        return committed

    async def _observe(self, entry: Entry, provider: Provider) -> tuple[Observed, Versioned | None]:
        entry.tried = ""
        observed, held, unseen = await self._desk.observe(entry, provider, suspended=self._suspend_all)
        if unseen is not None:
            entry.publish_failure = failure_of(
                unseen,
                entry.publish_failure,
                now=self._ports.clock.now(),
                draw=self._ports.rng.random(),
                cause=entry.files_hash,
            )
        else:
            entry.shown = observed.published
        if not entry.uid or entry.revision == 0:
            self._adopt(entry, held)
            observed = replace(observed, uid=entry.uid)
        return observed, held

    def _adopt(self, entry: Entry, held: Versioned | None) -> None:
        """Give an identity that the outside does not name its uid, and note the record's times."""
        if not entry.uid:
            ours = held is not None and held.record.origin == self._ports.store.origin
            entry.uid = held.record.uid if held is not None and ours else str(uuid.uuid4())
        self._take(entry, held)

    def _take(self, entry: Entry, held: Versioned | None) -> None:
        provider = self._roster.provider_of(entry)
        oauth = provider.resource.spec.oauth if provider is not None else None
        entry.take(
            held.record if held is not None else None, oauth.refresh_tokens.maximum if oauth is not None else None
        )

    async def _waive(self, entry: Entry, provider: Provider) -> None:
        """Forget a failure of an earlier process whose cause is gone: the spec or a credential is another now."""
        if entry.failure is None or entry.failure_checked:
            return
        entry.failure_checked = True
        if entry.failure.cause and entry.failure.cause != await self._desk.cause(entry, provider):
            entry.failure = None

    # --- acting -------------------------------------------------------------------------------------------------------

    async def _enqueue(self, entry: Entry, provider: Provider) -> None:
        """Queue for an exchange, unless the provider is being left alone."""
        if self._roster.provider_of(entry) is not provider:
            self._agenda.put(entry.key, 0.0)  # it was replaced while we looked
            return
        clock = self._ports.clock
        blocked = provider.lane.blocked_until(clock.monotonic()) - clock.monotonic()
        if blocked > 0:
            until = clock.now() + blocked + self._ports.rng.random()
            entry.failure = waiting_for_provider(provider.lane.last_problem, until, entry.failure)
            self._agenda.put(entry.key, until)
            self._teller.report(entry, entry.failure.reason, entry.failure.message)
            return
        # Least slack first: who has no token at all comes before everybody who still has one.
        self._queue.put(provider.lane_name, entry.key, entry.expiration_time)
        self._teller.working(entry, "waiting for its turn")

    async def _publish(self, entry: Entry, provider: Provider, held: Versioned, why: str) -> bool:
        """Write the files; tell whether they are there. Else the token is kept, and renewed in time all the same."""
        clock = self._ports.clock
        upcoming = next_renewal(held.record, refreshes=entry.resource.spec.grant.type in REFRESHING)
        try:
            entry.shown = await self._desk.publish(entry, provider, held.record)
        except KeyferryError as error:
            previous = entry.publish_failure
            failure = failure_of(
                error, previous, now=clock.now(), draw=self._ports.rng.random(), cause=entry.files_hash
            )
            entry.publish_failure = failure
            self._agenda.put(entry.key, min(failure.next_attempt, upcoming))
            self._teller.tell(entry, failure, previous)
            return False
        if why != "renewed" or entry.publish_failure is not None:
            self._teller.event(entry, Level.INFO, "published", Reason.ISSUED, f"the token files were written: {why}")
        entry.publish_failure = None
        return True

    def _renewed(self, entry: Entry, held: Versioned) -> None:
        """Note a committed exchange; the session alone may have been renewed, and then the revision stays."""
        before = entry.revision
        self._take(entry, held)
        entry.renew = False
        entry.login_was_heard()
        entry.wanted_remaining = 0.0
        if entry.revision != before:
            word = "obtained" if before == 0 else "renewed"
            self._teller.event(entry, Level.INFO, word, Reason.ISSUED, f"revision {entry.revision}")
        else:
            self._teller.event(
                entry, Level.DEBUG, "session_renewed", Reason.ISSUED, "the session behind the token was renewed"
            )

    def _keep(self, entry: Entry, step: Step) -> None:
        entry.disappoint(KeyferryError(step.why or "there is nothing to log in for now", reason=step.reason))
        self._look_again(entry, step.at)
        if step.reason is Reason.ISSUED:
            self._teller.issued(entry)
            return
        if step.reason is Reason.STATE_FOREIGN and entry.reported != (step.reason, step.why):
            self._teller.event(entry, Level.ERROR, "refused", step.reason, step.why)
        self._teller.report(entry, step.reason, step.why)

    def _look_again(self, entry: Entry, at: float) -> None:
        """Put an identity on the agenda; when its token expires or something is to be written or told, in any case."""
        now = self._ports.clock.now()
        unwritten = entry.publish_failure.next_attempt if entry.publish_failure is not None else 0.0
        polled = entry.poll_at if entry.prompt is not None else 0.0
        moments = (entry.expiration_time, unwritten, polled, *entry.notice_times)
        self._agenda.put(entry.key, min([at, *(due for due in moments if due > now)]))

    # --- how it went --------------------------------------------------------------------------------------------------

    async def _failed(self, entry: Entry, provider: Provider, error: KeyferryError) -> None:
        """Remember a failure, tell about it once, and plan the next try."""
        if isinstance(error, Conflict):
            # Somebody else wrote the record first: what they wrote is looked at before anything is tried again.
            if entry.prompt is None and entry.failure is not None and entry.failure.code == APPROVAL_PENDING:
                entry.failure = None  # nobody is being asked any more
            if isinstance(error, SessionGoesOn):
                entry.login_was_heard()
                entry.unapproved = error.unasked or entry.unapproved
            self._agenda.put(entry.key, self._ports.clock.now() + backoff(0, self._ports.rng.random()))
            return
        if not isinstance(error, ApprovalPending):
            entry.disappoint(error)
        await self._note_doubt(entry, error)
        previous, now = entry.failure, self._ports.clock.now()
        cause, entry.tried = entry.tried or await self._cause(entry, provider), ""
        failure = failure_of(error, previous, now=now, draw=self._ports.rng.random(), cause=cause)
        if entry.again and failure.code == WAITING:
            failure = replace(failure, next_attempt=now)  # what it waited for came meanwhile
        entry.failure = failure
        # Where something changed meanwhile, it may be what failed: then it is compared before the backoff counts.
        entry.failure_checked = not entry.again
        entry.renew = False
        entry.login_was_heard()
        self._look_again(entry, failure.next_attempt)
        if failure.code == APPROVAL_PENDING:
            if entry.announced == entry.prompt:
                return  # another poll of the same prompt: nothing that anybody need be told, or that need be kept
            entry.announced = entry.prompt
        self._teller.tell(entry, failure, previous)
        entry.failure_kept = True
        await self._ports.reporter.remember(entry.key, failure)

    async def _cause(self, entry: Entry, provider: Provider) -> str:
        """Return the fingerprint of what failed; nothing where it is the credentials that cannot be read."""
        try:
            return await self._desk.cause(entry, provider)
        except KeyferryError:
            return ""

    async def _note_doubt(self, entry: Entry, error: KeyferryError) -> None:
        """Mark a claim of our own whose request is over: nobody is sending any more, so it may be weighed now."""
        if error.retry is not RetryClass.IN_DOUBT:
            return
        error.reason = Reason.REFRESH_IN_DOUBT
        try:
            held = await self._ports.store.read(entry.key, entry.uid)
        except StoreError:
            return  # the claim then takes longer to settle, no more
        if held is not None and held.record.claim is not None and held.record.claim.holder == self._desk.holder:
            entry.claim_finished = held.record.claim.attempt_id

    async def _recovered(self, entry: Entry) -> None:
        if entry.failure is not None or entry.failure_kept:
            entry.failure = None
            entry.failure_kept = False
            await self._ports.reporter.remember(entry.key, None)
