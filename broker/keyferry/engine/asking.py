"""What the ways to ask a person have in common: how long, what comes next, what is said when nothing comes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.approval import Thrown
from keyferry.engine.apply import ASK_AGAIN
from keyferry.errors import ApprovalPending, Conflict, KeyferryError, Reason, ResourceError, RetryClass
from keyferry.plan import is_asking, next_renewal

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from keyferry.approval import Approval
    from keyferry.engine.job import Job
    from keyferry.model import TokenSet
    from keyferry.record import Binding, Record, Versioned

LOGIN_LIFETIME: Final = 900.0
"""Seconds in which a browser must come back from a login that it began, and what it brought be redeemed."""
CONFIRM_LIFETIME: Final = 600.0
"""Seconds in which the person must confirm what the login brought."""
SESSION_GOES_ON: Final = "a new login came to nothing, and the session before it goes on"
UNANSWERED: Final = "nobody answered in time"
UNCONFIRMED: Final = "nobody confirmed the login in time, so what it brought was thrown away"


class Unasked(ResourceError):
    """A person is needed who cannot be asked from here; nothing was begun, nor written."""


class SessionGoesOn(Conflict):
    """A login came to nothing; the session before it is as it was, and to be looked at again."""

    unasked: str = ""
    """Why nobody could be asked, where that is what kept it from anything."""


def came_to_nothing(job: Job, why: str, reason: Reason = Reason.APPROVAL_REQUIRED) -> ResourceError:
    """Return what people are told."""
    told = why.removesuffix(".")
    return ResourceError(
        f"ServiceIdentity {job.key} needs a person's approval, and the last request for it came to nothing: {told}."
        f" What is published stays until it expires. {ASK_AGAIN}",
        reason=reason,
        retry=RetryClass.NEEDS_PERSON,
    )


def nobody_sees(job: Job) -> Unasked:
    """Return the error of a command whose user would not see that somebody is asked."""
    return Unasked(
        f"ServiceIdentity {job.key} needs a person's approval, and nobody is asked by this command: run"
        f" `keyferry login {job.key.name} -n {job.key.namespace}`.",
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )


def no_page(job: Job) -> Unasked:
    """Return the error of an installation that has no page to log in through."""
    return Unasked(
        f"ServiceIdentity {job.key} needs a person who logs in through Keyferry's page (grant"
        f" {job.spec.grant.type}), and there is none. Start `keyferry run` with `--page PORT` (for other machines, with"
        " `--page ADDR --page-url URL`); in a cluster, set the chart's page.enabled and page.url.",
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )


async def ask_or_go_on(job: Job, asking: Awaitable[Versioned], *, has_session: bool, needed: bool) -> Versioned | None:
    """Await what asks a person; return None where the session that is there is to be used meanwhile.

    ``needed`` tells that it has to be. Where the person is refused, said no, or cannot be asked, that session goes on
    (SessionGoesOn).
    """
    try:
        return await asking
    except ApprovalPending:
        if not (has_session and needed):
            raise
    except Unasked as error:
        if not has_session:
            raise
        if job.observed.login_requested:
            job.note(f"{SESSION_GOES_ON}: {error.message}")
            going_on = SessionGoesOn(SESSION_GOES_ON)
            going_on.unasked = error.message
            raise going_on from None
        if not needed:
            raise SessionGoesOn(SESSION_GOES_ON) from None
    except KeyferryError as error:
        if not has_session or error.retry is not RetryClass.NEEDS_PERSON:
            raise
        job.note(f"{SESSION_GOES_ON}: {error.message}")
        raise SessionGoesOn(SESSION_GOES_ON) from None
    return None


def look_again(job: Job, approval: Approval) -> float:
    """Return when to look at a login again: at the latest when the session that is there is to be renewed."""
    record = job.held.record if job.held is not None else None
    if record is None or record.token is None or record.refresh_token is None or record.refresh_ended:
        return approval.next_look
    return min(approval.next_look, next_renewal(record, refreshes=True))


def throw_away(record: Record, tokens: TokenSet, binding: Binding, now: float) -> Record:
    """Return the record with something that a login brought noted as to be revoked."""
    question = record.approval.attempt_id if record.approval is not None else ""
    thrown = Thrown(f"{question}-{tokens.issued_at}", tokens, binding, now)
    return replace(record, thrown=(*record.thrown, thrown))


def without_candidate(record: Record, now: float) -> Record:
    """Return the record with what a login brought thrown away, where there is something."""
    approval = record.approval
    if approval is None or approval.candidate is None:
        return record
    thrown = throw_away(record, approval.candidate.tokens, approval.candidate.binding, now)
    return replace(thrown, approval=replace(approval, candidate=None))


def ended(record: Record, why: str, now: float) -> Record:
    """Return the record with its question ended, and with nothing of what the login brought kept."""
    record = without_candidate(record, now)
    if record.approval is None:
        return record
    return replace(record, approval=replace(record.approval, ended=why, login=None))


def wants_person(job: Job) -> bool:
    """Tell whether a person is being asked, or is to be, though there may be a session."""
    return job.observed.login_requested or is_asking(job.observed, job.ports.clock.now())
