"""Device codes (RFC 8628) as a server keeps them: asked about until a person decides, and good once."""

from __future__ import annotations

import enum
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyferry.demo.wire import OAuthError

if TYPE_CHECKING:
    from collections.abc import Callable

LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so that no words come out (RFC 8628 6.1)."""


class Decision(enum.Enum):
    """What the person said."""

    NONE = enum.auto()
    APPROVED = enum.auto()
    DENIED = enum.auto()


@dataclass(slots=True)
class DeviceCode:
    """One request for approval. Times are Unix seconds."""

    value: str = field(repr=False)
    user_code: str
    client_id: str
    scope: tuple[str, ...]
    audience: tuple[str, ...]
    expires_at: float
    interval: float
    decision: Decision = Decision.NONE
    subject: str = ""
    polls: list[float] = field(default_factory=list)
    """When it was asked about."""
    redeemed: bool = False


class DeviceCodes:
    """All device codes of one issuer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lifetime = 600.0
        self.interval = 5.0
        """Seconds; a client that asks sooner is told to slow down (RFC 8628 3.5)."""
        self.approver = ""
        """Who approves every request as soon as it is made, where nobody is there to do so; empty: people decide."""
        self.all: list[DeviceCode] = []
        self._clock = clock

    def start(self, client_id: str, scope: tuple[str, ...], audience: tuple[str, ...]) -> DeviceCode:
        """Begin a request for approval."""
        letters = "".join(secrets.choice(LETTERS) for _ in range(8))
        code = DeviceCode(
            value=secrets.token_urlsafe(24),
            user_code=f"{letters[:4]}-{letters[4:]}",
            client_id=client_id,
            scope=scope,
            audience=audience,
            expires_at=self._clock() + self.lifetime,
            interval=self.interval,
        )
        if self.approver:
            code.decision, code.subject = Decision.APPROVED, self.approver
        self.all.append(code)
        return code

    def decide(self, user_code: str, decision: Decision, subject: str = "") -> None:
        """Note what a person said, as the verification page does. Raises KeyError where no such code is open."""
        for code in self.all:
            if code.user_code == user_code and code.decision is Decision.NONE and self._clock() < code.expires_at:
                code.decision, code.subject = decision, subject
                return
        raise KeyError(user_code)

    def redeem(self, value: str, client_id: str) -> DeviceCode:
        """Return the approved code, once. Raises OAuthError (RFC 8628 3.5)."""
        code = next((code for code in self.all if code.value == value and code.client_id == client_id), None)
        if code is None or code.redeemed:
            raise OAuthError("invalid_grant", "there is no such device code")
        now = self._clock()
        too_soon = bool(code.polls) and now - code.polls[-1] < code.interval - 0.5
        code.polls.append(now)
        if now >= code.expires_at:
            raise OAuthError("expired_token", "the device code has lapsed")
        if code.decision is Decision.DENIED:
            raise OAuthError("access_denied", "the person said no")
        if too_soon:
            raise OAuthError("slow_down", "asked too soon")
        if code.decision is Decision.NONE:
            raise OAuthError("authorization_pending", "the person has not decided yet")
        code.redeemed = True
        return code
