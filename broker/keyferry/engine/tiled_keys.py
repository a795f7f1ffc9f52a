"""API keys that are minted by the login of a Tiled identity, and published in its place.

A key that was minted but not noted (a crash between the two) counts against the 100 keys that Tiled allows a user, so
every key carries its identity's mark, and such keys are looked for and removed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.apply import with_published
from keyferry.errors import KeyferryError, ResourceError
from keyferry.freshness import Freshness, freshness
from keyferry.io.http import drive
from keyferry.model import TokenSet
from keyferry.providers.tiled import delete_api_key, mint_api_key, whoami

if TYPE_CHECKING:
    from keyferry.engine.apply import Context
    from keyferry.engine.job import Job
    from keyferry.engine.ports import Ports
    from keyferry.providers.tiled import Principal, TiledMetadata
    from keyferry.record import Record, Versioned
    from keyferry.secret import SecretValue
    from keyferry.spec.identity import ApiKey

API_KEY_TYPE: Final = "apikey"
NOTE_PREFIX: Final = "keyferry:"
NOTE_LIMIT: Final = 255
LAPSE_MARGIN: Final = 10.0
"""Seconds that a key is left alone after its end, for clocks that differ."""


class KeyMint:
    """Mints keys, and keeps their number small."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def due(self, job: Job, record: Record) -> bool:
        """Tell whether a key must be minted, or the session alone was due."""
        token, observed = record.token, job.observed
        if token is None or token.token_type != API_KEY_TYPE or record.spec_hash != observed.spec_hash:
            return True
        if token.issued_at < record.session_started_at:
            return True  # it may be another person's
        now = self._ports.clock.now()
        return (
            observed.renew_requested
            or token.expires_at - now < observed.wanted_remaining
            or freshness(record.renewal_time, token.expires_at, now) is not Freshness.FRESH
        )

    async def mint(
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
