"""What people are told about an identity. Never a token."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyferry import approval
from keyferry.errors import Reason, RetryClass

if TYPE_CHECKING:
    from keyferry.model import ObjectKey
    from keyferry.question import Account


APPROVAL_PENDING: Final = approval.APPROVAL_PENDING
"""Code of what is no failure: a person is being asked."""


class Level(enum.StrEnum):
    """How much an event matters."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class State(enum.StrEnum):
    """One word for the table."""

    FRESH = "Fresh"
    RENEWING = "Renewing"
    RETRYING = "Retrying"
    EXPIRED = "Expired"
    ASKING = "Asking"
    """A person is being asked."""
    STALLED = "Stalled"
    PENDING = "Pending"
    SUSPENDED = "Suspended"


_OUTLIVED: Final = frozenset({Reason.ISSUED, Reason.RETRYING})
"""Reasons that no longer say what matters most once the token has expired; the message still says why."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a person needs to see in order to approve: a code (RFC 8628 3.3), a page, or both. Not for Events and logs.

    ``verification_uri`` and ``user_code`` are empty where the person logs in through the page.
    """

    verification_uri: str
    verification_uri_complete: str = field(repr=False)
    user_code: str = field(repr=False)
    expires_at: float
    """Unix seconds."""
    page: str = field(default="", repr=False)
    """Address of the question on Keyferry's own page; empty where there is none."""


@dataclass(frozen=True, slots=True)
class IdentityStatus:
    """The status of one identity. Times are Unix seconds; None where there is none."""

    key: ObjectKey
    provider: str
    grant: str
    reason: Reason = Reason.PENDING
    message: str = ""
    retry: RetryClass | None = None
    """The class of the last failure; None while there is none."""
    revision: int = 0
    shown: bool = True
    """Whether workloads can see it: the files were written, or none are wanted."""
    issue_time: float | None = None
    expiration_time: float | None = None
    renewal_time: float | None = None
    next_attempt_time: float | None = None
    reauthorize_by_time: float | None = None
    failure_count: int = 0
    error_code: str = ""
    cause: str = ""
    """Fingerprint of the spec and credentials that failed: when it changes, the backoff is waived."""
    busy: bool = False
    prompt: Prompt | None = None
    """There while a person is being asked."""
    unapproved: str = ""
    """Why the last question to a person came to nothing; empty while one is open, and after an approval."""
    authorized_as: Account | None = None
    """Whose login the token is from, where a person began the session and the provider says."""

    @property
    def login_failure(self) -> str:
        """Say why a login came to nothing beside a session that is still good."""
        return f"the new login came to nothing, and the session before it goes on: {self.unapproved}"

    def ready(self, now: float) -> bool:
        """Tell whether what is published can be used now: the condition Ready."""
        good = self.expiration_time is not None and now < self.expiration_time
        return good and self.revision > 0 and self.shown

    def stalled(self) -> bool:
        """Tell whether only a change or a person helps: the condition Stalled."""
        return self.prompt is not None or self.retry in (RetryClass.NEEDS_CONFIGURATION, RetryClass.NEEDS_PERSON)

    def shown_reason(self, now: float) -> Reason:
        """Return the reason as it stands at ``now``: an expiry needs no event to be true."""
        if self.reason in _OUTLIVED and self.expiration_time is not None and now >= self.expiration_time:
            return Reason.EXPIRED
        return self.reason

    def state(self, now: float) -> State:  # noqa: PLR0911 - one line for each word
        """Return the one word for the table."""
        if self.reason is Reason.SUSPENDED:
            return State.SUSPENDED
        if self.prompt is not None:
            return State.ASKING
        if self.stalled():
            return State.STALLED
        if self.expiration_time is not None and now >= self.expiration_time:
            return State.EXPIRED
        if self.retry is not None:
            return State.RETRYING
        if self.busy:
            return State.RENEWING
        return State.FRESH if self.ready(now) else State.PENDING


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened and that a person or a log should know."""

    level: Level
    event: str
    """A stable word: ``renewed``, ``failed``, ``published``, ``revoked``, …"""
    reason: Reason
    message: str
    key: ObjectKey | None = None
    expiration_time: float | None = None
    next_attempt_time: float | None = None
