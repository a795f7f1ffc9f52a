"""Keeps a LabArchives login: a one-time code redeemed once, and the user id behind it looked after from then on.

Nothing refreshes at LabArchives. The user id stands until it is revoked, so "renewing" is asking whether it still
does, and correcting the clock that requests are signed by. The id is kept in the private state and never published:
workloads have their requests signed for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.clients import value
from keyferry.engine.credentials import CredentialReader
from keyferry.engine.job import Outcome, check_binding
from keyferry.engine.seeds import fall_back, reserve_seed, set_aside, with_seed
from keyferry.errors import AnswerError, CredentialError, Reason, Refused, ResourceError, RetryClass
from keyferry.grants.document import host_of
from keyferry.io.http import drive
from keyferry.ledger import Spend
from keyferry.model import TokenSet
from keyferry.providers.labarchives import SESSION_TYPE, AccessKey, epoch_time, redeem, user_info
from keyferry.providers.labarchives.answer import CLOCK
from keyferry.record import Binding, Versioned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from keyferry.engine.apply import Context
    from keyferry.engine.job import Job
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Provider
    from keyferry.io.clock import Clock
    from keyferry.ledger import Ledger
    from keyferry.model import Exchange, HttpRequest, HttpResponse
    from keyferry.providers.labarchives import LabArchivesUser
    from keyferry.record import Record
    from keyferry.secret import SecretValue
    from keyferry.spec.provider import LabArchivesProvider
    from keyferry.spec.resources import IdentityResource

    Send: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]

UNUSED_CODE: Final = "the new one-time code began no login; the one before it goes on"
CHECKED_FOR: Final = 86400.0
"""Seconds for which a login counts as good after LabArchives said so; it is asked again well before their end."""


class LabArchivesExchanger:
    """Redeems codes and looks after logins."""

    def __init__(self, ports: Ports, ledger: Ledger) -> None:
        self._ports = ports
        self._ledger = ledger

    async def perform(self, job: Job) -> Versioned:
        """Return the record with the login checked, or begun. Raises KeyferryErrors."""
        region = region_of(job.provider)
        key = await access_key(job.provider, region)
        context = job.context(binding_of(region, key), None)
        try:
            return await self._perform(job, region, key, context)
        except Refused as error:
            if error.code != CLOCK:
                raise
            # Nothing was used up: the request was refused for its time alone. Once more, by the server's clock.
            job.note(await set_clock(job.provider, region, key, self._ports.clock, job.channel.send))
            await job.reread()
            return await self._perform(job, region, key, context)

    async def has_new_code(self, resource: IdentityResource, provider: Provider | None, held: Versioned | None) -> bool:
        """Tell whether the identity's Secret holds a one-hour code that was never redeemed for it."""
        grant = resource.spec.grant.lab_archives_code
        region = provider.resource.spec.labarchives if provider is not None else None
        if grant is None or region is None or held is None:
            return False
        reader = CredentialReader(self._ports.credentials, resource.key.namespace, _hosts(region))
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
        committed = await self._ledger.recover(held, lambda at: _redeemed(region, blank, code, code, at), outcome.apply)
        outcome.check()
        return committed

    async def _perform(self, job: Job, region: LabArchivesProvider, key: AccessKey, context: Context) -> Versioned:
        code = await self._code(job, region)
        digest = code.fingerprint(self._ports.store.digest_key)
        record = job.observed.record
        if record is None or digest not in (record.seed, *record.former_seeds):
            held = await reserve_seed(job, digest)
            planted = replace(
                with_seed(held.record, code, digest, context.binding),
                previous=set_aside(held.record),
                claim=None,
                revocation=context.revocation,
                source=context.source,
            )
            return await self._redeem(job, region, key, context, replace(held, record=planted))
        if record.claim is not None or record.refresh_token is None or record.refresh_ended:
            await fall_back(job, UNUSED_CODE, lost=True)
            raise _needs_code(job, record)
        check_binding(record, context.binding)
        if not record.session_started_at and job.held is not None:
            return await self._redeem(job, region, key, context, job.held)  # it was not used up when it was sent
        return await self._check(job, region, key, context, record.refresh_token)

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
            begin=lambda started: _redeemed(region, key, email, code, self._server_time(job, started), started),
            apply=outcome.apply,
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
        job.held = await self._ports.store.replace(held, outcome.apply(held.record, _session(user, started, region)))
        outcome.check()
        return job.held

    def _server_time(self, job: Job, now: float) -> float:
        return now + job.provider.clock_ahead

    async def _code(self, job: Job, region: LabArchivesProvider) -> SecretValue:
        grant = job.spec.grant.lab_archives_code
        if grant is None:
            raise ResourceError(
                f"{job.provider.name} is asked with grant {job.spec.grant.type}, which this version cannot carry out",
                reason=Reason.GRANT_NOT_SUPPORTED,
            )
        return await value(job.reader(_hosts(region)), grant.code_from)

    async def _email(self, job: Job, region: LabArchivesProvider) -> SecretValue:
        grant = job.spec.grant.lab_archives_code
        if grant is None:
            raise ResourceError("the grant names no e-mail address")
        return await value(job.reader(_hosts(region)), grant.email_from)


def region_of(provider: Provider) -> LabArchivesProvider:
    """Return what the resource says of a LabArchives region. Raises ResourceError for another provider."""
    region = provider.resource.spec.labarchives
    if region is None:
        raise ResourceError(f"{provider.name} is no LabArchives region")
    return region


async def access_key(provider: Provider, region: LabArchivesProvider) -> AccessKey:
    """Return the organization's key, as it is now. Raises CredentialError."""
    reader = provider.reader(_hosts(region))
    return AccessKey(await value(reader, region.access_key_id_from), await value(reader, region.access_password_from))


async def set_clock(provider: Provider, region: LabArchivesProvider, key: AccessKey, clock: Clock, send: Send) -> str:
    """Ask the server for its time and sign by it from now on; return what people are told. Raises ExchangeError."""
    now = clock.now()
    server = await drive(epoch_time(region.url, key, now), send)
    provider.clock_ahead = server - clock.now()
    return f"LabArchives' clock differs from ours by {server - now:.0f} s; requests are signed by its clock"


def _hosts(region: LabArchivesProvider) -> frozenset[str]:
    return frozenset({host_of(region.url)})


def binding_of(region: LabArchivesProvider, key: AccessKey) -> Binding:
    """Return whom a login belongs to."""
    # A user id is good with the access key that it was issued to only.
    return Binding(region.url, tuple(sorted(_hosts(region))), key.id.reveal())


def _redeemed(
    region: LabArchivesProvider,
    key: AccessKey,
    email: SecretValue,
    code: SecretValue,
    server_time: float,
    started: float | None = None,
) -> Exchange:
    """Redeem a code as an exchange of the ledger's; ``started`` is our own time, where that is another."""
    user = yield from redeem(region.url, key, email, code, server_time)
    return _session(user, server_time if started is None else started, region)


def _session(user: LabArchivesUser, started: float, region: LabArchivesProvider) -> TokenSet:
    """Return a login in the form in which all credentials are kept."""
    problem = (
        ""
        if user.may_log_in_alone
        else "LabArchives says that this login must not be used without its person (auto-login-allowed is false)"
    )
    return TokenSet(
        access_token=user.uid,
        token_type=SESSION_TYPE,
        issued_at=started,
        expires_at=started + CHECKED_FOR,
        refresh_token=user.uid,
        email=user.email,
        issuer=region.url,
        publishable=not problem,
        problem=problem,
    )


def _needs_code(job: Job, record: Record) -> ResourceError:
    """Return the error that asks for a new one-hour code, with what became of the last."""
    grant = job.spec.grant.lab_archives_code
    where = ""
    if grant is not None:
        ref = grant.code_from.secret_key_ref
        where = f" into Secret {job.key.namespace}/{ref.name}, key {ref.key}"
    if record.claim is not None:
        why = "the answer to the last one was lost, so it may be used up, and a code is never sent twice"
    else:
        why = record.refresh_ended or "the last one was used before"
    return ResourceError(
        f"ServiceIdentity {job.key} needs a new one-hour code of LabArchives{where}: {why}. What is there stays until"
        " it lapses; Keyferry goes on as soon as the Secret changes.",
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )
