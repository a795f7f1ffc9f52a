"""Tokens of one identity as the subject of another (``identityRef``)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from keyferry.engine.credentials import service_accounts
from keyferry.engine.entry import Care
from keyferry.errors import CredentialError, ExchangeError, Reason, ResourceError, RetryClass
from keyferry.model import ObjectKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Provider
    from keyferry.engine.roster import Roster
    from keyferry.record import Record
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
        self.listeners: list[Callable[[ObjectKey], None]] = []
        """Told of every identity that has a new token, here or in another process."""

    async def current(self, namespace: str, name: str, consumer: ObjectKey, hosts: frozenset[str]) -> SecretValue:
        """Return the identity's token, read from the private state as it is now, to be sent to ``hosts``.

        Raises ResourceError where the identity is not there or does not consent, CredentialError where the token may
        not go there, ExchangeError (transient) while it has no good token.
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
        if entry.care is Care.NONE:
            self._ports.store.forget(key, entry.uid)  # another process renews it
        held = await self._ports.store.read(key, entry.uid)
        token = held.record.token if held is not None else None
        if held is None or token is None or token.expires_at <= self._ports.clock.now():
            raise _waits(consumer, key)
        if not token.access_token:  # since a restart: it was published in a form that does not show it plainly
            if entry.care is Care.FULL:
                entry.renew = True
                self._wake(key)
            raise _waits(consumer, key)
        await self._may_go(entry, held.record, consumer, hosts)
        return token.access_token

    async def _may_go(self, entry: Entry, record: Record, consumer: ObjectKey, hosts: frozenset[str]) -> None:
        """Let a token go to the provider that issued it, and else only where what it was obtained with may go, too.

        Consent in ``consumers`` is given by whoever may write identities, and that is not leave to send tokens away.
        """
        bound = frozenset(record.binding.hosts) if record.binding is not None else frozenset()
        if hosts <= bound or not self._ports.credentials.restricts_hosts:
            return
        provider = self._roster.provider_of(entry)
        if provider is None or record.spec_hash != entry.spec_hash:
            raise _waits(consumer, entry.key)  # it was not obtained with what the resource names now
        try:
            used = await self._ask_owners(entry, provider, hosts)
        except CredentialError as error:
            raise _kept(consumer, entry.key, hosts - bound, error.message) from None
        if not used:
            raise _kept(consumer, entry.key, hosts - bound, "It uses none whose owner could allow more.")

    async def _ask_owners(self, entry: Entry, provider: Provider, hosts: frozenset[str]) -> bool:
        """Raise CredentialError unless every credential of an identity may go to ``hosts``; tell whether it has any."""
        source, own, of_provider = self._ports.credentials, entry.resource, provider.resource
        keys = [(own.key.namespace, *place) for place in entry.named_keys]
        accounts = [(own.key.namespace, account) for account in service_accounts(own.spec)]
        if own.spec.client is None or of_provider.spec.tls.client_certificate_from is not None:
            keys += [(of_provider.key.namespace, *place) for place in provider.named_keys]
            accounts += [(of_provider.key.namespace, account) for account in service_accounts(of_provider.spec)]
        for namespace, name, key in keys:
            await source.secret(namespace, name, key, hosts)
        for namespace, account in accounts:
            # To ask for one is the way to be told whether it may be sent there; this one is thrown away.
            await source.service_account_token(namespace, account.name, account.audience, account.expiration, hosts)
        return bool(keys or accounts)

    def issued(self, key: ObjectKey) -> None:
        """Wake those that waited for this identity's token, or that failed with the one before."""
        for listener in self.listeners:
            listener(key)
        for consumer in self._asked.pop(key, set()):
            entry = self._roster.entries.get(consumer)
            if entry is not None and entry.failure is not None:
                entry.failure = None
                self._wake(consumer)


def _waits(consumer: ObjectKey, key: ObjectKey) -> ExchangeError:
    return ExchangeError(
        f"ServiceIdentity {consumer} waits for the token of ServiceIdentity {key}, which has none just now",
        code=WAITING,
        retry=RetryClass.SUSPICIOUS,
    )


def _kept(consumer: ObjectKey, key: ObjectKey, hosts: frozenset[str], why: str) -> CredentialError:
    return CredentialError(
        f"ServiceIdentity {consumer} would send the token of ServiceIdentity {key} to {', '.join(sorted(hosts))}, which"
        f" did not issue it. A token goes only where the credentials may go that it was obtained with. {why}",
        reason=Reason.HOST_NOT_ALLOWED,
    )
