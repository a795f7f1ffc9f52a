"""What people are asked, for the approval page: looks questions up by their links, and has the engine act on answers.

Nothing here sends a request or decides what becomes of an answer: that is the identity's own turn.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from keyferry.engine.description import Describer, unknown
from keyferry.engine.entry import Care
from keyferry.engine.loop import Waive
from keyferry.errors import KeyferryError, Reason, Refused, RetryClass
from keyferry.question import Overview

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol

    from keyferry.engine.entry import Entry
    from keyferry.engine.links import Links
    from keyferry.engine.loop import Loop
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.engine.status import IdentityStatus
    from keyferry.model import ObjectKey
    from keyferry.question import Question
    from keyferry.record import Record
    from keyferry.secret import SecretValue

    class Viewers(Protocol):
        """Who may list identities."""

        async def sees(self, viewer: SecretValue) -> Callable[[ObjectKey], bool]:
            """Return which identities the bearer of ``viewer`` may list. Raises Refused where there are none."""
            ...


PATIENCE: Final = 8.0
"""Seconds (of a real clock) that a page waits for what it asked for; then it is told that it is being worked on."""


class Questions:
    """Implements ``keyferry.question.Approvals`` for the identities that this engine looks after."""

    def __init__(self, ports: Ports, roster: Roster, loop: Loop, links: Links) -> None:
        self._ports = ports
        self._roster = roster
        self._loop = loop
        self._links = links
        self._describer = Describer(ports, roster)
        self.viewers: Viewers | None = None
        """Who may see the overview; None: nobody may."""

    # --- what the page asks for ---------------------------------------------------------------------------------------

    async def question(self, link: SecretValue, browser: SecretValue | None) -> Question:
        """Return a question as it stands."""
        entry = self._find(link)
        return self._describer.question(entry, await self._record(entry), self._links.digest(link), browser)

    async def ask_again(self, link: SecretValue) -> Question:
        """Have a fresh device code offered under the same link, where the last one came to nothing."""
        entry = self._find(link)
        record = await self._record(entry)
        approval = record.approval
        if approval is not None and not approval.open(entry.spec_hash, self._ports.clock.now()):
            entry.login = entry.login_by_page = True
            attempt = approval.attempt_id
            self._loop.look_at({entry.key}, waive=Waive.ALWAYS)

            def settled() -> bool:
                return not entry.login or self._roster.entries.get(entry.key) is not entry

            await self._loop.wait_for(settled, PATIENCE)
            record = await self._record(entry)
            fresh = record.approval is None or record.approval.attempt_id != attempt
            if not fresh and entry.failure is not None and settled():
                raise KeyferryError(entry.failure.message, reason=entry.failure.reason, retry=entry.failure.retry)
        return self._describer.question(entry, record, self._links.digest(link), None)

    async def overview(self, viewer: SecretValue) -> list[Overview]:
        """Return the identities that the bearer of ``viewer`` may list. Raises Refused where there are none."""
        if self.viewers is None:
            raise Refused(
                "Nobody may list identities here.",
                code="not_allowed",
                reason=Reason.PROVIDER_NOT_ALLOWED,
                retry=RetryClass.NEEDS_CONFIGURATION,
            )
        sees = await self.viewers.sees(viewer)
        return [each for each in self.all() if sees(each.identity)]

    def all(self) -> list[Overview]:
        """Return every identity that this engine looks after, by namespace and name; for whoever judged the viewer."""
        now = self._ports.clock.now()
        entries = sorted(self._own(), key=lambda entry: entry.key)
        return [_overview(entry, now) for entry in entries]

    # --- looking up ---------------------------------------------------------------------------------------------------

    def _own(self) -> Iterator[Entry]:
        return (entry for entry in self._roster.entries.values() if entry.care is Care.FULL)

    def _find(self, link: SecretValue) -> Entry:
        """Return the identity whose question goes by ``link``. Raises NoSuchQuestion and Misdirected."""
        digest, now = self._links.digest(link), self._ports.clock.now()
        for entry in self._own():
            known = entry.link
            if known is not None and now < known.expires_at and hmac.compare_digest(known.digest, digest):
                return entry
            if now < entry.answered_until and hmac.compare_digest(entry.answered, digest):
                return entry
        raise unknown(self._roster)

    async def _record(self, entry: Entry) -> Record:
        held = await self._ports.store.read(entry.key, entry.uid)
        if held is None:
            raise unknown(self._roster)
        return held.record


def _overview(entry: Entry, now: float) -> Overview:
    reason, message = entry.reported or (Reason.PENDING, "")
    status: IdentityStatus = entry.status(reason, message)
    return Overview(
        identity=status.key,
        provider=f"{entry.provider_key[0]} {status.provider}",
        grant=status.grant,
        state=status.state(now).value,
        message=status.message,
        expiration_time=status.expiration_time,
        renewal_time=status.renewal_time,
        reauthorize_by_time=status.reauthorize_by_time,
        page=status.prompt.page if status.prompt is not None else "",
    )
