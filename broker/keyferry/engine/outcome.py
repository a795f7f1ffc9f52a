"""What follows from a failure: when to try again, and what people read. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from keyferry.engine.chain import WAITING
from keyferry.engine.status import APPROVAL_PENDING, Level
from keyferry.errors import (
    AnswerError,
    ApprovalPending,
    CredentialError,
    ExchangeError,
    PublishError,
    Reason,
    ResourceError,
    RetryClass,
    StoreError,
)
from keyferry.plan import Failure
from keyferry.scheduler.lane import backoff

if TYPE_CHECKING:
    from keyferry.errors import KeyferryError

STORE_STEPS: Final = 5
"""Steps after which the pauses grow no more (half a minute): it is our own state that is away, and nobody is spared."""
SUSPICIOUS_WAIT: Final = (60.0, 300.0)
"""Seconds between tries while something that is not the provider answers."""


def failure_of(error: KeyferryError, previous: Failure | None, *, now: float, draw: float, cause: str) -> Failure:
    """Return the failure to remember. ``draw`` is a random number in [0, 1)."""
    repeated = previous is not None and previous.cause == cause
    count = previous.count + 1 if previous is not None and repeated else 1
    if isinstance(error, ApprovalPending):
        count = 0  # to wait for a person is no failure
    return Failure(
        count=count,
        next_attempt=_next_attempt(error, count, now, draw),
        reason=error.reason,
        retry=error.retry,
        code=code_of(error),
        message=error.message,
        cause=cause,
    )


def level_of(failure: Failure) -> Level:
    """Return how much a failure matters to people."""
    if failure.code == WAITING:
        return Level.INFO  # as at every first start of a chain
    if failure.code == APPROVAL_PENDING:
        return Level.WARNING
    passes = failure.retry in (RetryClass.TRANSIENT, RetryClass.SUSPICIOUS)
    return Level.WARNING if passes else Level.ERROR


def _next_attempt(error: KeyferryError, count: int, now: float, draw: float) -> float:
    if error.reason is Reason.SECRET_NOT_OWNED:
        # Nobody tells when somebody else's Secret, which is not watched, goes away.
        low, high = SUSPICIOUS_WAIT
        return now + low + draw * (high - low)
    if isinstance(error, ApprovalPending):
        return error.next_attempt
    retry_after = error.retry_after if isinstance(error, ExchangeError) else None
    match error.retry:
        case RetryClass.NEEDS_CONFIGURATION | RetryClass.NEEDS_PERSON:
            return math.inf
        case RetryClass.SUSPICIOUS:
            low, high = SUSPICIOUS_WAIT
            return now + max(retry_after or 0.0, low + draw * (high - low))
        case RetryClass.IN_DOUBT:
            # The plan weighs the doubt and says when; this only keeps it from being weighed without a pause.
            return now + backoff(1, draw)
        case RetryClass.TRANSIENT:
            if isinstance(error, StoreError):
                count = min(count, STORE_STEPS)
            return now + backoff(count, draw, floor=retry_after or 0.0)


def code_of(error: KeyferryError) -> str:  # noqa: PLR0911 - one line for each kind
    """Return a short stable code for ``lastError.code``."""
    if isinstance(error, ExchangeError) and error.code:
        return error.code
    match error:
        case ApprovalPending():
            return APPROVAL_PENDING
        case StoreError():
            return "store"
        case PublishError():
            return "publish"
        case CredentialError():
            return "credential"
        case AnswerError():
            return "answer"
        case ResourceError():
            return "resource"
        case _:
            return "error"


def waiting_for_provider(problem: str, until: float, previous: Failure | None) -> Failure:
    """Return the failure of an identity that was not even tried, since its provider is being left alone."""
    return Failure(
        count=previous.count if previous is not None else 0,
        next_attempt=until,
        reason=Reason.RETRYING,
        retry=RetryClass.TRANSIENT,
        code="breaker_open",
        message=f"the provider is being left alone for a while after repeated failures; the last was: {problem}",
        cause=previous.cause if previous is not None else "",
    )
