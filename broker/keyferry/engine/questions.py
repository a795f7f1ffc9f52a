"""What people are asked, for the approval page: looks questions up by their links, and has the engine act on answers.

Nothing here sends a request or decides what becomes of an answer: that is the identity's own turn.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Final

from keyferry.engine import links
from keyferry.engine.answers import foreign
from keyferry.engine.description import Describer, unknown
from keyferry.engine.entry import Care
from keyferry.engine.loop import Waive
from keyferry.engine.wishes import Arrive, Begin, Confirm, Decline, GiveCode
from keyferry.errors import KeyferryError, Reason, Refused, RetryClass
from keyferry.question import Overview
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Protocol

    from keyferry.engine.entry import Entry
    from keyferry.engine.links import Links
    from keyferry.engine.loop import Loop
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.engine.status import IdentityStatus
    from keyferry.engine.wishes import Wish
    from keyferry.model import ObjectKey
    from keyferry.question import Question
    from keyferry.record import Record

    class Viewers(Protocol):
        """Who may list identities."""

        async def sees(self, viewer: SecretValue) -> Callable[[ObjectKey], bool]:
            """Return which identities the bearer of ``viewer`` may list. Raises Refused where there are none."""
            ...


PATIENCE: Final = 8.0
"""Seconds (of a real clock) that a page waits for what it asked for; then it is told that it is being worked on."""


class Questions:
    """Implements ``keyferry.question.Approvals`` for the identities that this engine looks after."""

    def __init__(self, ports: Ports, roster: Roster, loop: Loop, known: Links) -> None:
        self._ports = ports
        self._roster = roster
        self._loop = loop
        self._links = known
        self._describer = Describer(ports, roster)
        self.viewers: Viewers | None = None
        """Who may see the overview; None: nobody may."""

    # --- what the page asks for ---------------------------------------------------------------------------------------

    async def question(self, link: SecretValue, browser: SecretValue | None) -> Question:
        """Return a question as it stands."""
        return await self._question(self._find(link), link, browser)

    async def begin(self, link: SecretValue, browser: SecretValue) -> str:
        """Begin a login in this browser; return the provider's address to send it to."""
        return await self._wish(self._find_open(link), Begin(self._links.digest(browser)))

    async def arrive(
        self, provider_uid: str, browser: SecretValue | None, parameters: Mapping[str, str]
    ) -> SecretValue:
        """Take what the provider sent the browser back with, once; return the link of its question."""
        entry = self._find_state(SecretValue(parameters.get("state", "")))
        provider = self._roster.provider_of(entry)
        if provider is None or not hmac.compare_digest(links.provider_uid(provider.resource), provider_uid):
            raise foreign("came to another provider's address than the one that was asked", "wrong_provider")
        known = entry.link
        if known is None:
            raise unknown(self._roster)
        await self._wish(entry, Arrive(self._digest(browser), parameters))
        await self._loop.wait_for(lambda: not entry.redeeming, PATIENCE)
        return known.secret

    async def give_code(self, link: SecretValue, browser: SecretValue, email: str, code: SecretValue) -> Question:
        """Take a vendor's one-time code that the person typed; it is redeemed once."""
        entry = self._find_open(link)
        await self._wish(entry, GiveCode(self._links.digest(browser), SecretValue(email), code))
        await self._loop.wait_for(lambda: not entry.redeeming, PATIENCE)
        return await self._question(entry, link, browser)

    async def confirm(self, link: SecretValue, browser: SecretValue) -> Question:
        """Use the account that logged in, and publish; only for the browser that logged in."""
        entry = self._find_open(link)
        await self._wish(entry, Confirm(self._links.digest(browser)))
        await self._loop.wait_for(lambda: not entry.busy, PATIENCE)
        return await self._question(entry, link, browser)

    async def decline(self, link: SecretValue, browser: SecretValue) -> Question:
        """Throw away what the login brought, and revoke it; only for the browser that logged in."""
        entry = self._find_open(link)
        await self._wish(entry, Decline(self._links.digest(browser)))
        return await self._question(entry, link, browser)

    async def ask_again(self, link: SecretValue) -> Question:
        """Have a fresh device code or login offered under the same link, where the last one came to nothing."""
        entry = self._find(link)
        record = await self._record(entry)
        approval = record.approval
        known = approval.link.digest if approval is not None and approval.link is not None else ""
        over = approval is not None and not approval.open(entry.spec_hash, self._ports.clock.now())
        if approval is not None and over and known == self._links.digest(link):
            entry.login = entry.login_by_page = True
            self._loop.look_at({entry.key}, waive=Waive.ALWAYS)

            def settled() -> bool:
                return not entry.login or self._roster.entries.get(entry.key) is not entry

            await self._loop.wait_for(settled, PATIENCE)
            record = await self._record(entry)
            fresh = record.approval is None or record.approval.attempt_id != approval.attempt_id
            if not fresh and entry.failure is not None and settled():
                raise KeyferryError(entry.failure.message, reason=entry.failure.reason, retry=entry.failure.retry)
        return self._describer.question(entry, record, self._links.digest(link), "")

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
        """Return the identity whose question goes, or went, by ``link``. Raises NoSuchQuestion and Misdirected."""
        digest, now = self._links.digest(link), self._ports.clock.now()
        for entry in self._own():
            if _is_asked(entry, digest, now):
                return entry
            if now < entry.answered_until and hmac.compare_digest(entry.answered, digest):
                return entry
        raise unknown(self._roster)

    def _find_open(self, link: SecretValue) -> Entry:
        """Return the identity whose question goes by ``link``. Raises NoSuchQuestion and Misdirected."""
        entry = self._find(link)
        if not _is_asked(entry, self._links.digest(link), self._ports.clock.now()):
            raise unknown(self._roster)
        return entry

    def _find_state(self, state: SecretValue) -> Entry:
        """Return the identity whose login a callback belongs to. Raises Refused and Misdirected."""
        digest = self._links.digest(state)
        for entry in self._own():
            if entry.state and hmac.compare_digest(entry.state, digest):
                return entry
        if self._roster.shards.held != self._roster.shards.all:
            raise unknown(self._roster)
        raise foreign("belongs to no login that was begun here, or to one that is over", "unknown_state")

    def _digest(self, browser: SecretValue | None) -> str:
        return self._links.digest(browser) if browser else ""

    async def _question(self, entry: Entry, link: SecretValue, browser: SecretValue | None) -> Question:
        record = await self._record(entry)
        return self._describer.question(entry, record, self._links.digest(link), self._digest(browser))

    async def _wish(self, entry: Entry, wish: Wish) -> str:
        """Have a wish carried out in the identity's own turn; return its result. Raises what it is refused with."""
        entry.wishes = (*entry.wishes, wish)
        self._loop.look_at({entry.key}, waive=Waive.ALWAYS)
        try:
            async with asyncio.timeout(PATIENCE):
                return await wish.done
        except TimeoutError:
            raise KeyferryError(
                "This takes longer than usual: the provider, or Keyferry's own store, is slow or away. Try again in a"
                " moment."
            ) from None

    async def _record(self, entry: Entry) -> Record:
        held = await self._ports.store.read(entry.key, entry.uid)
        if held is None:
            raise unknown(self._roster)
        return held.record


def _is_asked(entry: Entry, digest: str, now: float) -> bool:
    known = entry.link
    return known is not None and now < known.expires_at and hmac.compare_digest(known.digest, digest)


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
