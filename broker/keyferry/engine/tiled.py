"""Gets tokens from a Tiled server: one login, a session that slides on, and API keys minted by it.

Tiled's refresh tokens may be used again, so nothing here needs the ledger. What needs care instead are the limits: a
login counts against 200 sessions even after its revocation, so it is never repeated to renew, and a key that was
minted but not noted counts against 100 keys, so such keys are looked for and removed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.apply import with_published
from keyferry.engine.clients import value
from keyferry.engine.job import Outcome, check_binding, needs_seed
from keyferry.engine.seeds import reserve_seed, with_seed
from keyferry.errors import AnswerError, KeyferryError, Reason, Refused, ResourceError, RetryClass
from keyferry.freshness import Freshness, freshness, keepalive_time
from keyferry.io.http import drive
from keyferry.model import TokenSet
from keyferry.providers.tiled import delete_api_key, login, mint_api_key, refresh, revoke_session, session_id, whoami
from keyferry.record import Binding, Versioned

if TYPE_CHECKING:
    from keyferry.engine.apply import Context
    from keyferry.engine.job import Job
    from keyferry.engine.ports import Ports
    from keyferry.ledger import Ledger
    from keyferry.providers.tiled import Principal, TiledMetadata
    from keyferry.record import Record
    from keyferry.secret import SecretValue
    from keyferry.spec.identity import ApiKey

API_KEY_TYPE: Final = "apikey"
NOTE_PREFIX: Final = "keyferry:"
NOTE_LIMIT: Final = 255
LOGIN_MARGIN: Final = 30.0
"""Seconds of life that the login's access token must have left to mint with (or half of a short one's)."""
LAPSE_MARGIN: Final = 10.0
"""Seconds that a key is left alone after its end, for clocks that differ."""
ASSUMED_LIFETIME: Final = 900.0
MAXIMUM_LIFETIME: Final = 86400.0


class TiledExchanger:
    """Performs logins, refreshes and mintings with a Tiled server."""

    def __init__(self, ports: Ports, ledger: Ledger) -> None:
        self._ports = ports
        self._ledger = ledger

    async def perform(self, job: Job) -> Versioned:
        """Return the record with what was due renewed. Raises KeyferryErrors."""
        metadata = await job.provider.tiled(job.channel)
        await job.provider.may_show_certificate(metadata.hosts)
        publishes_key = job.spec.api_key is not None
        binding = Binding(metadata.api_url, tuple(sorted(metadata.hosts)), metadata.authenticator)
        job.keepsakes = job.provider.keepsakes
        context = job.context(binding, None, publish=not publishes_key)
        if job.spec.api_key is None:
            return await self._slide(job, metadata, context)
        held = job.held
        if held is None or not self._login_serves(held.record) or self._keepalive_due(held.record):
            held = await self._slide(job, metadata, context)
        if not self._key_due(job, held.record):
            return held
        try:
            return await self._mint(job, metadata, held, job.spec.api_key, context)
        except Refused as error:
            if error.code not in ("access_token_expired", "invalid_token"):
                raise
            await job.reread()
            held = await self._slide(job, metadata, context)
            return await self._mint(job, metadata, held, job.spec.api_key, context)

    def _login_serves(self, record: Record) -> bool:
        """Tell whether the login's access token is good for a request."""
        token = record.login
        if token is None:
            return False
        margin = min(LOGIN_MARGIN, token.lifetime / 2)
        return self._ports.clock.now() < token.expires_at - margin

    def _keepalive_due(self, record: Record) -> bool:
        at = keepalive_time(record.refresh_issued_at, record.refresh_idle)
        return at is not None and self._ports.clock.now() >= at

    def _key_due(self, job: Job, record: Record) -> bool:
        """Tell whether a key must be minted, or the session alone was due."""
        token, observed = record.token, job.observed
        if token is None or token.token_type != API_KEY_TYPE or record.spec_hash != observed.spec_hash:
            return True
        now = self._ports.clock.now()
        return (
            observed.renew_requested
            or token.expires_at - now < observed.wanted_remaining
            or freshness(record.renewal_time, token.expires_at, now) is not Freshness.FRESH
        )

    async def _slide(self, job: Job, metadata: TiledMetadata, context: Context) -> Versioned:
        """Refresh the session; log in where there is none, or where it ended and the grant holds a password."""
        record = job.observed.record
        seed = await self._seed(job, metadata)
        digest = seed.fingerprint(self._ports.store.digest_key) if seed is not None else ""
        if seed is not None and (record is None or digest not in (record.seed, *record.former_seeds)):
            return await self._plant(job, metadata, context, seed, digest)
        user = await self._user(job, metadata)
        another = record is not None and bool(user) and bool(record.seed) and record.seed != user
        if record is not None and record.refresh_token is not None and not record.refresh_ended and not another:
            check_binding(record, context.binding)
            try:
                return await self._refresh(job, metadata, context, record.refresh_token, new_session=False)
            except Refused as error:
                if error.retry is not RetryClass.NEEDS_PERSON:
                    raise
                await self._end_session(job, error)
        if not job.can_login:
            raise needs_seed(job)
        return await self._login(job, metadata, context, user)

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
        issued = await drive(
            refresh(metadata, token, started, assumed_lifetime=ASSUMED_LIFETIME, maximum_lifetime=MAXIMUM_LIFETIME),
            job.channel.send,
        )
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
        try:
            outcome.check()
        except AnswerError as error:
            if error.reason is Reason.WRONG_SUBJECT and outcome.given_up and issued.refresh_token is not None:
                await self._revoke(job, metadata, issued.refresh_token)
            await job.reread()
            raise
        await job.reread()
        if job.held.record.session_expires_at is None and not job.can_login:
            await self._note_session_end(job, metadata, job.held)
        return job.held

    async def _revoke(self, job: Job, metadata: TiledMetadata, token: SecretValue) -> None:
        """End the session of who turned out to be somebody else; the refusal is reported whatever comes of it."""
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

    async def _mint(
        self, job: Job, metadata: TiledMetadata, held: Versioned, wanted: ApiKey, context: Context
    ) -> Versioned:
        """Mint a key, note it, and leave the one before to lapse by itself, since running jobs hold it."""
        access = held.record.login.access_token if held.record.login is not None else None
        if access is None:
            raise ResourceError("the private state lost the login's access token")
        known = await self._tidy(job, metadata, held.record, access)
        started = self._ports.clock.now()
        minted = await drive(
            mint_api_key(
                metadata,
                access,
                scopes=wanted.scopes,
                expires_in=int(wanted.expires_in),
                note=_note(job, wanted),
                access_tags=wanted.access_tags,
                now=started,
            ),
            job.channel.send,
        )
        # The key is as good as the provider says, but never counted for longer than was asked.
        expires_at = min(minted.expires_at or started + wanted.expires_in, started + wanted.expires_in)
        token = TokenSet(
            access_token=minted.secret,
            token_type=API_KEY_TYPE,
            issued_at=started,
            expires_at=expires_at,
            scope=" ".join(minted.scopes or wanted.scopes),
            issuer=metadata.api_url,
            subject=held.record.login.subject if held.record.login is not None else "",
        )
        record = replace(with_published(held.record, token, context), api_keys=(*known, minted.first_eight))
        job.held = await self._ports.store.replace(held, record)
        return job.held

    async def _tidy(self, job: Job, metadata: TiledMetadata, record: Record, access: SecretValue) -> tuple[str, ...]:
        """Remove keys of ours that no record knows (minted just before a crash), and lapsed ones; return the others.

        Tiled counts a lapsed key against the limit until it purges them (every ten minutes).
        """
        now = self._ports.clock.now()
        principal = await drive(whoami(metadata, access, now=now), job.channel.send)
        # A restored state does not know the keys of its own future, one of which is published.
        unknown = [] if job.restored else strays(principal, job.uid, record)
        over = lapsed(principal, job.uid, now)
        there = {info.first_eight for info in principal.api_keys}
        for key in sorted({*unknown, *over}):
            if key not in over:
                job.note("an API key that was minted just before an interruption is being removed")
            try:
                await drive(delete_api_key(metadata, access, key, now=now), job.channel.send)
            except KeyferryError as error:
                job.note(f"an API key could not be removed and is left to lapse or be purged: {error.message}")
            else:
                there.discard(key)
        return tuple(key for key in record.api_keys if key in there)

    async def _seed(self, job: Job, metadata: TiledMetadata) -> SecretValue | None:
        grant = job.spec.grant.refresh_token
        return None if grant is None else await value(job.reader(metadata.hosts), grant.from_)


def strays(principal: Principal, uid: str, record: Record) -> list[str]:
    """Return the first characters of the keys that carry this identity's mark and that its record does not know."""
    mark = f"{NOTE_PREFIX}{uid}"
    return [
        info.first_eight
        for info in principal.api_keys
        if info.note.split(" ", 1)[0] == mark and info.first_eight not in record.api_keys
    ]


def lapsed(principal: Principal, uid: str, now: float) -> list[str]:
    """Return the first characters of this identity's keys that were over some seconds before ``now`` (Unix seconds)."""
    mark = f"{NOTE_PREFIX}{uid}"
    return [
        info.first_eight
        for info in principal.api_keys
        if info.note.split(" ", 1)[0] == mark and info.expires_at is not None and info.expires_at + LAPSE_MARGIN < now
    ]


def _note(job: Job, wanted: ApiKey) -> str:
    """Mark the key as this identity's, before whatever the resource wants noted."""
    return f"{NOTE_PREFIX}{job.uid} {wanted.note or job.key}"[:NOTE_LIMIT]
