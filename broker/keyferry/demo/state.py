"""What an authorization server remembers: its registrations, its settings and all that it issued."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyferry.demo.authorization_codes import AuthorizationCodes
from keyferry.demo.clients import Clients, Grant
from keyferry.demo.device_codes import DeviceCodes
from keyferry.demo.refresh_tokens import RefreshPolicy, RefreshTokens, Spend
from keyferry.demo.signing import Signer, TokenFormat, TrustedIssuer

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Settings:
    """What may be changed while the service runs; each value holds from the next request on.

    ``access_lifetime`` is in seconds. ``lock_after``: so many wrong passwords lock an account; ``None``: never.
    """

    access_lifetime: float = 300.0
    token_format: TokenFormat = TokenFormat.OPAQUE
    lock_after: int | None = None
    names_issuer: bool = True
    """Whether callbacks name the issuer (RFC 9207)."""
    requires_push: bool = False
    """Whether authorization requests must be pushed (RFC 9126 5)."""


@dataclass(slots=True)
class User:
    """A person with a password."""

    name: str
    password: str = field(repr=False)
    email: str = ""
    email_verified: bool = True
    failed_logins: int = 0


@dataclass(slots=True)
class IssuedToken:
    """One access token that was issued. Times are Unix seconds."""

    value: str = field(repr=False)
    client_id: str
    grant: Grant
    subject: str
    scope: tuple[str, ...]
    audience: tuple[str, ...]
    issued_at: float
    expires_at: float
    family: str | None = None
    """The refresh tokens' family that it came from or began."""
    revoked: bool = False


class IssuerState:
    """The memory of one issuer. ``clock`` returns Unix seconds.

    ``issuer`` is the issuer identifier (RFC 8414 2), which may be set later, when a port is known. ``record_limit``
    bounds the list of issued tokens, oldest first to go.
    """

    def __init__(
        self,
        issuer: str = "",
        *,
        clock: Callable[[], float] = time.time,
        settings: Settings | None = None,
        refresh_policy: RefreshPolicy | None = None,
        signer: Signer | None = None,
        record_limit: int = 100_000,
    ) -> None:
        self.issuer = issuer
        self.clock = clock
        self.settings = settings or Settings()
        self.signer = signer or Signer()
        self.clients = Clients()
        self.users: dict[str, User] = {}
        self.trusted: dict[str, TrustedIssuer] = {}
        self.refresh_tokens = RefreshTokens(refresh_policy or RefreshPolicy(), clock)
        self.device_codes = DeviceCodes(clock)
        self.authorization_codes = AuthorizationCodes(clock)
        self.issued: deque[IssuedToken] = deque(maxlen=record_limit)
        self.access_tokens: dict[str, IssuedToken] = {}

    def audiences(self) -> tuple[str, ...]:
        """Return what an assertion for this server may name as its audience (RFC 7523 3)."""
        return self.issuer, f"{self.issuer}/token"

    def trust(self, issuer: TrustedIssuer) -> None:
        """Accept assertions and subject tokens of another issuer."""
        self.trusted[issuer.issuer] = issuer

    def add_user(self, user: User) -> User:
        """Register a person, in place of one of the same name."""
        self.users[user.name] = user
        return user

    def seed_refresh_token(self, client_id: str, subject: str, scope: tuple[str, ...] | None = None) -> str:
        """Return the first refresh token of a new family, as if a person had approved the client elsewhere.

        Raises ``KeyError`` where the client is not registered.
        """
        client = self.clients[client_id]
        return self.refresh_tokens.start(client_id, subject, client.scopes if scope is None else scope).value

    def active(self, token: IssuedToken) -> bool:
        """Tell whether an access token is neither expired nor revoked, by itself or with its family."""
        family = self.refresh_tokens.families.get(token.family) if token.family else None
        return not token.revoked and (family is None or family.revoked_at is None) and self.clock() < token.expires_at

    def spends(self) -> list[Spend]:
        """Return the record of every refresh token ever issued or presented."""
        return self.refresh_tokens.spends()
