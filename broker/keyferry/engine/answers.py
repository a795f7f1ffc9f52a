"""What people answer through the approval page, as far as it is decided here: no provider is asked for it.

A callback is checked and kept, a login confirmed or thrown away, a question that lapsed ended. What has to be sent
follows in the identity's turn for an exchange.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.approval import Login
from keyferry.doubt import settle_time
from keyferry.engine.asking import LOGIN_LIFETIME, UNCONFIRMED, ended, without_candidate
from keyferry.engine.job import Outcome
from keyferry.engine.login import LATE, LOST
from keyferry.engine.wishes import Arrive, Begin, Confirm, Decline, Forget, GiveCode
from keyferry.errors import KeyferryError, NoSuchQuestion, Reason, Refused, RetryClass
from keyferry.grants.rfc6749_authorization_code import Callback, CallbackTerms, read_callback
from keyferry.providers.labarchives.callback import read_login
from keyferry.secret import SecretValue
from keyferry.spec.provider import ProviderType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyferry.approval import Approval
    from keyferry.engine.discards import Discards
    from keyferry.engine.entry import Entry
    from keyferry.engine.job import Job
    from keyferry.engine.ports import Ports
    from keyferry.engine.wishes import Wish
    from keyferry.model import TokenSet
    from keyferry.plan import Observed
    from keyferry.record import Record, Versioned

DECLINED: Final = "the login was not confirmed, and what it brought is being revoked"
EXPIRED: Final = "the token expired before the login was confirmed; begin again"


class Answers:
    """Carries out what needs no request: on the record as it is read in the identity's turn."""

    def __init__(
        self,
        ports: Ports,
        holder: str,
        settle_margin: float,
        discards: Discards,
        recover: Callable[[Job], Awaitable[Versioned | None]],
    ) -> None:
        """``holder`` names this process in claims; ``settle_margin`` is as in ``doubt.settle_time``.

        ``recover`` commits what a login's code had brought before a crash.
        """
        self._ports = ports
        self._holder = holder
        self._settle_margin = settle_margin
        self._discards = discards
        self._recover = recover

    async def hear(self, job: Job, entry: Entry) -> bool:
        """See to wishes and to what lapsed; tell whether a login became the session, which ``job.held`` holds then.

        Raises StoreError; then the wishes are as open as before.
        """
        waived = bool(entry.wishes)
        if job.held is not None and job.held.record.login_claim is not None:
            job.held = await self._recover(job) or job.held
        confirmed = await self._hear(job, entry)
        entry.wishes = tuple(wish for wish in entry.wishes if not wish.done.done())
        if job.held is not None:
            self.take_note(entry, job.held.record)
            if job.held.record.login_claim is not None:
                entry.poll_at = self._ports.clock.now() + self._unsettled(entry, job.held.record)
        if waived:
            entry.waive(always=True)
        return confirmed

    def take_note(self, entry: Entry, record: Record) -> None:
        """Note what a person is asked as the record says, and have what was thrown away revoked."""
        approval = record.approval
        entry.asking(approval, approval.next_look if approval is not None and approval.logs_in else None)
        self._discards.see_to(entry, record)

    async def _hear(self, job: Job, entry: Entry) -> bool:
        held = job.held
        if held is None:
            for wish in entry.wishes:
                wish.refuse(_no_question())
            return False
        record, confirmed = self._lapsed(entry, held.record), False
        outcomes: list[tuple[Wish, KeyferryError | None]] = []
        for wish in self._without_begins(job, entry, record):
            try:
                record = self._carry_out(job, record, wish)
            except KeyferryError as error:
                outcomes.append((wish, error))
            else:
                outcomes.append((wish, None))
                confirmed = confirmed or (isinstance(wish, Confirm) and record.approval is None)
        if record != held.record:
            job.held = await self._ports.store.replace(held, record)
        for wish, problem in outcomes:
            if problem is None:
                wish.grant()
            else:
                wish.refuse(problem)
        return confirmed

    def _without_begins(self, job: Job, entry: Entry, record: Record) -> list[Wish]:
        """Return the wishes that are seen to here; logins are begun in the turn for an exchange, where one is asked."""
        approval, now = record.approval, self._ports.clock.now()
        asked = approval is not None and approval.logs_in and approval.open(job.observed.spec_hash, now)
        wishes: list[Wish] = []
        for wish in entry.wishes:
            if not isinstance(wish, Begin) and not wish.done.done():
                wishes.append(wish)
            elif not asked:
                wish.refuse(_no_question())
        return wishes

    def _lapsed(self, entry: Entry, record: Record) -> Record:
        """Return the record with what nobody can answer any more ended."""
        approval, now = record.approval, self._ports.clock.now()
        if record.login_claim is not None:
            if self._unsettled(entry, record) > 0:
                return record
            # No answer was found for it: it is lost, with whatever it held.
            return replace(ended(record, LOST, now), login_claim=None)
        if approval is None or approval.ended:
            return record
        candidate, login = approval.candidate, approval.login
        if candidate is not None and now >= candidate.expires_at:
            return ended(record, UNCONFIRMED, now)
        if login is not None and login.code is not None and now >= login.expires_at:
            return ended(record, LATE, now)
        return record

    def _unsettled(self, entry: Entry, record: Record) -> float:
        """Return for how many seconds a code may still be on its way; this process sends it in the identity's turn."""
        claim = record.login_claim
        if claim is None or claim.holder == self._holder:
            return 0.0
        gone = self._ports.store.holder_is_gone(claim.holder)
        wait = settle_time(claim, holder_gone=gone, margin=self._settle_margin)
        return max(0.0, wait - entry.login_claim_age(claim, self._ports.clock.monotonic()))

    # --- wishes -------------------------------------------------------------------------------------------------------

    def _carry_out(self, job: Job, record: Record, wish: Wish) -> Record:
        """Return the record as the wish leaves it. Raises KeyferryErrors for the person; then it stays as it is."""
        if isinstance(wish, Forget):
            return replace(record, thrown=tuple(each for each in record.thrown if each.name != wish.name))
        approval, now = record.approval, self._ports.clock.now()
        if approval is None or not approval.open(job.observed.spec_hash, now):
            raise _no_question()
        match wish:
            case Arrive():
                return self._arrive(job, record, approval, wish)
            case GiveCode():
                return self._give_code(job, record, approval, wish)
            case Confirm():
                _check_candidate(approval, wish.browser)
                return self._confirm(job, record, approval, now)
            case Decline():
                _check_candidate(approval, wish.browser)
                return ended(record, DECLINED, now)
        raise AssertionError("every wish is known")

    def _arrive(self, job: Job, record: Record, approval: Approval, wish: Arrive) -> Record:
        """Keep what a browser came back with; the ``state`` is used up by it."""
        login, now = approval.login, self._ports.clock.now()
        if login is None or login.code is not None or now >= login.expires_at or record.login_claim is not None:
            raise foreign("belongs to a login that is over, or was begun again", "used_state")
        if not wish.browser or not hmac.compare_digest(wish.browser, login.browser):
            raise foreign("belongs to a login that was begun in another browser", "wrong_browser")
        try:
            came_back = _read(job, login, wish)
        except Refused as error:
            if error.code in _NOTHING_DONE:
                raise
            return ended(record, error.message, now)  # who logs in, or the provider, said no
        return replace(record, approval=replace(approval, login=came_back))

    def _give_code(self, job: Job, record: Record, approval: Approval, wish: GiveCode) -> Record:
        """Keep a code that was typed, in place of a login that was begun."""
        if job.provider.resource.spec.type is not ProviderType.LABARCHIVES or not approval.logs_in:
            raise _no_question()
        if record.login_claim is not None:
            raise foreign("comes while another code is being redeemed", "busy")
        now = self._ports.clock.now()
        typed = Login(
            state=SecretValue(""),
            state_digest="",
            browser=wish.browser,
            redirect_uri="",
            begun_at=now,
            expires_at=now + LOGIN_LIFETIME,
            binding=None,
            code=wish.code,
            email=wish.email,
        )
        bare = without_candidate(record, now)
        return replace(bare, approval=replace(approval, login=typed, candidate=None))

    def _confirm(self, job: Job, record: Record, approval: Approval, now: float) -> Record:
        """Return the record with the candidate as its session."""
        candidate = approval.candidate
        if candidate is None:
            raise _no_question()
        tokens, oauth = candidate.tokens, job.provider.resource.spec.oauth
        if tokens.expires_at <= now and tokens.refresh_token is None:
            return ended(record, EXPIRED, now)
        idle = oauth.refresh_tokens.idle if oauth is not None else None
        outcome = Outcome(job, job.context(candidate.binding, idle), new_session=True)
        confirmed = outcome.apply(replace(record, approval=replace(approval, candidate=None)), _usable(tokens, now))
        if confirmed.authorized_as is not None and candidate.person:
            confirmed = replace(confirmed, authorized_as=replace(confirmed.authorized_as, name=candidate.person))
        return confirmed.without_claim().with_answer()


def concerns_people(entry: Entry, observed: Observed) -> bool:
    """Tell whether there is anything to see to: what somebody wants, is asked, or threw away."""
    record = observed.record
    if record is not None and (record.uid, record.origin) != (observed.uid, observed.origin):
        return False
    return bool(entry.wishes) or (record is not None and bool(record.approval or record.login_claim or record.thrown))


def is_answering(entry: Entry, record: Record | None) -> bool:
    """Tell whether a person wants to begin a login, or came back from one with what is to be redeemed."""
    if any(isinstance(wish, Begin) and not wish.done.done() for wish in entry.wishes):
        return True
    approval = record.approval if record is not None else None
    return approval is not None and approval.answered and record is not None and record.login_claim is None


def _usable(tokens: TokenSet, now: float) -> TokenSet:
    """Return what a login brought; what expired meanwhile must not take the place of a good token."""
    if tokens.expires_at > now:
        return tokens
    return replace(tokens, publishable=False, problem="it expired before the login was confirmed")


def _read(job: Job, login: Login, wish: Arrive) -> Login:
    """Return the login with what came back. Raises Refused."""
    if job.provider.resource.spec.type is ProviderType.LABARCHIVES:
        email, code = read_login(wish.parameters)
        return replace(login, email=email, code=code)
    issuer = login.binding.issuer if login.binding is not None else ""
    terms = CallbackTerms(login.state, issuer, login.names_issuer)
    return replace(login, code=read_callback(Callback(wish.parameters), terms))


def _check_candidate(approval: Approval, browser: str) -> None:
    candidate = approval.candidate
    if candidate is None:
        raise Refused(
            "There is no login to confirm: it was confirmed, thrown away, or begun again.",
            code="nothing_to_confirm",
            reason=Reason.APPROVAL_REQUIRED,
            retry=RetryClass.NEEDS_PERSON,
        )
    if not browser or not hmac.compare_digest(browser, candidate.browser):
        raise Refused(
            "Only the browser that logged in can confirm the login. Go on there, or begin again here.",
            code="wrong_browser",
            reason=Reason.APPROVAL_REQUIRED,
            retry=RetryClass.NEEDS_PERSON,
        )


def foreign(what: str, code: str) -> Refused:
    """Return the refusal of a callback with which nothing is done."""
    return Refused(
        f"What the browser brought {what}. Nothing was done with it; begin the login again.",
        code=code,
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )


def _no_question() -> NoSuchQuestion:
    return NoSuchQuestion("This question cannot be answered any more: look at it again, and begin anew.")


_NOTHING_DONE: Final = frozenset({"wrong_state", "missing_iss", "wrong_iss", "missing_code"})
