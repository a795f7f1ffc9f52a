"""Frozen values that the layers hand to each other. Nothing here does I/O or knows a file format."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Names a resource: its namespace and its name (kinds never share a key space)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request that a grant wants sent. Its body and headers are secret as a whole and are never printed."""

    method: str
    url: str = field(repr=False)
    """Its query may be signed, and is then as secret as the body."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    one_time: bool = False
    """The body holds a credential that the provider accepts once: a fresh connection, no second try (RFC 6749 10.4)."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One whole answer, already cut at the size limit."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Names in lower case."""
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class TokenSet:
    """What a provider issued. Times are Unix seconds."""

    access_token: SecretValue
    token_type: str
    issued_at: float
    """When the request was begun: a lifetime never counts from later than that (RFC 6749 5.1)."""
    expires_at: float
    scope: str = ""
    refresh_token: SecretValue | None = None
    refresh_expires_at: float | None = None
    """When the refresh token lapses, where the provider says so."""
    id_token: SecretValue | None = None
    issued_token_type: str = ""
    subject: str = ""
    """Whose token it is, as far as the token or the answer says."""
    email: str = ""
    """The subject's e-mail address, only where the provider calls it verified."""
    issuer: str = ""
    publishable: bool = True
    """False where the answer's refresh token must be kept but its access token must not be used (DPoP, no lifetime)."""
    problem: str = ""
    """Why it is not publishable, for people."""

    @property
    def lifetime(self) -> float:
        """Seconds from issue to expiry."""
        return self.expires_at - self.issued_at


Exchange: TypeAlias = Generator[HttpRequest, HttpResponse, TokenSet]
"""A grant at work: yields requests, is sent answers, returns what was issued; all its I/O is in those two words."""
