"""What people are told of an identity: statuses and events, each once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from keyferry.engine.entry import Care
from keyferry.engine.outcome import level_of
from keyferry.engine.status import APPROVAL_PENDING, Event, Level
from keyferry.errors import Reason
from keyferry.freshness import lifetime_too_short, outpaces_readers

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.errors import KeyferryError
    from keyferry.model import ObjectKey
    from keyferry.plan import Failure


class Teller:
    """Tells the reporter about identities."""

    def __init__(self, ports: Ports, roster: Roster) -> None:
        self._ports = ports
        self._roster = roster

    def report(self, entry: Entry, reason: Reason, message: str, *, busy: bool = False) -> None:
        """Report a status; ``busy`` while an exchange is queued or under way."""
        entry.reported = (reason, message)
        if self._roster.entries.get(entry.key) is not entry or entry.care is Care.NONE:
            return  # it is gone, and another one may have its name; or another process tells of it
        self._ports.reporter.report(entry.status(reason, message, busy=busy))

    def working(self, entry: Entry, message: str) -> None:
        """Report that an exchange is queued or under way; a person who is being asked need not see every poll."""
        if entry.failure is None or entry.failure.code != APPROVAL_PENDING:
            self.report(entry, entry.reported[0] if entry.reported else Reason.PENDING, message, busy=True)

    def event(self, entry: Entry, level: Level, word: str, reason: Reason, message: str) -> None:
        """Say that something happened."""
        failure = entry.failure
        upcoming = failure.next_attempt if failure is not None else entry.renewal_time
        self._ports.reporter.event(
            Event(
                level,
                word,
                reason,
                message,
                entry.key,
                entry.expiration_time or None,
                upcoming if upcoming and math.isfinite(upcoming) else None,
            )
        )

    def stuck(self, key: ObjectKey, message: str) -> None:
        """Say that an answer cannot be stored yet."""
        entry = self._roster.entries.get(key)
        if entry is not None:
            self.event(entry, Level.ERROR, "unstored", Reason.RETRYING, message)
            self.report(entry, Reason.RETRYING, message, busy=True)

    def note(self, entry: Entry) -> Callable[[str], None]:
        """Return a function that tells people something of an identity."""
        return lambda message: self.event(entry, Level.WARNING, "note", Reason.ISSUED, message)

    def issued(self, entry: Entry) -> None:
        """Report that all is well, that files cannot be written, or that no token can ever satisfy consumers."""
        if entry.publish_failure is not None:
            self.report(entry, entry.publish_failure.reason, entry.publish_failure.message)
            return
        message = self._too_short(entry)
        if not message:
            self.report(entry, Reason.ISSUED, "")
            return
        if entry.reported != (Reason.LIFETIME_TOO_SHORT, message):
            self.event(entry, Level.WARNING, "lifetime_too_short", Reason.LIFETIME_TOO_SHORT, message)
        self.report(entry, Reason.LIFETIME_TOO_SHORT, message)

    def _too_short(self, entry: Entry) -> str:
        """Say what the provider's tokens live too short for; nothing where they live long enough."""
        spec = entry.resource.spec
        wanted, life = spec.renewal.minimum_remaining, entry.expiration_time - entry.issue_time
        if lifetime_too_short(entry.issue_time, entry.expiration_time, wanted):
            return (
                f"the provider's tokens live for {life:.0f} s, and consumers are held back below {wanted:.0f} s"
                " (spec.renewal.minimumRemaining): none will ever be let through. Lower it, or have the provider issue"
                " longer tokens."
            )
        delay = self._ports.reading_delay(spec.target)
        if outpaces_readers(entry.issue_time, entry.expiration_time, delay) and not spec.target.touch_pods:
            return (
                f"the token is published, but the provider's tokens live for {life:.0f} s only: it may take the kubelet"
                f" {delay:.0f} s to bring a new one to the pods that mount the Secret, so that they can find an expired"
                f" one. Have the provider issue tokens of {2 * delay:.0f} s or more, set spec.target.touchPods (if the"
                " installation allows it), or deliver through a sidecar."
            )
        return ""

    def tell(self, entry: Entry, failure: Failure, previous: Failure | None) -> None:
        """Tell of a failure: loudly where it is another than before."""
        asking = failure.code == APPROVAL_PENDING
        news = asking or previous is None or (previous.reason, previous.code) != (failure.reason, failure.code)
        word = "approval_required" if asking else "failed"
        self.event(entry, level_of(failure) if news else Level.DEBUG, word, failure.reason, failure.message)
        self.report(entry, failure.reason, failure.message)

    def refused(self, entry: Entry, error: KeyferryError) -> None:
        """Report a resource that cannot be used as it is written; only a change brings it back."""
        if entry.reported != (error.reason, error.message):
            self.event(entry, Level.ERROR, "refused", error.reason, error.message)
        self.report(entry, error.reason, error.message)
