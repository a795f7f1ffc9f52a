"""What the loopback endpoints ask of a broker: the current token of an identity, or its LabArchives login.

``keyferry run`` and ``exec`` answer it from their own engine or from the one that holds the state; a sidecar from the
broker API. None of them hands out a refresh token, a client secret or the organization's key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keyferry.providers.labarchives.login import LabArchivesUser, SignedCall
    from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class Token:
    """A current access token. Times are Unix seconds."""

    access_token: SecretValue
    token_type: str
    issued_at: float
    expires_at: float
    scope: str = ""
    revision: int = 0
    confirmed_at: float | None = None
    """When the broker last said that it is the current one; None where whoever answers knows by itself."""


class NotOffered(Exception):
    """The identity has no such endpoint: it has no token, or no LabArchives login."""


class NotAllowed(Exception):
    """The provider resource does not list this LabArchives method."""


class Unavailable(Exception):
    """There is no good credential just now."""

    def __init__(self, message: str, *, person: bool = False) -> None:
        """``message`` is for people and holds no secret; ``person`` tells whether only a person helps."""
        super().__init__(message)
        self.message = message
        self.person = person


class Source(Protocol):
    """One identity, as its endpoints see it. Its methods raise NotOffered and Unavailable."""

    @property
    def placeholder(self) -> SecretValue:
        """What a workload presents instead of a credential: 256 random bits, URL-safe text."""
        ...

    async def token(self) -> Token:
        """Return an access token that is good for at least some seconds."""
        ...

    async def sign(self, method: str) -> SignedCall:
        """Return what a call of ``method`` needs, by LabArchives' clock. Raises NotAllowed for a method not listed."""
        ...

    async def user(self) -> LabArchivesUser:
        """Ask LabArchives about the person whose login this is."""
        ...

    async def correct_clock(self) -> None:
        """Take note that LabArchives' clock is another than was thought."""
        ...

    async def login_refused(self) -> None:
        """Take note that LabArchives wants the person to log in again."""
        ...
