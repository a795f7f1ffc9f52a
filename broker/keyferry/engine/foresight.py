"""Tells people ahead of time that a login ends, so that nobody learns on Monday that it did on Sunday.

Each notice is counted in the private state before it is given: a restart neither repeats nor forgets it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keyferry.engine.job import PERSONAL
from keyferry.engine.status import Level
from keyferry.errors import Reason, StoreError

if TYPE_CHECKING:
    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.telling import Teller
    from keyferry.record import Record, Versioned

LEADS: Final = ((7 * 86400.0, 1 / 3), (86400.0, 1 / 10))
"""How long before the end people are told: seconds, and the share of the session's life where that is less."""


def notice_times(began: float, end: float) -> tuple[float, ...]:
    """Return when people are told that a session which began at ``began`` is over at ``end`` (all Unix seconds)."""
    return tuple(end - min(lead, share * max(0.0, end - began)) for lead, share in LEADS)


class Foresight:
    """Gives the notices that are due."""

    def __init__(self, ports: Ports, teller: Teller) -> None:
        self._ports = ports
        self._teller = teller

    def is_due(self, entry: Entry, record: Record) -> bool:
        """Tell whether a notice is to be given."""
        return self._due(entry) > record.session_notices

    async def look(self, entry: Entry, held: Versioned | None) -> None:
        """Give a notice that is due; several that were missed are one."""
        if held is None or entry.reauthorize_by is None or held.record.refresh_ended:
            return
        due, given = self._due(entry), held.record.session_notices
        if due == given:
            return
        try:
            await self._ports.store.replace(held, replace(held.record, session_notices=due))
        except StoreError:
            return  # the next look finds it due again
        if due > given:
            self._teller.event(
                entry, Level.WARNING, "login_ends", Reason.APPROVAL_REQUIRED, _notice(entry, entry.reauthorize_by)
            )

    def _due(self, entry: Entry) -> int:
        now = self._ports.clock.now()
        return sum(at <= now for at in entry.notice_times)


def _notice(entry: Entry, end: float) -> str:
    spec = entry.resource.spec
    at = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M")
    if spec.grant.refresh_token is not None:
        ref = spec.grant.refresh_token.from_.secret_key_ref
        what = f"put a new refresh token into Secret {entry.key.namespace}/{ref.name}, key {ref.key}"
    elif spec.grant.type in PERSONAL:
        what = f"`keyferry login {entry.key.name}` or `kubectl keyferry login {entry.key.name}` asks for the next login"
    else:
        what = "a person must log in again"
    return (
        f"the login behind the token of ServiceIdentity {entry.key} ends on {at} UTC, and refreshing does not prolong"
        f" it. Before that, {what}; the session that is in use serves on meanwhile"
    )
