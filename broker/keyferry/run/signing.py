"""What the loopback endpoints of a LabArchives identity ask of a working broker, as JSON-ready values.

What passes holds a user id and a signature that is good for two minutes, and never the organization's key.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from keyferry.errors import KeyferryError, Reason, Refused, RetryClass
from keyferry.wire import encode_call, encode_user

if TYPE_CHECKING:
    from keyferry.model import ObjectKey
    from keyferry.run.broker import LocalBroker

NOT_OFFERED: Final = "NotOffered"
"""Why a call is refused where the identity is none of LabArchives."""


class Call(enum.StrEnum):
    """What can be asked."""

    SIGN = "Sign"
    USER = "User"
    CORRECT_CLOCK = "CorrectClock"
    LOGIN_REFUSED = "LoginRefused"


async def answer(broker: LocalBroker, key: ObjectKey, call: Call, method: str = "") -> dict[str, Any]:
    """Return ``signed``, ``user`` or nothing; or ``refused``, with the reason. Raises no KeyferryErrors."""
    signer = broker.engine.labarchives
    try:
        if not await broker.include(key) or not signer.serves(key):
            return refused(NOT_OFFERED, f"{key} is no identity of LabArchives", person=False)
        match call:
            case Call.SIGN:
                return {"signed": encode_call(await signer.sign(key, method))}
            case Call.USER:
                return {"user": encode_user(await signer.user(key))}
            case Call.CORRECT_CLOCK:
                await signer.correct_clock(key)
            case Call.LOGIN_REFUSED:
                broker.engine.renew(key)  # which asks LabArchives, and then the person
    except KeyferryError as error:
        if isinstance(error, Refused) and error.retry is RetryClass.NEEDS_PERSON:
            broker.engine.renew(key)  # so that the person hears of it, too
        return refused(error.reason, error.message, person=error.retry is RetryClass.NEEDS_PERSON)
    return {}


def refused(reason: str, message: str, *, person: bool) -> dict[str, Any]:
    """Return a refusal; ``reason`` is a ``Reason``, or ``NOT_OFFERED``."""
    return {"refused": {"reason": str(reason), "message": message, "person": person}}


NOT_LISTED: Final = Reason.PROVIDER_NOT_ALLOWED.value
"""Why a method is refused that the provider does not list."""
