"""A person is being asked: what must survive a crash between the question and the answer, as frozen values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.model import TokenSet
    from keyferry.record import Binding

APPROVAL_PENDING: Final = "approval_pending"
"""Code of what is no failure: a person is being asked."""


@dataclass(frozen=True, slots=True)
class Link:
    """The unguessable part of a question's address; whoever knows it may see and answer the question."""

    secret: SecretValue
    digest: str
    """Keyed hash by which it is looked up."""
    expires_at: float
    """Unix seconds; it outlives the codes that are shown under it."""


@dataclass(frozen=True, slots=True)
class Login:
    """A login that a browser began, and what that browser came back with. Times are Unix seconds."""

    state: SecretValue
    """Comes back with the browser, once (RFC 6749 10.12)."""
    state_digest: str
    """Keyed hash by which a callback is looked up."""
    browser: str
    """Keyed hash of the value that this one browser keeps in its cookie."""
    redirect_uri: str
    begun_at: float
    expires_at: float
    binding: Binding | None
    """Who was asked, as which client: the code is sent nowhere else. None: the code was typed, for whoever is asked."""
    names_issuer: bool = False
    """The server announced that its answers name it (RFC 9207 3)."""
    verifier: SecretValue | None = None
    """RFC 7636 4.1."""
    nonce: SecretValue | None = None
    """OpenID Connect Core 3.1.2.1."""
    code: SecretValue | None = None
    """What came back: from then on the ``state`` is used up."""
    email: SecretValue | None = None
    """Of a LabArchives login, which is redeemed with the code."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a login brought, until the person confirms it: nothing of it is used before."""

    tokens: TokenSet
    binding: Binding
    browser: str
    """Keyed hash of the value that the browser which logged in keeps in its cookie."""
    expires_at: float
    """Unix seconds; nobody confirmed by then: it is thrown away."""
    person: str = ""
    """How the provider calls whoever logged in, for people."""


@dataclass(frozen=True, slots=True)
class Thrown:
    """What a login brought and nobody wants, until it is revoked at the provider."""

    name: str
    """Tells it from others."""
    tokens: TokenSet
    binding: Binding
    at: float
    """Unix seconds when it was thrown away."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A question to a person, and how it stands: a device code (RFC 8628 3.3), or a login. Times are Unix seconds.

    It lies in the private state. Only what a person must see of it goes into the status, and nothing into an Event.
    """

    attempt_id: str
    """Tells one question from another; under it the answer to a device code is kept in escrow until it is committed."""
    spec_hash: str
    """What was asked for: a changed resource asks anew."""
    begun_at: float
    expires_at: float
    device_code: SecretValue = SecretValue("")  # noqa: RUF009 - it is frozen
    """Empty where the person logs in through the page."""
    user_code: str = field(default="", repr=False)
    verification_uri: str = ""
    verification_uri_complete: str = field(default="", repr=False)
    interval: float = 5.0
    """Seconds between polls; the provider may make it longer for good."""
    ended: str = ""
    """Why nothing more is to be expected of it, for people; empty while it may still be answered."""
    link: Link | None = None
    """Where the page shows it; None where there is no page."""
    login: Login | None = None
    candidate: Candidate | None = None

    def open(self, spec_hash: str, now: float) -> bool:
        """Tell whether it may still be answered, and is what the resource (``spec_hash``) asks for."""
        return not self.ended and now < self.expires_at and self.spec_hash == spec_hash

    @property
    def logs_in(self) -> bool:
        """Tell whether the person logs in through the page."""
        return not self.device_code

    @property
    def answered(self) -> bool:
        """Tell whether a browser came back with a code that is to be redeemed."""
        return not self.ended and self.login is not None and self.login.code is not None

    @property
    def next_look(self) -> float:
        """When a login is to be looked at, though nobody did anything."""
        if self.ended:
            return math.inf
        ends = [self.expires_at]
        if self.candidate is not None:
            ends.append(self.candidate.expires_at)
        if self.login is not None and self.login.code is not None:
            ends.append(self.login.expires_at)
        return min(ends)
