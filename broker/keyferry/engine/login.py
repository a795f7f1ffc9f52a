"""Has a person log in through the approval page: begun by one browser, finished by the same, confirmed by it.

What the login brings is a candidate until then, beside the session that is there. The code is sent once, after a claim
(see ``ledger``): one whose answer is lost is never sent again.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from keyferry.approval import Approval, Candidate, Login
from keyferry.engine.apply import check_subject
from keyferry.engine.asking import (
    CONFIRM_LIFETIME,
    LOGIN_LIFETIME,
    UNANSWERED,
    came_to_nothing,
    ended,
    look_again,
    no_page,
    nobody_sees,
    throw_away,
    without_candidate,
)
from keyferry.errors import (
    Ambiguous,
    AnswerError,
    ApprovalPending,
    Conflict,
    CredentialError,
    Reason,
    Refused,
    ResourceError,
    RetryClass,
)
from keyferry.grants.rfc6749_authorization_code import LoginSecrets
from keyferry.ledger import LOGIN, Spend

if TYPE_CHECKING:
    from keyferry.engine.job import Job
    from keyferry.engine.links import Links
    from keyferry.engine.ports import Ports
    from keyferry.engine.wishes import Begin
    from keyferry.ledger import Ledger
    from keyferry.model import Exchange, TokenSet
    from keyferry.record import Binding, Record, Versioned

LOST: Final = "the provider's answer to the login was lost, and its code is never sent twice; begin again"
USED: Final = "this code was used before, so it was not sent; get a new one, and begin again"
LATE: Final = "the provider could not be asked about the login in time; begin again"
CHANGED: Final = "the provider, or its client, was changed since the login was begun; begin again"


class LoginDialect(Protocol):
    """How one provider is sent a browser, and asked what it came back with. Times are Unix seconds."""

    @property
    def binding(self) -> Binding:
        """Who is asked, and as which client."""
        ...

    @property
    def names_issuer(self) -> bool:
        """Whether the provider announces that its callbacks name it (RFC 9207 3)."""
        ...

    async def begin(self, redirect_uri: str, login: LoginSecrets) -> tuple[str, str]:
        """Return the address to send the browser to, and the redirect URI as it was announced."""
        ...

    @property
    def person(self) -> str:
        """How the provider calls whoever logged in, where its tokens do not say."""
        ...

    async def reserve(self, login: Login) -> None:
        """Note whose the code is, before it is sent for the first time. Raises CredentialError."""
        ...

    def redeem(self, login: Login, started_at: float) -> Exchange:
        """Exchange the code."""
        ...

    def taken(self, record: Record, login: Login) -> Record:
        """Return the record with what is to be remembered of the code."""
        ...

    def problem(self, login: Login, issued: TokenSet) -> str:
        """Say why what was issued does not belong to this login, or nothing."""
        ...


class LoginFlow:
    """Shows a person a page to log in through, and redeems what their browser comes back with."""

    def __init__(self, ports: Ports, ledger: Ledger, links: Links, *, prompts: bool) -> None:
        """``prompts`` tells whether anybody would see it; else nobody is asked."""
        self._ports = ports
        self._ledger = ledger
        self._links = links
        self._prompts = prompts

    @property
    def available(self) -> bool:
        """Whether a person can be asked."""
        return self._prompts and bool(self._links.page_url)

    async def proceed(self, job: Job, dialect: LoginDialect) -> Versioned:
        """Do what is next: ask, begin a login, redeem its code.

        It never ends with a token: that is for the person to confirm. Raises ApprovalPending while they are awaited,
        ResourceError (ApprovalRequired) where it came to nothing and nobody asked for more.
        """
        if not self._prompts:
            raise nobody_sees(job)
        if not self._links.page_url:
            raise no_page(job)
        approval = await self._question(job)
        for wish in job.begins():
            approval = await self._begin(job, dialect, approval, wish)
        if approval.answered:
            approval = await self._redeem(job, dialect, approval)
        raise self._pending(job, approval)

    async def recover(self, job: Job, dialect: LoginDialect) -> Versioned | None:
        """Commit what a code brought before a crash, as a candidate; None where no answer to its claim is there."""
        approval = job.held.record.approval if job.held is not None else None
        if job.held is None or approval is None or approval.login is None:
            return None
        login = approval.login
        apply = self._take(job, dialect, login)
        return await self._ledger.recover(job.held, lambda at: dialect.redeem(login, at), apply, LOGIN)

    async def _question(self, job: Job) -> Approval:
        """Return the open question, asked now where there is none. Raises ResourceError (ApprovalRequired)."""
        observed, now = job.observed, self._ports.clock.now()
        approval = job.held.record.approval if job.held is not None else None
        wanted = observed.renew_requested or observed.login_requested
        if approval is not None and approval.logs_in and approval.open(observed.spec_hash, now):
            return approval
        if approval is None or not approval.logs_in or approval.spec_hash != observed.spec_hash or wanted:
            return await self._ask(job, now)
        held, why = await job.ensure_record(), approval.ended or UNANSWERED
        if not approval.ended:
            held = job.held = await self._ports.store.replace(held, ended(held.record, why, now))
        job.take_note(held.record)
        raise came_to_nothing(job, why)

    async def _ask(self, job: Job, now: float) -> Approval:
        held = await job.ensure_record()
        before = held.record.approval
        link = self._links.of(before.link if before else None, now, renew=not job.observed.asked_through_page)
        if link is None:
            raise no_page(job)
        approval = Approval(secrets.token_hex(16), job.observed.spec_hash, now, link.expires_at, link=link)
        record = replace(without_candidate(held.record, now), approval=approval, login_claim=None)
        job.held = await self._ports.store.replace(held, record)
        job.take_note(record)
        return approval

    async def _begin(self, job: Job, dialect: LoginDialect, approval: Approval, wish: Begin) -> Approval:
        """Send a browser to the provider; what was begun before, in whatever browser, cannot be finished any more."""
        held, fresh = await job.ensure_record(), LoginSecrets.new()
        if held.record.login_claim is not None:
            raise Conflict("a code that came back is being redeemed")
        redirect_uri = self._links.redirect_uri(job.provider.resource)
        address, redirect_uri = await dialect.begin(redirect_uri, fresh)
        now = self._ports.clock.now()
        login = Login(
            state=fresh.state,
            state_digest=self._links.digest(fresh.state),
            browser=wish.browser,
            redirect_uri=redirect_uri,
            begun_at=now,
            expires_at=now + LOGIN_LIFETIME,
            binding=dialect.binding,
            names_issuer=dialect.names_issuer,
            verifier=fresh.verifier,
            nonce=fresh.nonce,
        )
        approval = replace(approval, login=login, candidate=None)
        record = replace(without_candidate(held.record, now), approval=approval)
        job.held = await self._ports.store.replace(held, record)
        job.take_note(record)
        wish.grant(address)
        return approval

    async def _redeem(self, job: Job, dialect: LoginDialect, approval: Approval) -> Approval:
        """Send the code, once; return the question with the candidate. Raises ResourceError where it brought none."""
        held, login = await self._bound(job, dialect, approval)
        if login.code is None:
            raise AssertionError("there is a code to redeem")
        await job.channel.ready()
        spend = Spend(
            token=login.code,
            begin=lambda started: dialect.redeem(login, started),
            apply=self._take(job, dialect, login),
            send=job.channel.send,
            deadline=job.provider.resource.spec.limits.timeout,
            place=LOGIN,
        )
        try:
            job.held = await self._ledger.spend(held, spend)
        except Refused as error:
            await job.reread()
            if error.retry is not RetryClass.NEEDS_PERSON:
                raise
            raise await self._end(job, error.message) from None
        except Ambiguous:
            await job.reread()
            raise await self._end(job, LOST) from None
        record = job.held.record
        job.take_note(record)
        if record.approval is None or record.approval.ended:
            why = record.approval.ended if record.approval is not None else LOST
            raise came_to_nothing(job, why, Reason.WRONG_SUBJECT)
        return record.approval

    async def _bound(self, job: Job, dialect: LoginDialect, approval: Approval) -> tuple[Versioned, Login]:
        """Return the record, and the login in it with whom its code goes to; nothing of it is written yet."""
        held, login = await job.ensure_record(), approval.login
        if login is None or held.record.login_claim is not None:
            raise Conflict("somebody else redeems the code, or began anew")
        if login.binding is not None and login.binding != dialect.binding:
            raise await self._end(job, CHANGED)
        try:
            await dialect.reserve(login)
        except CredentialError as error:
            raise await self._end(job, USED if error.reason is Reason.SEED_ALREADY_USED else error.message) from None
        held, login = await job.ensure_record(), replace(login, binding=dialect.binding)
        return replace(held, record=replace(held.record, approval=replace(approval, login=login))), login

    def _take(self, job: Job, dialect: LoginDialect, login: Login) -> _Taking:
        return _Taking(job, dialect, login, self._ports.clock.now())

    async def _end(self, job: Job, why: str) -> ResourceError:
        held = await job.ensure_record()
        record = replace(ended(held.record, why, self._ports.clock.now()), login_claim=None)
        job.held = await self._ports.store.replace(held, record)
        job.take_note(record)
        return came_to_nothing(job, why)

    def _pending(self, job: Job, approval: Approval) -> ApprovalPending:
        upcoming = look_again(job, approval)
        job.asked(approval, upcoming)
        return ApprovalPending(
            f"ServiceIdentity {job.key} waits for a person to log in: open the page in status.approval, or the one that"
            " `keyferry login` shows. The provider has to know the redirect URI"
            f" {self._links.redirect_uri(job.provider.resource)} of the client.",
            approval,
            next_attempt=upcoming,
        )


class _Taking:
    """Puts what a code brought into the record: as a candidate, or as what is to be revoked."""

    def __init__(self, job: Job, dialect: LoginDialect, login: Login, now: float) -> None:
        self._job = job
        self._dialect = dialect
        self._login = login
        self._now = now

    def __call__(self, record: Record, issued: TokenSet) -> Record:
        """Return the record with it. Nothing of it is used before the person confirms."""
        record = self._dialect.taken(record, self._login)
        approval, binding = record.approval, self._dialect.binding
        if approval is None or approval.login is None or approval.login.state != self._login.state:
            return throw_away(record, issued, binding, self._now)  # begun anew, in another process
        why = self._dialect.problem(self._login, issued) or self._objection(issued)
        if why:
            return ended(throw_away(record, issued, binding, self._now), why, self._now)
        candidate = Candidate(
            tokens=issued,
            binding=binding,
            browser=self._login.browser,
            expires_at=self._now + CONFIRM_LIFETIME,
            person=self._dialect.person,
        )
        context = self._job.context(binding, None)
        return replace(
            record,
            keepsakes=context.keepsakes or record.keepsakes,
            revocation=context.revocation,
            approval=replace(approval, login=None, candidate=candidate),
        )

    def _objection(self, issued: TokenSet) -> str:
        """Say why it is not to be used, to the person who logged in."""
        if not issued.publishable:
            return f"the provider issued a token that cannot be used: {issued.problem}"
        expected = self._job.spec.expected_subject
        if expected is None:
            return ""
        try:
            check_subject(issued, expected, self._job.key, personal=True)
        except AnswerError as error:
            return error.message
        return ""
