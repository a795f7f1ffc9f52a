"""Seeds: refresh tokens that a person gave, each of which begins the chain of one identity, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.errors import Conflict, CredentialError, Reason, RetryClass
from keyferry.frozen import replace
from keyferry.record import Chain

if TYPE_CHECKING:
    from keyferry.engine.job import Job
    from keyferry.record import Binding, Record, Versioned
    from keyferry.secret import SecretValue


async def reserve_seed(job: Job, digest: str) -> Versioned:
    """Note that the identity uses the seed with this fingerprint; return its record. Nothing is sent before.

    The record announces it, then its tombstone is set. A tombstone that no record announces is of a seed that was sent:
    by somebody else, by an earlier identity of this name, or by this one in a life that its record does not remember.
    Raises CredentialError (SeedAlreadyUsed) for these.
    """
    store, held = job.ports.store, job.held
    if held is None or held.record.planting != digest:
        if await store.user_of(digest):
            raise _used(job)
        if held is None:
            held = await store.create(replace(job.new_record(), planting=digest))
        else:
            held = await store.replace(held, replace(held.record, planting=digest))
        job.held = held
    if await store.tombstone(digest, job.uid) != job.uid:
        raise _used(job)
    return held


def _used(job: Job) -> CredentialError:
    return CredentialError(
        f"the refresh token or one-time code given to ServiceIdentity {job.key} was used before, by another identity,"
        " by an earlier one of this name, or by this one, whose private state is lost; it was not sent. It begins one"
        " identity's session, once: obtain a new one and put it into the Secret.",
        reason=Reason.SEED_ALREADY_USED,
        retry=RetryClass.NEEDS_PERSON,
    )


async def fall_back(job: Job, note: str, *, lost: bool = False) -> None:
    """Go on with the session before, where the seed that was tried instead was refused. Raises Conflict then.

    ``note`` tells people. With ``lost`` also where the seed's answer was lost: then it is never sent again.
    """
    await job.reread()
    held = job.held
    if held is None or held.record.previous is None or not (lost or held.record.refresh_ended):
        return
    await job.ports.store.replace(held, with_previous(held.record, held.record.previous))
    job.note(note)
    raise Conflict(note)


def with_seed(record: Record, seed: SecretValue, digest: str, binding: Binding) -> Record:
    """Return the record with a chain that begins with ``seed``; the seed before it is remembered as sent."""
    return replace(
        record,
        former_seeds=(*record.former_seeds, record.seed) if record.seed else record.former_seeds,
        seed=digest,
        planting="",
        refresh_token=seed,
        refresh_idle=None,
        refresh_ended="",
        session_started_at=0.0,
        authorized_as=None,
        refresh_slides=False,
        session_expires_at=None,
        session_notices=0,
        binding=binding,
    )


def set_aside(record: Record) -> Chain | None:
    """Return the chain that is going, where it may still be good for something."""
    if record.refresh_token is None or record.refresh_ended or record.claim is not None:
        return record.previous
    return Chain(
        seed=record.seed,
        refresh_token=record.refresh_token,
        refresh_issued_at=record.refresh_issued_at,
        refresh_expires_at=record.refresh_expires_at,
        refresh_idle=record.refresh_idle,
        session_started_at=record.session_started_at,
        binding=record.binding,
        authorized_as=record.authorized_as,
        refresh_slides=record.refresh_slides,
        session_expires_at=record.session_expires_at,
        session_notices=record.session_notices,
    )


def with_previous(record: Record, chain: Chain) -> Record:
    """Return the record with the chain that was set aside in force again, and the refused seed remembered as sent."""
    return replace(
        record,
        former_seeds=(*record.former_seeds, record.seed) if record.seed != chain.seed else record.former_seeds,
        previous=None,
        claim=None,
        refresh_ended="",
        wrong_subject=False,
        seed=chain.seed,
        refresh_token=chain.refresh_token,
        refresh_issued_at=chain.refresh_issued_at,
        refresh_expires_at=chain.refresh_expires_at,
        refresh_idle=chain.refresh_idle,
        session_started_at=chain.session_started_at,
        binding=chain.binding,
        authorized_as=chain.authorized_as,
        refresh_slides=chain.refresh_slides,
        session_expires_at=chain.session_expires_at,
        session_notices=chain.session_notices,
    )
