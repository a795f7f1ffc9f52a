"""Decides what to do next for one identity. Pure: everything it looks at was gathered before.

``plan`` asks an ordered chain of small checks; the first that has something to say decides, and its reason is what
people see. ``route`` then picks how to get a token, once the credentials of the resource are known.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from keyferry.doubt import DoubtPolicy, Judgement, Verdict, judge
from keyferry.errors import Reason, RetryClass
from keyferry.freshness import keepalive_time

if TYPE_CHECKING:
    from keyferry.model import ObjectKey
    from keyferry.record import Record

NEVER: Final = math.inf
CLOCK_LEEWAY: Final = 10.0
"""Seconds by which the wall clock may go back before the times of a token are no longer believed."""


class Action(enum.Enum):
    """What the shell is to do."""

    KEEP = "keep"
    """Nothing until the step's time."""
    PUBLISH = "publish"
    """Write the stored token to where workloads read it."""
    EXCHANGE = "exchange"
    """Get a token."""


@dataclass(frozen=True, slots=True)
class Step:
    """A decision: what to do, why, and when to look again (Unix seconds)."""

    action: Action
    reason: Reason
    at: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure, remembered so that backoff survives a restart."""

    count: int
    next_attempt: float
    """Unix seconds; infinite where only a change helps."""
    reason: Reason
    retry: RetryClass
    code: str
    message: str
    cause: str = ""
    """Fingerprint of the spec and credentials that failed: when it changes, the backoff is waived."""


@dataclass(frozen=True, slots=True)
class PublishedState:
    """What workloads can see."""

    uid: str
    revision: int
    generation: int
    files_hash: str
    intact: bool


@dataclass(frozen=True, slots=True)
class Observed:
    """The world as one identity sees it, gathered once."""

    key: ObjectKey
    uid: str
    origin: str
    spec_hash: str
    files_hash: str
    grant_refreshes: bool
    """The grant keeps a refresh token between renewals."""
    asks_by_session: bool = False
    """What the resource asks for was said when the session began, so a change needs another session."""
    record: Record | None = None
    published: PublishedState | None = None
    known_revision: int = 0
    """The last revision that was told of (the status, or this process's own memory)."""
    failure: Failure | None = None
    suspended: bool = False
    suspension: str = "suspended"
    """Who suspended it, for people."""
    renew_requested: bool = False
    login_requested: bool = False
    """Somebody wants a person to be asked anew, though the session may be good for a while."""
    asked_through_page: bool = False
    """It was whoever has the link of the last question that wants so."""
    answering: bool = False
    """A person is at it: wants to begin a login, or came back from one."""
    new_code: bool = False
    """A person gave a code that was never redeemed; it lapses within the hour, so it does not wait for a renewal."""
    poll_at: float = 0.0
    """When an open approval may be asked about next (Unix seconds)."""
    wanted_remaining: float = 0.0
    """Seconds of life that somebody is waiting for just now."""
    doubt: DoubtPolicy = field(default_factory=DoubtPolicy)
    claim_settled: bool = True
    claim_settles_at: float = 0.0
    """When an unsettled claim may be looked at again."""
    publishes: bool = True
    """False: nothing is to be seen by workloads (``target.type: None``)."""
    publish_failed: bool = False
    """The files could not be written just now; a renewal does not wait for that."""
    publish_again: bool = False
    """The files could not be written some time ago: whatever is seen of them, it is time to write them again."""


Check = Callable[[Observed, float], Step | None]


def plan(observed: Observed, now: float) -> Step:
    """Return the next step for one identity at ``now`` (Unix seconds)."""
    for check in _CHAIN:
        step = check(observed, now)
        if step is not None:
            return step
    return _keep(observed, now)


def is_behind(observed: Observed) -> bool:
    """Tell whether the private state is older than what it published or told of: a restored backup, or a clone.

    Its refresh token may be spent by what came after it, so it counts as in doubt.
    """
    record, published = observed.record, observed.published
    if record is None:
        return False
    if record.refresh_token is not None and observed.known_revision > record.revision:
        return True
    return (
        published is not None
        and published.uid == record.uid
        and (published.generation > record.generation or published.revision > record.revision)
    )


def judgement(observed: Observed, now: float) -> Judgement | None:
    """Weigh the open claim, where there is one."""
    record = observed.record
    if record is None or record.claim is None:
        return None
    expires_at = record.token.expires_at if record.token is not None and not from_future(record, now) else None
    return judge(record.claim, observed.doubt, expires_at=expires_at, settled=observed.claim_settled, now=now)


def _suspended(observed: Observed, _now: float) -> Step | None:
    return Step(Action.KEEP, Reason.SUSPENDED, NEVER, observed.suspension) if observed.suspended else None


def _foreign(observed: Observed, _now: float) -> Step | None:
    record = observed.record
    if record is None or (record.origin, record.uid, record.key) == (observed.origin, observed.uid, observed.key):
        return None
    what = "state" if record.origin != observed.origin else "identity"
    why = (
        f"the private state kept under this name belongs to another {what} (it was copied or restored from elsewhere),"
        " so nothing of it is used. Restore the right one, or move it away to begin anew"
    )
    return Step(Action.KEEP, Reason.STATE_FOREIGN, NEVER, why)


def _unpublished(observed: Observed, now: float) -> Step | None:
    record = observed.record
    if record is None or record.token is None or is_behind(observed) or observed.publish_failed:
        return None
    why = _drift(observed, record)
    # What has expired is of no use to anybody, and a token whose value is not kept can only be replaced by a new one.
    if not why or (observed.publishes and (now >= record.token.expires_at or not record.token.access_token)):
        return None
    return Step(Action.PUBLISH, Reason.ISSUED, now, why)


def _drift(observed: Observed, record: Record) -> str:
    """Tell how what is published differs from what should be; nothing where it does not."""
    published = observed.published
    if observed.publish_again:
        return "they could not be written before"
    if not observed.publishes:
        return "the files are not wanted any more" if published is not None else ""
    if published is None or not published.intact:
        return "the files are missing or were changed"
    if published.uid != record.uid or published.revision < record.revision:
        return "the files are older than the token"
    return "the files are wanted in another form" if published.files_hash != observed.files_hash else ""


def _failing(observed: Observed, now: float) -> Step | None:
    failure = observed.failure
    if failure is None or failure.next_attempt <= now:
        return None
    return Step(Action.KEEP, failure.reason, failure.next_attempt, failure.message)


def _in_doubt(observed: Observed, now: float) -> Step | None:
    verdict = judgement(observed, now)
    if verdict is None:
        return None
    if verdict.verdict is Verdict.WAIT:
        return Step(
            Action.KEEP, Reason.REFRESH_IN_DOUBT, max(now, observed.claim_settles_at), "a spend may be under way"
        )
    if verdict.verdict is Verdict.ASK or verdict.at <= now:
        return Step(Action.EXCHANGE, Reason.REFRESH_IN_DOUBT, now, "the refresh token may be spent")
    return Step(Action.KEEP, Reason.REFRESH_IN_DOUBT, verdict.at, "the refresh token may be spent")


def _answering(observed: Observed, now: float) -> Step | None:
    """Ask whether a person waits in front of a browser."""
    if not observed.answering:
        return None
    return Step(Action.EXCHANGE, Reason.APPROVAL_REQUIRED, now, "a person is answering")


def _waiting(observed: Observed, now: float) -> Step | None:
    """Ask whether only a person can help, who is being asked and has not answered: then nobody else need be."""
    record = observed.record
    if record is None or not is_asking(observed, now) or now >= observed.poll_at:
        return None
    has_session = record.refresh_token is not None and not record.refresh_ended
    if has_session or observed.renew_requested or observed.login_requested or observed.new_code:
        return None
    if record.token is not None and now < record.token.expires_at and record.spec_hash == observed.spec_hash:
        return None
    return Step(Action.KEEP, Reason.APPROVAL_REQUIRED, observed.poll_at, "a person is being asked: see status.approval")


def _useless(observed: Observed, now: float) -> Step | None:  # noqa: PLR0911 - one line for each reason
    """Ask whether there is no token that anybody could use."""
    record = observed.record
    if record is None or record.token is None:
        return Step(Action.EXCHANGE, Reason.PENDING, now, "there is no token yet")
    if record.wrong_subject:
        return Step(Action.EXCHANGE, Reason.WRONG_SUBJECT, now, "the last token was somebody else's")
    if record.spec_hash != observed.spec_hash:
        return Step(Action.EXCHANGE, Reason.RETRYING, now, "the resource changed")
    if now >= record.token.expires_at:
        return Step(Action.EXCHANGE, Reason.EXPIRED, now, "the token expired")
    if from_future(record, now):
        return Step(Action.EXCHANGE, Reason.ISSUED, now, "the clock went back, so the token's end cannot be told")
    if is_behind(observed):
        return Step(Action.EXCHANGE, Reason.REFRESH_IN_DOUBT, now, "the private state is older than the files")
    return None


def _due(observed: Observed, now: float) -> Step | None:
    """Ask whether a good token is to be replaced by a better one."""
    record = observed.record
    if record is None or record.token is None:
        return None
    if not record.token.access_token and _drift(observed, record):
        why = _drift(observed, record)
    elif observed.renew_requested:
        why = "a renewal was asked for"
    elif observed.new_code:
        why = "a new one-time code was given"
    elif observed.login_requested or (is_asking(observed, now) and now >= observed.poll_at):
        why = "a person is being asked"
    elif record.token.expires_at - now < observed.wanted_remaining:
        why = "a consumer needs a longer life"
    elif now >= next_renewal(record, refreshes=observed.grant_refreshes):
        why = "the renewal is due"
    else:
        return None
    return Step(Action.EXCHANGE, Reason.ISSUED, now, why)


def _keep(observed: Observed, now: float) -> Step:
    record = observed.record
    at = NEVER if record is None else next_renewal(record, refreshes=observed.grant_refreshes)
    return Step(Action.KEEP, Reason.ISSUED, min(at, observed.poll_at) if is_asking(observed, now) else at)


def is_asking(observed: Observed, now: float) -> bool:
    """Tell whether a person is being asked and may still answer."""
    approval = observed.record.approval if observed.record is not None else None
    return approval is not None and approval.open(observed.spec_hash, now)


def needs_exchange(observed: Observed, now: float) -> bool:
    """Tell whether the session must be used now, whatever a person is being asked."""
    plain = replace(observed, failure=None, login_requested=False, poll_at=NEVER)
    return plan(plain, now).action is Action.EXCHANGE


def from_future(record: Record, now: float) -> bool:
    """Tell whether the record's token was issued later than now: the clock went back, and its end cannot be told.

    What is left of it by the clock may be an hour more than the provider grants, so it is renewed at once.
    """
    token = record.token
    return token is not None and token.issued_at - now > min(CLOCK_LEEWAY, token.lifetime / 4)


def next_renewal(record: Record, *, refreshes: bool) -> float:
    """Return when the record's token, or the refresh token behind it, must be renewed."""
    keepalive = None
    if refreshes and record.refresh_token is not None and not record.refresh_ended:
        keepalive = keepalive_time(record.refresh_issued_at, record.refresh_idle)
    return record.renewal_time if keepalive is None else min(record.renewal_time, keepalive)


_CHAIN: Final[tuple[Check, ...]] = (
    _suspended,
    _foreign,
    _unpublished,
    _failing,
    _answering,
    _in_doubt,
    _waiting,
    _useless,
    _due,
)


class Route(enum.Enum):
    """How to get the next token."""

    OBTAIN = "obtain"
    """The grant's own request."""
    SEED = "seed"
    """The first refresh, with the refresh token that a person gave."""
    REFRESH = "refresh"
    REPLAY = "replay"
    """The one recorded second try of a refresh that is in doubt."""
    WAIT = "wait"
    """A refresh is in doubt, and the time to do something about it has not come."""
    ASK = "ask"
    """Nothing may be sent before a person gives a new credential."""


def route(observed: Observed, *, seed: str | None, can_login: bool, now: float) -> Route:
    """Pick the way to the next token.

    ``seed`` is the fingerprint of what a chain of refresh tokens begins with: the refresh token that a person gave, or
    the user who logs in (None where the grant has neither). ``can_login`` tells that the grant's own request may be
    made again at any time. A seed that was sent once is never sent again, also when it comes back after another one.
    """
    record = observed.record
    if can_login and record is not None and _begins_anew(observed, record, seed):
        return Route.OBTAIN
    if not can_login and seed is not None and (record is None or seed not in (record.seed, *record.former_seeds)):
        return Route.SEED
    if not observed.grant_refreshes or record is None or record.refresh_token is None or record.refresh_ended:
        return Route.OBTAIN if can_login else Route.ASK
    verdict = judgement(observed, now)
    if verdict is None:
        return Route.REFRESH
    if verdict.verdict is Verdict.REPLAY:
        return Route.REPLAY if verdict.at <= now else Route.WAIT
    return _BY_VERDICT[verdict.verdict]


_BY_VERDICT: Final = {Verdict.LOGIN: Route.OBTAIN, Verdict.ASK: Route.ASK, Verdict.WAIT: Route.WAIT}


def _begins_anew(observed: Observed, record: Record, seed: str | None) -> bool:
    """Tell whether a session is not what the resource asks for any more: another user's, or of other scopes."""
    another_user = seed is not None and bool(record.seed) and record.seed != seed
    return another_user or (observed.asks_by_session and record.spec_hash not in ("", observed.spec_hash))
