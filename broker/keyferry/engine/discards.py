"""Has what logins brought and nobody wants revoked at the provider, as what identities that are gone leave is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from keyferry.engine.job import order_to_revoke
from keyferry.engine.wishes import Forget
from keyferry.record import Record
from keyferry.spec.identity import DeletionPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyferry.approval import Thrown
    from keyferry.engine.entry import Entry
    from keyferry.engine.provider import Provider
    from keyferry.engine.roster import Roster
    from keyferry.engine.undertaker import Undertaker
    from keyferry.model import ObjectKey


class Discards:
    """Gives the undertaker an order for each, and has the identity forget it once that is done."""

    def __init__(self, roster: Roster, undertaker: Undertaker, look_at: Callable[[Iterable[ObjectKey]], None]) -> None:
        """``look_at`` has the loop look at identities."""
        self._roster = roster
        self._undertaker = undertaker
        self._look_at = look_at

    def see_to(self, entry: Entry, record: Record) -> None:
        """Take up what is to be revoked; what was taken up before is not taken up again."""
        provider = self._roster.provider_of(entry)
        if provider is None:
            return  # it is seen to when there is one again
        for thrown in record.thrown:
            self._undertaker.discard(_order(entry, record, thrown, provider, self._roster), self._forget(entry, thrown))

    def _forget(self, entry: Entry, thrown: Thrown) -> Callable[[], None]:
        def forget() -> None:
            if self._roster.entries.get(entry.key) is entry:
                entry.wishes = (*entry.wishes, Forget("", thrown.name))
                self._look_at({entry.key})

        return forget


def _order(entry: Entry, record: Record, thrown: Thrown, provider: Provider, roster: Roster) -> Record:
    """Return what is thrown away in the form of a record that is buried."""
    revocation = replace(order_to_revoke(entry.resource.spec, provider), policy=DeletionPolicy.REVOKE.value)
    return Record(
        uid=f"{record.uid}/{thrown.name}",
        key=record.key,
        binding=thrown.binding,
        refresh_token=thrown.tokens.refresh_token,
        token=replace(thrown.tokens, refresh_token=None),
        revocation=revocation,
        keepsakes=record.keepsakes,
        buried_at=thrown.at,
        shard=roster.shard_name(entry),
    )
