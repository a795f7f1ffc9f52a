"""Refresh tokens in families: each is accepted once, and the reuse of a spent one ends its family (RFC 9700 4.14.2).

Everything that is ever presented is recorded, so that it can be shown that a client spent no token twice.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from keyferry.demo.wire import OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN_BYTES: Final = 32


class Rotation(StrEnum):
    """What a refresh answers: a new refresh token, the same again, or none (the client keeps the old, RFC 6749 6)."""

    ROTATING = "Rotating"
    REUSABLE = "Reusable"
    REUSABLE_SILENT = "ReusableSilent"


class ReplayAnswer(StrEnum):
    """What a replay within the reuse window is given: the successor already issued, or another one."""

    SAME = "Same"
    NEW = "New"


class Outcome(StrEnum):
    """What became of one presentation of a refresh token."""

    ACCEPTED = "Accepted"
    REPLAYED = "Replayed"
    """Spent before, but accepted within the reuse window."""
    REUSED = "Reused"
    """Spent before: refused, and the family revoked."""
    REVOKED = "Revoked"
    EXPIRED = "Expired"
    WRONG_CLIENT = "WrongClient"
    UNKNOWN = "Unknown"

    @property
    def accepted(self) -> bool:
        """Whether a token was issued for it."""
        return self in {Outcome.ACCEPTED, Outcome.REPLAYED}


@dataclass(slots=True)
class RefreshPolicy:
    """How refresh tokens behave. ``reuse_window`` (seconds, 0: none) counts from the first spend of a token.

    It also ends when a successor was spent: who can spend that has had the answer. ``idle`` and ``maximum`` (seconds,
    ``None``: unlimited) bound the life of one token and of a family; ``tells``: answers say what is left of it in
    ``refresh_expires_in``, as Keycloak's do.
    """

    rotation: Rotation = Rotation.ROTATING
    reuse_window: float = 0.0
    replay_answer: ReplayAnswer = ReplayAnswer.NEW
    idle: float | None = None
    maximum: float | None = None
    tells: bool = False

    def left(self, token: RefreshToken, now: float) -> float | None:
        """Return for how many seconds a token is good if nobody uses it, as far as that is limited."""
        ends = [token.expires_at, None if self.maximum is None else token.family.started_at + self.maximum]
        return min((end - now for end in ends if end is not None), default=None)


@dataclass(slots=True)
class Family:
    """What one authorization has led to: all refresh tokens of it, and through them the access tokens."""

    family_id: str
    client_id: str
    subject: str
    scope: tuple[str, ...]
    started_at: float
    revoked_at: float | None = None
    revocation: str = ""
    """Why it was revoked: ``Reused`` or ``Requested``."""


@dataclass(frozen=True, slots=True)
class Presentation:
    """One time that a refresh token arrived at the token endpoint."""

    at: float
    outcome: Outcome


@dataclass(slots=True)
class RefreshToken:
    """One refresh token with all that happened to it."""

    value: str = field(repr=False)
    family: Family
    issued_at: float
    expires_at: float | None
    successors: list[RefreshToken] = field(default_factory=list, repr=False)
    presentations: list[Presentation] = field(default_factory=list)

    @property
    def spent_at(self) -> float | None:
        """When it was first accepted, or ``None``."""
        return next((shown.at for shown in self.presentations if shown.outcome.accepted), None)


@dataclass(frozen=True, slots=True)
class Spend:
    """The record of one refresh token value; an unknown value has no family."""

    token: str
    family: str | None
    client_id: str | None
    subject: str | None
    presentations: tuple[Presentation, ...]
    revoked: bool

    @property
    def presented(self) -> int:
        """How often it arrived."""
        return len(self.presentations)

    @property
    def accepted(self) -> int:
        """How often a token was issued for it."""
        return sum(shown.outcome.accepted for shown in self.presentations)


class RefreshTokens:
    """All families. ``policy`` may be changed while it runs and holds from the next request on."""

    def __init__(self, policy: RefreshPolicy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self._clock = clock
        self.families: dict[str, Family] = {}
        self.tokens: dict[str, RefreshToken] = {}
        self.unknown: dict[str, list[Presentation]] = {}

    def start(self, client_id: str, subject: str, scope: tuple[str, ...]) -> RefreshToken:
        """Begin a family and return its first refresh token."""
        family = Family(secrets.token_hex(8), client_id, subject, scope, self._clock())
        self.families[family.family_id] = family
        return self._issue(family)

    def find(self, value: str) -> RefreshToken | None:
        """Return the token of that value, whatever its state, or ``None``."""
        return self.tokens.get(value)

    def spend(self, value: str, client_id: str) -> tuple[RefreshToken, RefreshToken | None]:
        """Accept a refresh token; return it and the one to answer (``None``: the answer carries none).

        Raises ``OAuthError`` (``invalid_grant``): it is unknown, expired, revoked, another client's or spent before.
        """
        now = self._clock()
        token = self.tokens.get(value)
        if token is None:
            self.unknown.setdefault(value, []).append(Presentation(now, Outcome.UNKNOWN))
            raise OAuthError("invalid_grant", "the refresh token is unknown")
        outcome = self._judge(token, client_id, now)
        token.presentations.append(Presentation(now, outcome))
        if outcome is Outcome.REUSED:
            self.revoke(token.family, Outcome.REUSED)
        if not outcome.accepted:
            raise OAuthError("invalid_grant", _REFUSALS[outcome])
        return token, self._answer(token, outcome)

    def revoke(self, family: Family, reason: str) -> None:
        """End a family; the first reason given stays."""
        if family.revoked_at is None:
            family.revoked_at, family.revocation = self._clock(), reason

    def active(self, token: RefreshToken) -> bool:
        """Tell whether a token would be accepted now, other than as a replay."""
        spent = self.policy.rotation is Rotation.ROTATING and token.spent_at is not None
        return not spent and token.family.revoked_at is None and not self._expired(token, self._clock())

    def spends(self) -> list[Spend]:
        """Return the record of every refresh token ever issued or presented."""
        records = [
            Spend(
                token.value,
                token.family.family_id,
                token.family.client_id,
                token.family.subject,
                tuple(token.presentations),
                token.family.revoked_at is not None,
            )
            for token in self.tokens.values()
        ]
        records += [Spend(value, None, None, None, tuple(shown), False) for value, shown in self.unknown.items()]
        return records

    def _issue(self, family: Family) -> RefreshToken:
        now = self._clock()
        expires_at = None if self.policy.idle is None else now + self.policy.idle
        token = RefreshToken(secrets.token_urlsafe(_TOKEN_BYTES), family, now, expires_at)
        self.tokens[token.value] = token
        return token

    def _judge(self, token: RefreshToken, client_id: str, now: float) -> Outcome:
        if token.family.client_id != client_id:
            return Outcome.WRONG_CLIENT
        if token.family.revoked_at is not None:
            return Outcome.REVOKED
        spent_at = token.spent_at
        if self.policy.rotation is Rotation.ROTATING and spent_at is not None:
            in_window = now - spent_at <= self.policy.reuse_window and self.policy.reuse_window > 0
            moved_on = any(successor.spent_at is not None for successor in token.successors)
            return Outcome.REPLAYED if in_window and not moved_on else Outcome.REUSED
        return Outcome.EXPIRED if self._expired(token, now) else Outcome.ACCEPTED

    def _expired(self, token: RefreshToken, now: float) -> bool:
        if token.expires_at is not None and now >= token.expires_at:
            return True
        return self.policy.maximum is not None and now >= token.family.started_at + self.policy.maximum

    def _answer(self, token: RefreshToken, outcome: Outcome) -> RefreshToken | None:
        if self.policy.rotation is Rotation.REUSABLE_SILENT:
            return None
        if self.policy.rotation is Rotation.REUSABLE:
            return token
        if outcome is Outcome.REPLAYED and self.policy.replay_answer is ReplayAnswer.SAME and token.successors:
            return token.successors[0]
        successor = self._issue(token.family)
        token.successors.append(successor)
        return successor


_REFUSALS: Final = {
    Outcome.REUSED: "the refresh token was used before; all tokens of its authorization are revoked",
    Outcome.REVOKED: "the refresh token is revoked",
    Outcome.EXPIRED: "the refresh token has expired",
    Outcome.WRONG_CLIENT: "the refresh token was issued to another client",
}
