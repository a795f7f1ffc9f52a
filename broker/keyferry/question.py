"""What a person is asked, as the approval page shows it, and what the page may do for them.

Values and a Protocol: an engine answers it, in its own process or through the broker API. No credential is in here
but what the person must type or carry over themselves.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.model import ObjectKey
    from keyferry.secret import SecretValue


class Stage(enum.StrEnum):
    """How far a question has come."""

    DEVICE = "Device"
    """A code waits to be approved at the provider (RFC 8628); the engine asks whether it was."""
    LOGIN = "Login"
    """A login through the browser has not been begun, or not come back yet."""
    WORKING = "Working"
    """An answer came, and the provider is being asked about it."""
    CONFIRM = "Confirm"
    """Somebody logged in; nothing is used before the same browser confirms who, and for what."""
    DONE = "Done"
    """The workload has its token."""
    ENDED = "Ended"
    """It came to nothing; ``Question.message`` says why, and whether it may be begun again."""


@dataclass(frozen=True, slots=True)
class Account:
    """Who logged in at the provider, as the provider says."""

    subject: str = ""
    email: str = ""
    """Only where the provider calls it verified."""
    name: str = ""

    def __str__(self) -> str:
        return self.email or self.name or self.subject


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """What a person types at the provider (RFC 8628 3.3)."""

    user_code: str = field(repr=False)
    verification_uri: str
    verification_uri_complete: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """One request for a person's approval. Times are Unix seconds."""

    identity: ObjectKey
    provider: str
    """Kind and name of the provider resource."""
    provider_host: str
    """Where the person will log in."""
    grant: str
    stage: Stage
    expires_at: float
    """Until when it may be answered, or begun again."""
    scopes: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    target: str = ""
    """Where the token will lie, for people: a Secret, or the files of this machine."""
    consumers: tuple[str, ...] = ()
    """Who may fetch it, for people: service accounts of the identity's namespace, other identities."""
    expected: str = ""
    """Whose approval it must be; empty: anybody's."""
    device: DeviceCode | None = None
    takes_code: bool = False
    """A vendor's one-time code (LabArchives) may be typed instead of logging in."""
    begun_here: bool = False
    """The login was begun by the browser that asks."""
    account: Account | None = None
    """Shown to the browser that logged in only."""
    message: str = ""
    """What happened, and what the person can do; for ENDED, and after a refusal."""
    may_ask_again: bool = False
    """A fresh question can be had by `Approvals.ask_again`."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One identity in the list for those who may see it. Times are Unix seconds."""

    identity: ObjectKey
    provider: str
    grant: str
    state: str
    message: str = ""
    expiration_time: float | None = None
    renewal_time: float | None = None
    reauthorize_by_time: float | None = None
    page: str = field(default="", repr=False)
    """Link to its open question, where there is one."""


class Approvals(Protocol):
    """What the page does for people.

    ``link`` is the unguessable part of a question's address; ``browser`` is the random value that the page keeps in a
    cookie of that browser, None where it has none. Every method raises ``errors.NoSuchQuestion`` for a link that is
    unknown, lapsed or another's (all alike), ``errors.Misdirected`` where another replica looks after the identity,
    and other KeyferryErrors, whose messages are for the person.
    """

    async def question(self, link: SecretValue, browser: SecretValue | None) -> Question:
        """Return a question as it stands. Changes nothing."""
        ...

    async def begin(self, link: SecretValue, browser: SecretValue) -> str:
        """Begin a login in this browser; return the provider's address to send it to.

        One that was begun before, in whatever browser, cannot be finished any more.
        """
        ...

    async def arrive(
        self, provider_uid: str, browser: SecretValue | None, parameters: Mapping[str, str]
    ) -> SecretValue:
        """Take what the provider sent the browser back with, once; return the link of its question.

        Raises Refused for a ``state`` that is unknown, used, lapsed or another browser's, and for another issuer: then
        nothing was sent to anybody.
        """
        ...

    async def give_code(self, link: SecretValue, browser: SecretValue, email: str, code: SecretValue) -> Question:
        """Take a vendor's one-time code that the person typed; it is redeemed once."""
        ...

    async def confirm(self, link: SecretValue, browser: SecretValue) -> Question:
        """Use the account that logged in, and publish; only for the browser that logged in."""
        ...

    async def decline(self, link: SecretValue, browser: SecretValue) -> Question:
        """Throw away what the login brought, and revoke it at the provider; only for the browser that logged in."""
        ...

    async def ask_again(self, link: SecretValue) -> Question:
        """Have a fresh device code or login offered under the same link, where the last one came to nothing."""
        ...

    async def overview(self, viewer: SecretValue) -> list[Overview]:
        """Return the identities that the bearer of ``viewer`` may list. Raises Refused where there are none."""
        ...
