"""Loopback endpoints whose credentials come from whoever works on the identities: another process, or this one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from keyferry.freshness import leeway
from keyferry.io.addresses import AddressPolicy
from keyferry.providers.labarchives import SESSION_TYPE
from keyferry.run.control import NobodyAnswersError
from keyferry.run.requests import Outcome
from keyferry.run.signing import NOT_LISTED, NOT_OFFERED, Call
from keyferry.run.stored_token import read_record
from keyferry.web.loopback import Loopback
from keyferry.web.source import NotAllowed, NotOffered, Token, Unavailable
from keyferry.wire import decode_call, decode_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyferry.cli.sessions import Session
    from keyferry.model import ObjectKey
    from keyferry.providers.labarchives import LabArchivesUser, SignedCall
    from keyferry.run.settings import RunSettings
    from keyferry.secret import SecretValue

PATIENCE: Final = 8.0
"""Seconds that a request waits for a token: less than clients wait for an answer (aiondemand: 10 s)."""


class SessionSource:
    """Implements ``keyferry.web.source.Source`` for one identity."""

    def __init__(self, session: Callable[[], Session], state: Path, key: ObjectKey, placeholder: SecretValue) -> None:
        """``session`` returns the broker that works on it at the time."""
        self._session = session
        self._state = state
        self._key = key
        self._placeholder = placeholder

    @property
    def placeholder(self) -> SecretValue:
        """What workloads present."""
        return self._placeholder

    async def token(self) -> Token:
        """Return the stored token while it will do; have it renewed, and wait for it, where it will not."""
        token = await self._stored()
        if token is not None and token.expires_at - time.time() > leeway(token.issued_at, token.expires_at):
            return token
        try:
            answer = await self._session().want(self._key, None, PATIENCE)
        except NobodyAnswersError as error:
            raise Unavailable(error.message) from None
        token = await self._stored()
        if token is None or token.expires_at <= time.time():
            message = answer.message or f"the token of {self._key} is gone again; ask once more"
            raise Unavailable(message, person=answer.outcome is Outcome.PERSON)
        return token

    async def sign(self, method: str) -> SignedCall:
        """Return what a LabArchives call needs."""
        return decode_call((await self._ask(Call.SIGN, method))["signed"])

    async def user(self) -> LabArchivesUser:
        """Return whose login it is; without the user id."""
        return decode_user((await self._ask(Call.USER))["user"])

    async def correct_clock(self) -> None:
        """Have LabArchives' clock asked for."""
        await self._ask(Call.CORRECT_CLOCK)

    async def login_refused(self) -> None:
        """Have it looked into, and the person asked."""
        await self._ask(Call.LOGIN_REFUSED)

    async def _stored(self) -> Token | None:
        record = await asyncio.to_thread(read_record, self._state, self._key)
        token = record.token if record is not None else None
        if record is None or token is None:
            return None
        if token.token_type == SESSION_TYPE:
            raise NotOffered
        return Token(
            token.access_token, token.token_type, token.issued_at, token.expires_at, token.scope, record.revision
        )

    async def _ask(self, call: Call, method: str = "") -> dict[str, Any]:
        try:
            answer = await self._session().labarchives(self._key, call, method)
        except NobodyAnswersError as error:
            raise Unavailable(error.message) from None
        refusal = answer.get("refused")
        if refusal is None:
            return answer
        if refusal["reason"] == NOT_OFFERED:
            raise NotOffered
        if refusal["reason"] == NOT_LISTED and call is Call.SIGN:
            raise NotAllowed
        raise Unavailable(str(refusal["message"]), person=bool(refusal["person"]))


def loopback(
    settings: RunSettings, lookup: Callable[[str], SessionSource | None], *, host: str = "127.0.0.1", port: int = 0
) -> Loopback:
    """Return the server of the endpoints; it may ask the hosts that the settings allow."""
    return Loopback(lookup, AddressPolicy(allowed=settings.allowed_hosts), host=host, port=port)
