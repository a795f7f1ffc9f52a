"""Gets a token from an OAuth provider, by the way that the plan picked, and commits it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from keyferry.engine.asking import SESSION_GOES_ON, ask_or_go_on, wants_person
from keyferry.engine.attempt import Attempts
from keyferry.engine.clients import asserts_afresh, presents_fresh_token
from keyferry.engine.device import DeviceFlow, OAuthDevice
from keyferry.engine.job import Outcome, check_binding, needs_seed, note_scope
from keyferry.engine.login import LoginFlow
from keyferry.engine.oauth_login import OAuthLogin, blank_inputs
from keyferry.engine.seeds import fall_back, reserve_seed, set_aside, with_seed
from keyferry.errors import (
    AnswerError,
    Conflict,
    KeyferryError,
    Reason,
    Refused,
    ResourceError,
    RetryClass,
)
from keyferry.frozen import replace
from keyferry.grants import GRANTS
from keyferry.grants.rfc6749_refresh_token import refresh
from keyferry.io.http import drive
from keyferry.ledger import Spend
from keyferry.plan import Route, needs_exchange, route
from keyferry.providers.revocation import TokenTypeHint, find_revocation_endpoint, revoke
from keyferry.spec.grant import GrantType
from keyferry.spec.provider import Rotation

if TYPE_CHECKING:
    from keyferry.engine.attempt import Attempt
    from keyferry.engine.clients import IdentityTokens
    from keyferry.engine.job import Job
    from keyferry.engine.links import Links
    from keyferry.engine.ports import Ports
    from keyferry.grants.inputs import GrantInputs
    from keyferry.ledger import Ledger
    from keyferry.model import Exchange, TokenSet
    from keyferry.record import Record, Versioned
    from keyferry.secret import SecretValue
    from keyferry.spec.provider import OAuthProvider


REFUSED_SEED: Final = "the provider refused the new refresh token; the session before it goes on"
SUBJECT_REFUSED: Final = frozenset({"invalid_grant", "invalid_request", "invalid_token"})
"""How providers refuse a subject token or an assertion (RFC 8693 2.2.2, RFC 7523 3.1; Keycloak uses all three)."""


class OAuthExchanger:
    """Performs exchanges with OAuth and OpenID Connect providers."""

    def __init__(self, ports: Ports, ledger: Ledger, tokens: IdentityTokens, links: Links, *, prompts: bool) -> None:
        self._ports = ports
        self._ledger = ledger
        self._device = DeviceFlow(ports, ledger, links, prompts=prompts)
        self._login = LoginFlow(ports, ledger, links, prompts=prompts)
        self._attempts = Attempts(ports, tokens)
        self._in_flight: dict[tuple[str, ...], asyncio.Future[TokenSet]] = {}
        self._accepted: dict[tuple[str, str], int] = {}

    async def perform(self, job: Job) -> Versioned:
        """Return the record with the new token committed. Raises KeyferryErrors."""
        oauth = job.provider.resource.spec.oauth
        if oauth is None:
            raise ResourceError(f"{job.provider.name} is no OAuth provider")
        metadata = await job.provider.oauth(job.channel)
        await job.provider.may_show_certificate(metadata.hosts)
        clients = await self._attempts.clients(job, oauth, metadata)
        # The secret that was accepted last goes first, so that a half-done rotation costs no refusal each time.
        start = min(self._accepted.get((job.provider.name, clients[0].client_id), 0), len(clients) - 1)
        order = [*range(start, len(clients)), *range(start)]
        for index in order:
            client = clients[index]
            try:
                committed = await self.by_attempt(await self._attempts.attempt(job, oauth, metadata, client))
            except Refused as error:
                if error.reason is Reason.CLIENT_REJECTED and asserts_afresh(job.spec.client or oauth.client):
                    error.retry = RetryClass.SUSPICIOUS  # the next try shows another assertion
                if error.reason is not Reason.CLIENT_REJECTED or index == order[-1]:
                    raise
                await job.reread()
            else:
                self._accepted[job.provider.name, client.client_id] = index
                return committed
        raise AssertionError("unreachable: the last candidate returns or raises")

    async def recover_login(self, job: Job) -> Versioned | None:
        """Commit what a login's code had brought before a crash, as a candidate."""
        approval = job.held.record.approval if job.held is not None else None
        binding = approval.login.binding if approval is not None and approval.login is not None else None
        if binding is None:
            return None
        inputs = blank_inputs(job, binding, job.provider.resource.spec.oauth)
        return await self._login.recover(job, OAuthLogin(job, inputs, binding))

    async def recover(self, job: Job, oauth: OAuthProvider) -> Versioned | None:
        """Commit an answer that had arrived before a crash; needs neither the provider nor any secret."""
        held = job.held
        if held is None or held.record.claim is None or held.record.binding is None:
            return None
        bound = held.record.binding
        inputs = blank_inputs(job, bound, oauth)
        token = held.record.refresh_token
        if token is None:
            return None
        context = job.context(bound, oauth.refresh_tokens.idle)
        outcome = Outcome(job, context, new_session=False)
        try:
            committed = await self._ledger.recover(
                held,
                lambda started: self._refresh(replace(inputs, started_at=started), held.record, token, one_time=True),
                outcome.apply,
            )
        except Refused as error:
            raise _for_person(job, error) from None
        outcome.check()
        return committed

    async def by_attempt(self, attempt: Attempt) -> Versioned:
        """Return the record with the new token committed, had in the way that the plan picks. Raises KeyferryErrors."""
        job = attempt.job
        if job.asks and job.observed.answering:
            return await self._ask_or_go_on(attempt, None)
        seed = await self._attempts.seed(job, attempt.metadata)
        digest = seed.fingerprint(self._ports.store.digest_key) if seed is not None else None
        # A wait for the provider's rate comes before the decision: what is right now may be wrong after it.
        await job.channel.ready()
        observed = job.observed
        way = route(observed, seed=digest, can_login=job.can_login, now=self._ports.clock.now())
        if way in _BY_SESSION:
            check_binding(observed.record, attempt.context.binding)
        if way is Route.WAIT:
            raise Conflict("it is not the time yet to settle a doubt; the plan says when")
        if way is Route.SEED and seed is not None and digest is not None:
            return await self._plant(attempt, seed, digest)
        if job.asks:
            await self._finish_giving_up(attempt)
            return await self._ask_or_go_on(attempt, way)
        if way in _BY_SESSION:
            committed = await self._go_on(attempt, way)
            if committed is not None:
                return committed
        elif way is Route.ASK:
            raise needs_seed(job)
        return await self._obtain(attempt, digest or "")

    async def _go_on(self, attempt: Attempt, way: Route) -> Versioned | None:
        """Use the session's refresh token; None where the session ended and the grant can begin another."""
        job = attempt.job
        held = job.held
        token = held.record.refresh_token if held is not None else None
        if held is None or token is None:
            raise ResourceError("the private state lost its refresh token")
        try:
            return await self._spend(attempt, held, token, attempt_no=2 if way is Route.REPLAY else 1)
        except Refused as error:
            if error.retry is RetryClass.NEEDS_PERSON:
                await fall_back(job, REFUSED_SEED)
            if not ((job.can_login or job.asks) and error.retry is RetryClass.NEEDS_PERSON):
                raise _for_person(job, error) from None
            await job.reread()
            return None

    async def _ask_or_go_on(self, attempt: Attempt, way: Route | None) -> Versioned:
        """Ask a person, or use the session that they began; while they are asked anew, the old one serves on.

        Without a ``way`` it is only about what they answer just now.
        """
        observed = attempt.job.observed
        needed = way is not None and needs_exchange(observed, self._ports.clock.now())
        has_session = way in _BY_SESSION if way is not None else _has_session(observed.record)
        if not has_session or way is None or wants_person(attempt.job):
            asking = self._ask(attempt)
            committed = await ask_or_go_on(attempt.job, asking, has_session=has_session, needed=needed)
            if committed is not None:
                return committed
        if way is None:
            raise AssertionError("what is not asked for goes on by a way")
        return await self._go_on(attempt, way) or await self._ask(attempt)

    async def _ask(self, attempt: Attempt) -> Versioned:
        """Begin a session with a person's approval."""
        if attempt.job.spec.grant.type is GrantType.AUTHORIZATION_CODE:
            binding = attempt.context.binding
            return await self._login.proceed(attempt.job, OAuthLogin(attempt.job, attempt.inputs, binding, attempt))
        outcome = Outcome(attempt.job, attempt.context, new_session=True)
        committed = await self._device.proceed(attempt.job, OAuthDevice(attempt), outcome.apply)
        return await self._accept(attempt, outcome, committed)

    async def _plant(self, attempt: Attempt, seed: SecretValue, digest: str) -> Versioned:
        """Begin a chain of refresh tokens with the one that a person gave, unless somebody did already."""
        job = attempt.job
        held = await reserve_seed(job, digest)
        planted = replace(
            with_seed(held.record, seed, digest, attempt.context.binding),
            previous=set_aside(held.record),
            refresh_issued_at=self._ports.clock.now(),
            refresh_expires_at=None,
            claim=None,
            revocation=attempt.context.revocation,
            source=attempt.context.source,
        )
        try:
            return await self._spend(attempt, replace(held, record=planted), seed, attempt_no=1, new_session=True)
        except Refused as error:
            if error.retry is RetryClass.NEEDS_PERSON:
                await fall_back(job, REFUSED_SEED)
            raise _for_person(job, error) from None

    async def _spend(
        self, attempt: Attempt, held: Versioned, token: SecretValue, *, attempt_no: int, new_session: bool = False
    ) -> Versioned:
        """Refresh: through the ledger where the provider may rotate, simply where the resource says it does not."""
        job = attempt.job
        reusable = attempt.oauth.refresh_tokens.rotation is Rotation.REUSABLE
        outcome = Outcome(job, attempt.context, new_session=new_session)

        def begin(started: float) -> Exchange:
            return self._refresh(replace(attempt.inputs, started_at=started), held.record, token, one_time=not reusable)

        await job.channel.ready()
        if reusable:
            issued = await drive(begin(self._ports.clock.now()), job.channel.send)
            committed = await self._ports.store.replace(held, outcome.apply(held.record, issued).without_claim())
        else:
            spend = Spend(
                token=token,
                begin=begin,
                apply=outcome.apply,
                send=job.channel.send,
                deadline=job.provider.resource.spec.limits.timeout,
                attempt=attempt_no,
            )
            committed = await self._ledger.spend(held, spend)
        return await self._accept(attempt, outcome, committed)

    async def _obtain(self, attempt: Attempt, user: str) -> Versioned:
        """Make the grant's own request; equal ones in flight are one. ``user`` is the fingerprint of who logs in."""
        job = attempt.job
        if job.refreshes:
            return await self._log_in(attempt, user)
        issued = await self._shared(attempt)
        outcome = Outcome(job, attempt.context, new_session=True)
        before = job.held.record if job.held is not None else job.new_record()
        record = outcome.apply(before, issued).without_claim()
        if job.held is None:
            committed = await self._ports.store.create(record)
        else:
            committed = await self._ports.store.replace(job.held, record)
        return await self._accept(attempt, outcome, committed)

    async def _log_in(self, attempt: Attempt, user: str) -> Versioned:
        """Begin a session. Sessions are counted by some servers, so the state must be writable before there is one."""
        job = attempt.job
        held = await job.prove_writable()
        issued = await self._request(attempt)
        outcome = Outcome(job, attempt.context, new_session=True)
        committed = await self._ledger.commit(
            held, lambda record: replace(outcome.apply(record, issued), seed=user).without_claim()
        )
        return await self._accept(attempt, outcome, committed)

    async def _accept(self, attempt: Attempt, outcome: Outcome, committed: Versioned) -> Versioned:
        note_scope(attempt.job, outcome)
        try:
            outcome.check()
        except AnswerError as error:
            if error.reason is Reason.WRONG_SUBJECT and outcome.given_up and outcome.issued is not None:
                issued = outcome.issued
                await self._give_up(attempt, issued.refresh_token, issued.access_token, issued.issuer, error.message)
            raise
        return committed

    async def _finish_giving_up(self, attempt: Attempt) -> None:
        """Revoke a wrong person's login that was kept for it, where a crash came between. Raises Conflict then."""
        record = attempt.job.observed.record
        if record is not None and record.wrong_subject and record.refresh_ended and record.refresh_token is not None:
            known = record.login or record.token
            issuer = known.issuer if known is not None else ""
            await self._give_up(attempt, record.refresh_token, None, issuer, record.refresh_ended)

    async def _give_up(
        self, attempt: Attempt, refresh_token: SecretValue | None, access: SecretValue | None, issuer: str, why: str
    ) -> None:
        """Revoke another's login, if need be when the identity goes. Raises Conflict: the session before goes on."""
        job = attempt.job
        revoked = await self._revoke(attempt, refresh_token, access, issuer)
        await fall_back(job, f"{SESSION_GOES_ON}: {why}")
        if revoked and job.asks and job.held is not None:
            job.held = await self._ports.store.replace(job.held, replace(job.held.record, refresh_token=None))

    async def _revoke(
        self, attempt: Attempt, refresh_token: SecretValue | None, access: SecretValue | None, issuer: str
    ) -> bool:
        """Revoke what turned out to be somebody else's; False where that is to be tried again."""
        endpoint, done = await self._revocation_endpoint(attempt, issuer), True
        credentials: tuple[tuple[SecretValue | None, TokenTypeHint], ...] = (
            (refresh_token, "refresh_token"),
            (access, "access_token"),
        )
        for token, hint in credentials:
            if token is None or not endpoint:
                continue
            request = revoke(endpoint, attempt.client, token, hint, self._ports.clock.now(), attempt.inputs.hidden)
            try:
                await drive(request, attempt.job.channel.send)
            except KeyferryError as error:
                attempt.job.note(f"a token of the wrong subject could not be revoked: {error.message}")
                final = isinstance(error, Refused) and error.retry is not RetryClass.TRANSIENT
                done = done and final  # what will be refused again is not asked, and told, again
        return done

    async def _revocation_endpoint(self, attempt: Attempt, issuer: str) -> str:
        """Return where tokens are revoked, asking their issuer where only endpoints are known; '' where nowhere."""
        metadata = attempt.metadata
        if metadata.revocation_endpoint or metadata.issuer:
            return metadata.revocation_endpoint
        try:
            return await drive(find_revocation_endpoint(issuer, metadata.token_endpoint), attempt.job.channel.send)
        except KeyferryError as error:
            attempt.job.note(f"where a token of the wrong subject is revoked could not be found out: {error.message}")
            return ""

    async def _shared(self, attempt: Attempt) -> TokenSet:
        job = attempt.job
        flight = (job.provider.name, job.key.namespace, job.observed.spec_hash, attempt.client.client_id, job.cause)
        running = self._in_flight.get(flight)
        if running is not None:
            return await asyncio.shield(running)
        future: asyncio.Future[TokenSet] = asyncio.get_running_loop().create_future()
        self._in_flight[flight] = future
        try:
            issued = await self._request(attempt)
        except BaseException as error:
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # whoever waits sees it; nobody waiting is no defect
            else:
                future.cancel()
            raise
        else:
            future.set_result(issued)
            return issued
        finally:
            del self._in_flight[flight]

    async def _request(self, attempt: Attempt) -> TokenSet:
        await attempt.job.channel.ready()
        inputs = replace(attempt.inputs, started_at=self._ports.clock.now())
        try:
            return await drive(GRANTS[attempt.job.spec.grant.type](inputs), attempt.job.channel.send)
        except Refused as error:
            if error.code in SUBJECT_REFUSED and presents_fresh_token(attempt.job.spec):
                # The next try presents another token, so a refusal of this one is not for good.
                error.retry = RetryClass.SUSPICIOUS
            raise

    def _refresh(self, inputs: GrantInputs, record: Record, token: SecretValue, *, one_time: bool) -> Exchange:
        return refresh(
            inputs,
            token,
            one_time=one_time,
            previous_scope=record.token.scope if record.token is not None else "",
            refresh_expires_at=record.refresh_expires_at,
        )


def _has_session(record: Record | None) -> bool:
    return record is not None and record.refresh_token is not None and not record.refresh_ended


_BY_SESSION: Final = frozenset({Route.REFRESH, Route.REPLAY})


def _for_person(job: Job, error: Refused) -> Refused:
    """Say that a person is needed where the credential that ended is one that only a person can replace."""
    if error.retry is RetryClass.NEEDS_PERSON and not job.can_login:
        error.reason = Reason.APPROVAL_REQUIRED
    return error
