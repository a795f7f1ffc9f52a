"""Tokens of one identity as the subject of another (``identityRef``)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from keyferry.errors import ExchangeError, Reason, ResourceError, RetryClass
from keyferry.model import ObjectKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.secret import SecretValue


WAITING: Final = "waiting_for_identity"
"""Code of the error that says so."""


class IdentityChain:
    """Hands out current tokens, and wakes who waits for one that is not there yet."""

    def __init__(self, ports: Ports, roster: Roster, wake: Callable[[ObjectKey], None]) -> None:
        self._ports = ports
        self._roster = roster
        self._wake = wake
        self._asked: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)
        """Who asked for an identity's token since it was issued."""

    async def current(self, namespace: str, name: str, consumer: ObjectKey) -> SecretValue:
        """Return the identity's token, read from the private state as it is now.

        Raises ResourceError where the identity is not there or does not consent, ExchangeError (transient) while it
        has no good token.
        """
        key = ObjectKey(namespace, name)
        entry = self._roster.entries.get(key)
        if entry is None:
            raise ResourceError(
                f"ServiceIdentity {consumer} refers to ServiceIdentity {key}, which is not there. Create it, or correct"
                " the identityRef.",
                reason=Reason.SECRET_NOT_FOUND,
            )
        if not any(who.identity_name == consumer.name for who in entry.resource.spec.consumers):
            raise ResourceError(
                f"ServiceIdentity {key} does not let {consumer.name} use its token. If it should, add"
                f" `{{identityName: {consumer.name}}}` to its spec.consumers.",
                reason=Reason.SECRET_NOT_LABELLED,
            )
        # Before the look, not after it: a token that is issued in between must not be missed.
        self._asked[key].add(consumer)
        held = await self._ports.store.read(key, entry.uid)
        token = held.record.token if held is not None else None
        if token is None or token.expires_at <= self._ports.clock.now():
            raise ExchangeError(
                f"ServiceIdentity {consumer} waits for the token of ServiceIdentity {key}, which has none just now",
                code=WAITING,
                retry=RetryClass.SUSPICIOUS,
            )
        return token.access_token

    def issued(self, key: ObjectKey) -> None:
        """Wake those that waited for this identity's token, or that failed with the one before."""
        for consumer in self._asked.pop(key, set()):
            entry = self._roster.entries.get(consumer)
            if entry is not None and entry.failure is not None:
                entry.failure = None
                self._wake(consumer)
