"""Keeps a LabArchives login: a one-time code redeemed once, and the user id behind it looked after from then on.

Nothing refreshes at LabArchives. The user id stands until it is revoked, so "renewing" is asking whether it still
does, and correcting the clock that requests are signed by. The id is kept in the private state and never published:
workloads have their requests signed for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.asking import Unasked, ask_or_go_on, wants_person, without_candidate
from keyferry.engine.clients import value
from keyferry.engine.credentials import CredentialReader
from keyferry.engine.job import Outcome, check_binding
from keyferry.engine.labarchives_login import LabArchivesBrowser
from keyferry.engine.labarchives_region import access_key, binding_of, hosts_of, redeemed, region_of, session, set_clock
from keyferry.engine.login import LoginFlow
from keyferry.engine.seeds import fall_back, reserve_seed, set_aside, with_seed
from keyferry.errors import AnswerError, CredentialError, Reason, Refused, ResourceError, RetryClass
from keyferry.io.http import drive
from keyferry.ledger import Spend
from keyferry.plan import is_asking, needs_exchange
from keyferry.providers.labarchives import AccessKey, user_info
from keyferry.providers.labarchives.answer import CLOCK
from keyferry.spec.grant import GrantType

if TYPE_CHECKING:
    from keyferry.engine.apply import Context
    from keyferry.engine.job import Job
    from keyferry.engine.links import Links
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Provider
    from keyferry.ledger import Ledger
    from keyferry.record import Record, Versioned
    from keyferry.secret import SecretValue
    from keyferry.spec.provider import LabArchivesProvider
    from keyferry.spec.resources import IdentityResource

UNUSED_CODE: Final = "the new one-time code began no login; the one before it goes on"


class LabArchivesExchanger:
    """Has people log in, redeems codes and looks after logins."""

    def __init__(self, ports: Ports, ledger: Ledger, links: Links, *, prompts: bool) -> None:
        """``prompts`` tells whether anybody would see it when a person is asked."""
        self._ports = ports
        self._ledger = ledger
        self._login = LoginFlow(ports, ledger, links, prompts=prompts)

    async def perform(self, job: Job) -> Versioned:
        """Return the record with the login checked, or begun. Raises KeyferryErrors."""
        region = region_of(job.provider)
        key = await access_key(job.provider, region)
        try:
            return await self._perform(job, region, key)
        except Refused as error:
            if error.code != CLOCK:
                raise
            # Nothing was used up: the request was refused for its time alone. Once more, by the server's clock.
            job.note(await set_clock(job.provider, region, key, self._ports.clock, job.channel.send))
            await job.reread()
            return await self._perform(job, region, key)

    async def has_new_code(self, resource: IdentityResource, provider: Provider | None, held: Versioned | None) -> bool:
        """Tell whether the identity's Secret holds a one-hour code that was never redeemed for it."""
        grant = resource.spec.grant.lab_archives_code
        region = provider.resource.spec.labarchives if provider is not None else None
        if grant is None or region is None or held is None:
            return False
        reader = CredentialReader(self._ports.credentials, resource.key.namespace, hosts_of(region))
        try:
            code = await value(reader, grant.code_from)
        except CredentialError:
            return False  # told of when it is needed
        digest = code.fingerprint(self._ports.store.digest_key)
        return digest not in (held.record.seed, *held.record.former_seeds)

    async def recover(self, job: Job) -> Versioned | None:
        """Commit an answer that had arrived before a crash; needs neither LabArchives nor any secret."""
        held = job.held
        code = held.record.refresh_token if held is not None else None
        if held is None or code is None or held.record.binding is None:
            return None
        region = region_of(job.provider)
        blank = AccessKey(code, code)  # it signs a request that is not sent
        outcome = Outcome(job, job.context(held.record.binding, None), new_session=True)
        committed = await self._ledger.recover(held, lambda at: redeemed(region, blank, code, code, at), outcome.apply)
        outcome.check()
        return committed

    async def recover_login(self, job: Job) -> Versioned | None:
        """Commit what a login's code had brought before a crash, as a candidate."""
        approval = job.held.record.approval if job.held is not None else None
        login = approval.login if approval is not None else None
        if login is None or login.code is None or login.binding is None:
            return None
        region = region_of(job.provider)
        blank = AccessKey(login.code, login.code)  # it signs a request that is not sent
        return await self._login.recover(job, LabArchivesBrowser(job, region, blank, login.binding))

    async def _perform(self, job: Job, region: LabArchivesProvider, key: AccessKey) -> Versioned:
        context = job.context(binding_of(region, key), None)
        browser = LabArchivesBrowser(job, region, key, context.binding)
        if job.observed.answering:
            return await self._answer(job, browser)
        if job.spec.grant.type is GrantType.LABARCHIVES_CODE:
            return await self._keep_code(job, region, key, context, browser)
        return await self._keep_login(job, region, key, context, browser)

    async def _answer(self, job: Job, browser: LabArchivesBrowser) -> Versioned:
        """See to what a person answers just now. It never ends with a token."""
        has_session = _has_session(job.observed.record)
        committed = await ask_or_go_on(job, self._login.proceed(job, browser), has_session=has_session, needed=False)
        if committed is None:
            raise AssertionError("what is not needed is not gone on with")
        return committed

    async def _keep_login(
        self, job: Job, region: LabArchivesProvider, key: AccessKey, context: Context, browser: LabArchivesBrowser
    ) -> Versioned:
        """Have a person log in, or look after the login; while they are asked anew, the old one serves on."""
        observed, now = job.observed, self._ports.clock.now()
        record, has_session = observed.record, _has_session(observed.record)
        if not has_session or observed.login_requested or is_asking(observed, now):
            asking = self._login.proceed(job, browser)
            needed = needs_exchange(observed, now)
            committed = await ask_or_go_on(job, asking, has_session=has_session, needed=needed)
            if committed is not None:
                return committed
        if record is None or record.refresh_token is None:
            raise AssertionError("there is a session")
        return await self._check_or_ask(job, region, key, context, record.refresh_token, browser)

    async def _keep_code(
        self, job: Job, region: LabArchivesProvider, key: AccessKey, context: Context, browser: LabArchivesBrowser
    ) -> Versioned:
        """Redeem the Secret's code, once, or look after the login; without a code, ask where there is a page."""
        code, record = await self._code(job, region), job.observed.record
        digest = code.fingerprint(self._ports.store.digest_key) if code is not None else None
        known = () if record is None else (record.seed, *record.former_seeds)
        if code is not None and digest is not None and digest not in known:
            held = await reserve_seed(job, digest)
            planted = replace(
                with_seed(held.record, code, digest, context.binding),
                previous=set_aside(held.record),
                claim=None,
                revocation=context.revocation,
                source=context.source,
            )
            return await self._redeem_or_ask(job, region, key, context, replace(held, record=planted), browser)
        if record is None or record.claim is not None or record.refresh_token is None or record.refresh_ended:
            await fall_back(job, UNUSED_CODE, lost=True)
            return await self._ask_for_code(job, browser, record)
        if _has_session(record) and wants_person(job):
            needed = needs_exchange(job.observed, self._ports.clock.now())
            asking = self._ask_for_code(job, browser, record)
            committed = await ask_or_go_on(job, asking, has_session=True, needed=needed)
            if committed is not None:
                return committed
        check_binding(record, context.binding)
        if not record.session_started_at and job.held is not None:  # it was not used up when it was sent
            return await self._redeem_or_ask(job, region, key, context, job.held, browser)
        return await self._check_or_ask(job, region, key, context, record.refresh_token, browser)

    async def _ask_for_code(self, job: Job, browser: LabArchivesBrowser, record: Record | None) -> Versioned:
        """Ask through the page, where a person logs in or types a code. Raises Unasked where there is none."""
        if not self._login.available:
            raise _needs_code(job, record)
        return await self._login.proceed(job, browser)

    async def _redeem_or_ask(
        self,
        job: Job,
        region: LabArchivesProvider,
        key: AccessKey,
        context: Context,
        held: Versioned,
        browser: LabArchivesBrowser,
    ) -> Versioned:
        try:
            return await self._redeem(job, region, key, context, held)
        except Refused as error:
            return await self._ask_instead(job, browser, error)

    async def _check_or_ask(
        self,
        job: Job,
        region: LabArchivesProvider,
        key: AccessKey,
        context: Context,
        uid: SecretValue,
        browser: LabArchivesBrowser,
    ) -> Versioned:
        check_binding(job.observed.record, context.binding)
        try:
            return await self._check(job, region, key, context, uid)
        except Refused as error:
            return await self._ask_instead(job, browser, error)

    async def _ask_instead(self, job: Job, browser: LabArchivesBrowser, error: Refused) -> Versioned:
        """Ask a person where only a person helps, and one can be asked."""
        if error.retry is not RetryClass.NEEDS_PERSON or not self._login.available:
            raise error
        job.note(error.message)
        await job.reread()
        return await self._login.proceed(job, browser)

    async def _redeem(
        self, job: Job, region: LabArchivesProvider, key: AccessKey, context: Context, held: Versioned
    ) -> Versioned:
        code, email = held.record.refresh_token, await self._email(job, region)
        if code is None:
            raise ResourceError("the private state lost its one-time code")
        outcome = Outcome(job, context, new_session=True)
        await job.channel.ready()
        spend = Spend(
            token=code,
            begin=lambda started: redeemed(region, key, email, code, self._server_time(job, started), started),
            apply=lambda record, issued: _unasked(outcome.apply(record, issued), issued.issued_at),
            send=job.channel.send,
            deadline=job.provider.resource.spec.limits.timeout,
        )
        try:
            committed = await self._ledger.spend(held, spend)
        except Refused as error:
            if error.retry is RetryClass.NEEDS_PERSON:
                await fall_back(job, UNUSED_CODE, lost=True)
                error.reason = Reason.APPROVAL_REQUIRED
            raise
        job.take_note(committed.record)
        try:
            outcome.check()
        except AnswerError as error:
            await fall_back(job, f"{UNUSED_CODE}: {error.message}")
            raise
        return committed

    async def _check(
        self, job: Job, region: LabArchivesProvider, key: AccessKey, context: Context, uid: SecretValue
    ) -> Versioned:
        """Ask whether the login still holds, and note that it does."""
        held = await job.ensure_record()
        started = self._ports.clock.now()
        try:
            user = await drive(user_info(region.url, key, uid, self._server_time(job, started)), job.channel.send)
        except Refused as error:
            if error.retry is RetryClass.NEEDS_PERSON:
                await self._ports.store.replace(held, replace(held.record, refresh_ended=error.message))
                await job.reread()
            raise
        outcome = Outcome(job, context, new_session=False)
        job.held = await self._ports.store.replace(held, outcome.apply(held.record, session(user, started, region)))
        outcome.check()
        return job.held

    def _server_time(self, job: Job, now: float) -> float:
        return now + job.provider.clock_ahead

    async def _code(self, job: Job, region: LabArchivesProvider) -> SecretValue | None:
        """Return the Secret's code; None where there is none and a person can be asked through the page."""
        grant = job.spec.grant.lab_archives_code
        if grant is None:
            raise ResourceError("the grant names no one-hour code")
        try:
            return await value(job.reader(hosts_of(region)), grant.code_from)
        except CredentialError as error:
            if error.reason is Reason.SECRET_NOT_FOUND and self._login.available:
                return None
            raise

    async def _email(self, job: Job, region: LabArchivesProvider) -> SecretValue:
        grant = job.spec.grant.lab_archives_code
        if grant is None:
            raise ResourceError("the grant names no e-mail address")
        return await value(job.reader(hosts_of(region)), grant.email_from)


def _needs_code(job: Job, record: Record | None) -> Unasked:
    """Return the error that asks for a new one-hour code, with what became of the last."""
    grant = job.spec.grant.lab_archives_code
    where = ""
    if grant is not None:
        ref = grant.code_from.secret_key_ref
        where = f" into Secret {job.key.namespace}/{ref.name}, key {ref.key}"
    if record is None:
        why = "there was none yet"
    elif record.claim is not None:
        why = "the answer to the last one was lost, so it may be used up, and a code is never sent twice"
    else:
        why = record.refresh_ended or "the last one was used before"
    return Unasked(
        f"ServiceIdentity {job.key} needs a new one-hour code of LabArchives{where}: {why}. What is there stays until"
        " it lapses; Keyferry goes on as soon as the Secret changes.",
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )


def _unasked(record: Record, now: float) -> Record:
    """Return the record with nobody asked any more: the Secret holds what a person was to give."""
    return without_candidate(record, now).with_answer()


def _has_session(record: Record | None) -> bool:
    return (
        record is not None
        and record.refresh_token is not None
        and not record.refresh_ended
        and bool(record.session_started_at)
    )
