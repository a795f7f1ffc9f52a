"""Gets tokens from a Tiled server: one login, a session that slides on, and API keys minted by it.

Tiled's refresh tokens may be used again, so nothing here needs the ledger but a person's approval. What needs care
instead are the limits: a login counts against 200 sessions even after its revocation, so it is never repeated to renew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.asking import SESSION_GOES_ON, ask_or_go_on, wants_person
from keyferry.engine.clients import value
from keyferry.engine.device import DeviceFlow
from keyferry.engine.job import Outcome, check_binding, needs_seed, with_known_holder
from keyferry.engine.seeds import fall_back, reserve_seed, with_seed
from keyferry.engine.tiled_keys import KeyMint
from keyferry.engine.tiled_upstream import upstream_attempt, upstream_context
from keyferry.errors import AnswerError, KeyferryError, Reason, Refused, ResourceError, RetryClass
from keyferry.freshness import keepalive_time
from keyferry.io.http import drive
from keyferry.plan import needs_exchange
from keyferry.providers.tiled import (
    authorize_device,
    login,
    poll_device,
    refresh,
    revoke_session,
    session_id,
    whoami,
)
from keyferry.record import Binding, Versioned

if TYPE_CHECKING:
    from keyferry.engine.apply import Context
    from keyferry.engine.exchange import OAuthExchanger
    from keyferry.engine.job import Job
    from keyferry.engine.links import Links
    from keyferry.engine.ports import Ports
    from keyferry.grants.rfc8628_device_code import Authorization
    from keyferry.ledger import Ledger
    from keyferry.model import Exchange, TokenSet
    from keyferry.providers.tiled import TiledMetadata
    from keyferry.record import Record
    from keyferry.secret import SecretValue

LOGIN_MARGIN: Final = 30.0
"""Seconds of life that the login's access token must have left to mint with (or half of a short one's)."""


@dataclass(frozen=True, slots=True)
class TiledDevice:
    """Tiled's own dialect of device logins, for ``keyferry.engine.device``."""

    metadata: TiledMetadata

    def authorize(self, started_at: float) -> Authorization:
        """Ask for a device code."""
        return authorize_device(self.metadata, started_at)

    def poll(self, device_code: SecretValue, started_at: float) -> Exchange:
        """Ask once."""
        return poll_device(self.metadata, device_code, started_at)


class TiledExchanger:
    """Performs logins, refreshes and mintings with a Tiled server."""

    def __init__(self, ports: Ports, ledger: Ledger, oauth: OAuthExchanger, links: Links, *, prompts: bool) -> None:
        """``oauth`` looks after sessions at identity providers; ``prompts`` is as for ``DeviceFlow``."""
        self._ports = ports
        self._ledger = ledger
        self._oauth = oauth
        self._device = DeviceFlow(ports, ledger, links, prompts=prompts)
        self._keys = KeyMint(ports)

    async def perform(self, job: Job) -> Versioned:
        """Return the record with what was due renewed. Raises KeyferryErrors."""
        metadata = await job.provider.tiled(job.channel)
        await job.provider.may_show_certificate(metadata.hosts)
        job.keepsakes = job.provider.keepsakes
        context = _context(job, metadata)
        if job.spec.api_key is None:
            return await self._session(job, metadata, context)
        held = job.held
        asking = job.asks and wants_person(job)
        if held is None or asking or not self._login_serves(held.record, context) or self._idles(held.record):
            held = await self._session(job, metadata, context)
        if not self._keys.due(job, held.record):
            return held
        try:
            return await self._keys.mint(job, metadata, held, job.spec.api_key, context)
        except Refused as error:
            if error.code not in ("access_token_expired", "invalid_token"):
                raise
            await job.reread()
            held = await self._session(job, metadata, context)
            return await self._keys.mint(job, metadata, held, job.spec.api_key, context)

    async def _session(self, job: Job, metadata: TiledMetadata, context: Context) -> Versioned:
        """Refresh the session, or begin one, wherever this server's sessions are."""
        if metadata.identity_provider is None:
            return await self._slide(job, metadata, context)
        if job.spec.grant.password is not None:
            raise ResourceError(metadata.login_problem, reason=Reason.GRANT_NOT_SUPPORTED)
        committed = await self._oauth.by_attempt(upstream_attempt(job, metadata.identity_provider, context))
        await job.reread()
        return committed

    def _login_serves(self, record: Record, context: Context) -> bool:
        """Tell whether the login's access token is good for a request, and this server's."""
        token = record.login
        if token is None or record.binding != context.binding:
            return False
        margin = min(LOGIN_MARGIN, token.lifetime / 2)
        return self._ports.clock.now() < token.expires_at - margin

    def _idles(self, record: Record) -> bool:
        at = keepalive_time(record.refresh_issued_at, record.refresh_idle)
        return at is not None and self._ports.clock.now() >= at

    async def _slide(self, job: Job, metadata: TiledMetadata, context: Context) -> Versioned:
        """Refresh the session; begin one where there is none, or where it ended and the grant can."""
        await self._finish_giving_up(job, metadata)
        record = job.observed.record
        seed = await self._seed(job, metadata)
        if seed is not None:
            digest = seed.fingerprint(self._ports.store.digest_key)
            if record is None or digest not in (record.seed, *record.former_seeds):
                return await self._plant(job, metadata, context, seed, digest)
        user = await self._user(job, metadata)
        token = _session_token(record, user)
        if job.asks and (token is None or wants_person(job)):
            needed = needs_exchange(job.observed, self._ports.clock.now())
            asking = self._ask(job, metadata, context)
            committed = await ask_or_go_on(job, asking, has_session=token is not None, needed=needed)
            if committed is not None:
                return committed
        if token is not None:
            check_binding(record, context.binding)
            try:
                return await self._refresh(job, metadata, context, token, new_session=False)
            except Refused as error:
                if error.retry is not RetryClass.NEEDS_PERSON:
                    raise
                await self._end_session(job, error)
        return await self._begin(job, metadata, context, user)

    async def _begin(self, job: Job, metadata: TiledMetadata, context: Context, user: str) -> Versioned:
        """Begin a session, in the grant's way."""
        if job.asks:
            return await self._ask(job, metadata, context)
        if job.can_login:
            return await self._login(job, metadata, context, user)
        raise needs_seed(job)

    async def _ask(self, job: Job, metadata: TiledMetadata, context: Context) -> Versioned:
        """Begin a session with a person's approval."""
        outcome = Outcome(job, context, new_session=True)
        job.held = await self._device.proceed(job, TiledDevice(metadata), outcome.apply)
        await self._accept(job, metadata, outcome)
        return job.held

    async def _plant(
        self, job: Job, metadata: TiledMetadata, context: Context, seed: SecretValue, digest: str
    ) -> Versioned:
        """Take over a session that a person gave the refresh token of."""
        held = await reserve_seed(job, digest)
        planted = with_seed(held.record, seed, digest, context.binding)
        job.held = await self._ports.store.replace(held, planted)
        return await self._refresh(job, metadata, context, seed, new_session=True)

    async def _refresh(
        self, job: Job, metadata: TiledMetadata, context: Context, token: SecretValue, *, new_session: bool
    ) -> Versioned:
        await job.channel.ready()
        started = self._ports.clock.now()
        issued = await drive(refresh(metadata, token, started), job.channel.send)
        issued = await self._named(job, metadata, issued, new_session=new_session)
        return await self._commit(job, metadata, context, issued, new_session=new_session)

    async def _login(self, job: Job, metadata: TiledMetadata, context: Context, user: str) -> Versioned:
        """Begin a session; it counts against the user's 200, so the state must be writable before there is one."""
        grant = job.spec.grant.password
        if grant is None:
            raise ResourceError(
                f"{job.provider.name} takes a password or a refresh token only", reason=Reason.GRANT_NOT_SUPPORTED
            )
        reader = job.reader(metadata.hosts)
        username = await value(reader, grant.username_from)
        password = await value(reader, grant.password_from)
        await job.prove_writable()
        await job.channel.ready()
        started = self._ports.clock.now()
        issued = await drive(login(metadata, username, password, started), job.channel.send)
        return await self._commit(job, metadata, context, issued, new_session=True, user=user)

    async def _user(self, job: Job, metadata: TiledMetadata) -> str:
        """Return the fingerprint of who logs in; empty where nobody does."""
        grant = job.spec.grant.password
        if grant is None:
            return ""
        username = await value(job.reader(metadata.hosts), grant.username_from)
        return username.fingerprint(self._ports.store.digest_key)

    async def _named(self, job: Job, metadata: TiledMetadata, issued: TokenSet, *, new_session: bool) -> TokenSet:
        """Return a refreshed token with whose it is, where that matters and no login's answer told it."""
        record = job.held.record if job.held is not None and not new_session else None
        known = with_known_holder(issued, record).subject if record is not None else ""
        must = job.spec.expected_subject is not None
        if known or not (must or not job.can_login):
            return issued
        try:
            inquiry = whoami(metadata, issued.access_token, now=self._ports.clock.now())
            principal = await drive(inquiry, job.channel.send)
        except KeyferryError:
            if must:
                raise
            return issued  # it is asked again with the next refresh
        return replace(issued, subject=principal.name_at(metadata.authenticator))

    async def _commit(
        self,
        job: Job,
        metadata: TiledMetadata,
        context: Context,
        issued: TokenSet,
        *,
        new_session: bool,
        user: str = "",
    ) -> Versioned:
        held = await job.ensure_record()
        outcome = Outcome(job, context, new_session=new_session)
        job.held = await self._ledger.commit(
            held, lambda record: replace(outcome.apply(record, issued), seed=user or record.seed).without_claim()
        )
        await self._accept(job, metadata, outcome)
        return job.held

    async def _accept(self, job: Job, metadata: TiledMetadata, outcome: Outcome) -> None:
        """Raise AnswerError where what was issued must not be used; end the session that is somebody else's."""
        try:
            outcome.check()
        except AnswerError as error:
            if error.reason is Reason.WRONG_SUBJECT and outcome.given_up and outcome.issued is not None:
                await self._revoke(job, metadata, outcome.issued.refresh_token)
                await fall_back(job, f"{SESSION_GOES_ON}: {error.message}")
            await job.reread()
            raise
        await job.reread()
        if job.held is not None and job.held.record.session_expires_at is None and not job.can_login:
            await self._note_session_end(job, metadata, job.held)

    async def _finish_giving_up(self, job: Job, metadata: TiledMetadata) -> None:
        """End a wrong person's session that was kept for it, where a crash came between. Raises Conflict then."""
        record = job.observed.record
        if record is not None and record.wrong_subject and record.previous is not None:
            await self._revoke(job, metadata, record.refresh_token)
            await fall_back(job, f"{SESSION_GOES_ON}: {record.refresh_ended}")

    async def _revoke(self, job: Job, metadata: TiledMetadata, token: SecretValue | None) -> None:
        """End the session of who turned out to be somebody else; the refusal is reported whatever comes of it."""
        if token is None:
            return
        try:
            await drive(revoke_session(metadata, token, now=self._ports.clock.now()), job.channel.send)
        except KeyferryError as error:
            job.note(f"the session of the wrong subject could not be revoked: {error.message}")

    async def _note_session_end(self, job: Job, metadata: TiledMetadata, held: Versioned) -> None:
        """Ask when the session that a person began is over: refreshing slides its tokens on, but never past that."""
        record = held.record
        access = record.login or record.token
        which = session_id(record.refresh_token) if record.refresh_token is not None else ""
        if access is None or not access.access_token or not which:
            return
        try:
            request = whoami(metadata, access.access_token, now=self._ports.clock.now())
            principal = await drive(request, job.channel.send)
        except KeyferryError:
            return  # it is asked again after the next refresh
        known = {session.uuid.replace("-", ""): session.expires_at for session in principal.sessions}
        if known.get(which) is not None:
            await self._ports.store.replace(held, replace(record, session_expires_at=known[which]))
            await job.reread()

    async def _end_session(self, job: Job, error: Refused) -> None:
        """Note that the session is over, so that its refresh token is not sent again."""
        held = await job.ensure_record()
        job.held = await self._ports.store.replace(held, replace(held.record, refresh_ended=error.message))
        await job.reread()

    async def _seed(self, job: Job, metadata: TiledMetadata) -> SecretValue | None:
        grant = job.spec.grant.refresh_token
        return None if grant is None else await value(job.reader(metadata.hosts), grant.from_)


def _session_token(record: Record | None, user: str) -> SecretValue | None:
    """Return the refresh token of a session that goes on, and is that of ``user`` where somebody logs in by name."""
    if record is None or record.refresh_ended or (user and record.seed and record.seed != user):
        return None
    return record.refresh_token


def _context(job: Job, metadata: TiledMetadata) -> Context:
    """Return what the record takes in, with whom its session belongs to: this server, or its identity provider."""
    hosts = tuple(sorted(metadata.hosts))
    if metadata.identity_provider is not None:
        binding = Binding(metadata.api_url, hosts, metadata.identity_provider.client_id)
        return upstream_context(job.context(binding, None), metadata.identity_provider)
    authenticator = metadata.authenticator
    if job.asks:
        authenticator = metadata.device.authenticator if metadata.device is not None else ""
    return job.context(Binding(metadata.api_url, hosts, authenticator), None)
