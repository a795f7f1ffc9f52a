"""How ``keyferry run --once`` knows that it is done, and how it went."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Final

from keyferry.cli.exits import ExitCode
from keyferry.errors import Reason, RetryClass

if TYPE_CHECKING:
    from keyferry.engine import IdentityStatus
    from keyferry.model import ObjectKey
    from keyferry.run.broker import LocalBroker

POLL: Final = 0.1
GRAVITY: Final = (ExitCode.INVALID, ExitCode.PERSON, ExitCode.FAILED, ExitCode.DONE)
"""What counts where identities ended differently: who wrote the resources must know first."""


class Settling:
    """Waits until every identity is fresh or it is clear that it will not be."""

    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker
        self._codes: dict[ObjectKey, ExitCode] = {}

    async def wait(self, patience: float) -> ExitCode:
        """Wait up to ``patience`` seconds; return the code for all identities together."""
        clock, roster = self._broker.clock, self._broker.engine.roster
        deadline = clock.monotonic() + patience
        while True:
            for key in roster.entries.keys() - self._codes.keys():
                code = self._verdict(key)
                if code is not None:
                    self._codes[key] = code
            pending = roster.entries.keys() - self._codes.keys()
            if not pending or clock.monotonic() >= deadline:
                break
            await asyncio.sleep(POLL)
        self._codes |= dict.fromkeys(pending, ExitCode.FAILED)
        return next((code for code in GRAVITY if code in self._codes.values()), ExitCode.DONE)

    def summary(self) -> str:
        """Return a sentence for people on how it went, with the names of those that are not fresh."""
        counts = collections.Counter(self._codes.values())
        text = f"{counts[ExitCode.DONE]} of {len(self._codes)} identities are fresh"
        late = sorted(key for key, code in self._codes.items() if code is not ExitCode.DONE)
        if not late:
            return text
        shown = ", ".join(f"{key} ({self._why(key)})" for key in late[:10])
        more = f", and {len(late) - 10} more" if len(late) > 10 else ""  # noqa: PLR2004 - as many as one reads
        return f"{text}; not: {shown}{more}"

    def _why(self, key: ObjectKey) -> str:
        if key not in self._broker.engine.roster.entries:
            return "gone"
        status = self._broker.engine.status(key)
        return status.shown_reason(self._broker.clock.now()).value

    def _verdict(self, key: ObjectKey) -> ExitCode | None:
        """Return how it went with one identity, None while that is open."""
        status = self._broker.engine.status(key)
        if self._broker.engine.roster.entries[key].refusal is not None:
            return ExitCode.INVALID
        if status.reason is Reason.SUSPENDED:
            return ExitCode.DONE  # left out on purpose
        if status.busy or status.reason is Reason.PENDING:
            return None
        if status.stalled():
            return ExitCode.PERSON if status.retry is RetryClass.NEEDS_PERSON else ExitCode.FAILED
        if status.reason is Reason.LIFETIME_TOO_SHORT:
            return ExitCode.FAILED
        return ExitCode.DONE if self._fresh(status) else None

    def _fresh(self, status: IdentityStatus) -> bool:
        return status.retry is None and status.reason is Reason.ISSUED and status.ready(self._broker.clock.now())
