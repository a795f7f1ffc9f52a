"""What to do about a one-time credential that may or may not have been spent. Pure.

The provider's consumption and our write cannot commit together. When a process dies, or an answer is lost,
between them, nobody can tell whether the credential is spent; sending it again may look like theft and end the
whole session (RFC 9700 4.14.2). So the wish to replay is weighed against what is at stake, and happens once at most.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyferry.record import Claim

SETTLE_MARGIN: Final = 20.0
"""Seconds beyond the request's deadline that another holder of a claim is given to finish."""

FINAL_ATTEMPT: Final = 2


class Verdict(enum.Enum):
    """What the ledger may do with an open claim."""

    WAIT = "wait"
    """Whoever claimed may still be sending."""
    REPLAY = "replay"
    """Send it again, recorded as the second and last attempt."""
    LOGIN = "login"
    """Leave the credential alone and begin a new session with one that can be used again."""
    ASK = "ask"
    """Only a person can give a new credential."""


@dataclass(frozen=True, slots=True)
class DoubtPolicy:
    """What the provider and the resource allow; seconds."""

    reuse_window: float = 0.0
    """How long after a spend the provider takes the same refresh token again."""
    replay_once: bool = True
    """``inDoubt: ReplayOnce``; False is ``AskPerson``."""
    reusable: bool = False
    """``rotation: Reusable``: a refresh token is good again and again, so no doubt about a spend matters."""
    can_login: bool = False
    """The grant holds a credential that may begin a new session."""
    deadline: float = 10.0
    """Of one token request."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the earliest time (Unix seconds) to act on it."""

    verdict: Verdict
    at: float


def settle_time(claim: Claim, *, holder_gone: bool, margin: float = SETTLE_MARGIN) -> float:
    """Return how long (seconds, by our own monotonic clock from when we first saw it) to leave a claim alone.

    A holder known to be dead sends nothing more, but the provider may still be working on what it sent.
    """
    return claim.deadline if holder_gone else claim.deadline + margin


def judge(claim: Claim, policy: DoubtPolicy, *, expires_at: float | None, settled: bool, now: float) -> Judgement:
    """Weigh an open claim. ``expires_at`` is the end of the access token that is still served, if there is one."""
    if policy.reusable:
        return Judgement(Verdict.REPLAY, now)
    if not settled:
        return Judgement(Verdict.WAIT, now)
    if policy.can_login:
        return Judgement(Verdict.LOGIN, now)
    if claim.attempt >= FINAL_ATTEMPT:
        return Judgement(Verdict.ASK, now)
    return _weigh(claim, policy, expires_at, now)


def _weigh(claim: Claim, policy: DoubtPolicy, expires_at: float | None, now: float) -> Judgement:
    """Weigh a settled first attempt: replay at once, later, or never."""
    # A claim from the future says that the clock went back: then nobody can tell how much of the window is left.
    if claim.claimed_at <= now and now + policy.deadline <= claim.claimed_at + policy.reuse_window:
        return Judgement(Verdict.REPLAY, now)
    if not policy.replay_once:
        return Judgement(Verdict.ASK, now)
    if expires_at is None or expires_at <= now:
        return Judgement(Verdict.REPLAY, now)
    return Judgement(Verdict.REPLAY, max(now, expires_at - replay_lead(policy.deadline, expires_at - claim.claimed_at)))


def replay_lead(deadline: float, remaining: float) -> float:
    """Return how long before the expiry to replay: time for the request, but no more than a quarter of what is left."""
    return min(2 * deadline + 10, max(0.0, remaining) / 4)
