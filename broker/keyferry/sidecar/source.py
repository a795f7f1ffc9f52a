"""What the loopback endpoints of a pod ask: answered from the last answer of the broker, or by the broker API."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keyferry.errors import Reason
from keyferry.freshness import leeway
from keyferry.sidecar.client import BrokerAwayError, BrokerRefusedError
from keyferry.web.source import NotAllowed, NotOffered, Token, Unavailable
from keyferry.wire import Malformed, ProblemReason, decode_call, decode_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.providers.labarchives.login import LabArchivesUser, SignedCall
    from keyferry.secret import SecretValue
    from keyferry.sidecar.client import BrokerClient
    from keyferry.sidecar.follow import Follower
    from keyferry.wire import TokenAnswer

T = TypeVar("T")

PATIENCE: Final = 8.0
"""Seconds that a request waits for a token: less than clients wait for an answer (aiondemand: 10 s)."""


class BrokerSource:
    """Implements ``keyferry.web.source.Source`` for one identity of the pod."""

    def __init__(
        self, follower: Follower, client: BrokerClient, placeholder: SecretValue, *, patience: float = PATIENCE
    ) -> None:
        """``patience`` is for how many seconds a token is waited for."""
        self._patience = patience
        self._follower = follower
        self._client = client
        self._placeholder = placeholder

    @property
    def placeholder(self) -> SecretValue:
        """What the pod's workloads present."""
        return self._placeholder

    async def token(self) -> Token:
        """Return the token of the last answer while it will do; wait for the next one where it will not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                while (current := self._follower.current) is None or not _will_do(current):
                    await self._follower.renewed.wait()
        current = self._follower.current
        if current is not None and not current.access_token:
            raise NotOffered
        if current is None or current.expires_at <= time.time():
            raise self._unavailable()
        return Token(
            current.access_token,
            current.token_type,
            current.issued_at,
            current.expires_at,
            current.scope,
            current.revision,
            self._follower.confirmed_at,
        )

    async def sign(self, method: str) -> SignedCall:
        """Have a LabArchives call signed."""
        return await self._ask(decode_call, "signature", {"method": method})

    async def user(self) -> LabArchivesUser:
        """Return whose login it is; without the user id."""
        return await self._ask(decode_user, "user")

    async def correct_clock(self) -> None:
        """Have LabArchives' clock asked for."""
        await self._ask(lambda _: None, "clock")

    async def login_refused(self) -> None:
        """Have it looked into, and the person asked."""
        await self._ask(lambda _: None, "refused")

    def _unavailable(self) -> Unavailable:
        trouble = self._follower.trouble
        if trouble is None:
            return Unavailable("the broker has not given a token yet")
        return Unavailable(f"{trouble.reason}: {trouble.message}", person=trouble.reason == Reason.APPROVAL_REQUIRED)

    async def _ask(self, decode: Callable[[object], T], what: str, body: dict[str, Any] | None = None) -> T:
        try:
            return decode(await self._client.labarchives(self._follower.name, what, body))
        except BrokerAwayError as error:
            raise Unavailable(error.message) from None
        except BrokerRefusedError as error:
            match error.problem.reason:
                case ProblemReason.NOT_OFFERED | ProblemReason.NOT_FOUND:
                    raise NotOffered from None
                case ProblemReason.NOT_SIGNED:
                    raise NotAllowed from None
                case reason:
                    raise Unavailable(error.message, person=reason == Reason.APPROVAL_REQUIRED) from None
        except Malformed:
            raise Unavailable("the broker's answer cannot be understood") from None


def _will_do(token: TokenAnswer) -> bool:
    return not token.access_token or token.expires_at - time.time() > leeway(token.issued_at, token.expires_at)
