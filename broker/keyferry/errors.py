"""One tree of errors; each has a reason that people see and a class that says whether trying again helps.

::

    KeyferryError
    ├── ResourceError          a resource cannot be understood (InvalidSpec, ProviderNotFound, …)
    ├── CredentialError        a credential that a resource points to cannot be used
    ├── ExchangeError          the provider did not give a token
    │   ├── NotSent            nothing reached the provider; every grant may try again
    │   ├── Ambiguous          something was sent, and no well-formed answer came back
    │   └── Refused            a well-formed refusal
    ├── AnswerError            the provider answered, but not with a token we may publish
    ├── ApprovalPending        a person is being asked
    ├── StoreError             the private state cannot be read or written
    │   ├── Conflict           somebody else wrote first
    │   └── StoreUnavailable   disk full, read-only, server away
    └── PublishError           the token files cannot be written
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyferry.approval import Approval


class Reason(enum.StrEnum):
    """Why an identity is as it is: shared by conditions, Events, log lines and metric labels (see the contract)."""

    ISSUED = "Issued"
    PENDING = "Pending"
    RETRYING = "Retrying"
    EXPIRED = "Expired"
    APPROVAL_REQUIRED = "ApprovalRequired"
    REFRESH_IN_DOUBT = "RefreshInDoubt"
    SUSPENDED = "Suspended"
    LIFETIME_TOO_SHORT = "LifetimeTooShort"
    INVALID_SPEC = "InvalidSpec"
    PROVIDER_NOT_FOUND = "ProviderNotFound"
    PROVIDER_NOT_ALLOWED = "ProviderNotAllowed"
    PROVIDER_CHANGED = "ProviderChanged"
    GRANT_NOT_SUPPORTED = "GrantNotSupported"
    FORMAT_NEEDS_SIDECAR = "FormatNeedsSidecar"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    SECRET_NOT_LABELLED = "SecretNotLabelled"  # noqa: S105
    HOST_NOT_ALLOWED = "HostNotAllowed"
    SECRET_NOT_OWNED = "SecretNotOwned"  # noqa: S105
    CLIENT_REJECTED = "ClientRejected"
    GRANT_REJECTED = "GrantRejected"
    WRONG_SUBJECT = "WrongSubject"
    SEED_ALREADY_USED = "SeedAlreadyUsed"
    STATE_FOREIGN = "StateForeign"
    IDENTITY_CYCLE = "IdentityCycle"


class RetryClass(enum.StrEnum):
    """What helps after a failure."""

    TRANSIENT = "Transient"
    """Try again with backoff."""
    SUSPICIOUS = "Suspicious"
    """Something between us and the provider answered; try again slowly."""
    IN_DOUBT = "InDoubt"
    """A one-time credential may be spent; the ledger decides."""
    NEEDS_CONFIGURATION = "NeedsConfiguration"
    """Only a change of a credential or of the resource helps."""
    NEEDS_PERSON = "NeedsPerson"
    """Only a person helps: a new seed, a login, an approval."""


class KeyferryError(Exception):
    """The root of all errors that Keyferry raises on purpose. Messages never hold a secret."""

    reason: Reason = Reason.RETRYING
    retry: RetryClass = RetryClass.TRANSIENT

    def __init__(self, message: str, *, reason: Reason | None = None, retry: RetryClass | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        if retry is not None:
            self.retry = retry


class ResourceError(KeyferryError):
    """A resource cannot be used as it is written."""

    reason = Reason.INVALID_SPEC
    retry = RetryClass.NEEDS_CONFIGURATION


class CredentialError(KeyferryError):
    """A credential that a resource points to is missing, empty or malformed."""

    reason = Reason.SECRET_NOT_FOUND
    retry = RetryClass.NEEDS_CONFIGURATION


class ExchangeError(KeyferryError):
    """The provider did not give a token."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        retry_after: float | None = None,
        reason: Reason | None = None,
        retry: RetryClass | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry=retry)
        self.code = code
        """The OAuth ``error`` code, or a short name of ours such as ``timeout``; stable, printable."""
        self.retry_after = retry_after
        """Seconds that the provider asked us to wait, where it did (RFC 9110 10.2.3)."""
        self.counted = False
        """Whether the provider's breaker took note of it."""


class NotSent(ExchangeError):
    """Nothing of the request reached the provider (DNS, connection refused, TLS handshake): every grant may retry."""


class Ambiguous(ExchangeError):
    """Something was sent and no well-formed OAuth answer came back: a one-time credential may be spent."""


class Refused(ExchangeError):
    """The provider refused with a well-formed error (RFC 6749 5.2) or with one of the dialect's known answers."""


class AnswerError(KeyferryError):
    """The provider answered well-formed, but with a token that must not be published."""

    reason = Reason.GRANT_REJECTED
    retry = RetryClass.NEEDS_CONFIGURATION


class ApprovalPending(KeyferryError):
    """A person is being asked, and has not answered yet."""

    reason = Reason.APPROVAL_REQUIRED

    def __init__(self, message: str, approval: Approval, *, next_attempt: float) -> None:
        super().__init__(message)
        self.approval = approval
        self.next_attempt = next_attempt
        """When the provider is asked again whether they did, Unix seconds."""


class NoSuchQuestion(KeyferryError):
    """No question to a person goes by this link, or it lapsed, or it is another's: all alike."""

    reason = Reason.APPROVAL_REQUIRED


class Misdirected(KeyferryError):
    """Another replica looks after the identity; it is to be asked."""


class StoreError(KeyferryError):
    """The private state cannot be read or written."""


class Conflict(StoreError):
    """Somebody else wrote the record first; read it again."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written now: disk full, read-only, server away."""


class PublishError(KeyferryError):
    """The token was obtained and is kept, but its files cannot be written."""
