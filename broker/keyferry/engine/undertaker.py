"""Revokes what identities that are gone have left: their buried private state is the order to do so."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from keyferry.engine.clients import client_candidates, hidden_id
from keyferry.engine.credentials import CredentialReader
from keyferry.engine.keepsakes import Remembered
from keyferry.engine.provider import Channel, Provider
from keyferry.engine.status import Event, Level
from keyferry.engine.tiled_departure import revoke_tiled
from keyferry.errors import KeyferryError, Reason, Refused, ResourceError, RetryClass
from keyferry.io.http import drive
from keyferry.model import ObjectKey
from keyferry.providers.revocation import TokenTypeHint, revoke
from keyferry.record import Versioned
from keyferry.scheduler.lane import backoff
from keyferry.spec.identity import DeletionPolicy, ProviderKind
from keyferry.spec.provider import Client, ClusterTokenProviderSpec, ProviderType, TokenProviderSpec
from keyferry.spec.resources import ProviderResource

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from keyferry.client_auth import ClientAuth
    from keyferry.engine.clients import IdentityTokens
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Drivers
    from keyferry.engine.roster import Roster
    from keyferry.providers.metadata import ProviderMetadata
    from keyferry.record import Record, Revocation
    from keyferry.secret import SecretValue

log = logging.getLogger(__name__)

GIVE_UP_AFTER: Final = 3600.0
"""Seconds for which a revocation is tried again (RFC 7009 2.2.1: a 503 means that the token still lives)."""

AT_ONCE: Final = 16
UNEXPECTED_WAIT: Final = 300.0


@dataclass(slots=True)
class _Order:
    held: Versioned
    attempts: int = 0
    next_attempt: float = 0.0
    busy: bool = False
    dropped: bool = False
    """Left to another process, as soon as it is not worked on."""
    forget: Callable[[], None] | None = None
    """What to do when it is done with, where no buried record is the order: its identity lives."""

    @property
    def whose(self) -> str:
        """Say what is revoked, for people."""
        key = self.held.record.key
        if self.forget is not None:
            return f"the credentials that a login brought for ServiceIdentity {key}, and that nobody wants,"
        return f"the credentials of ServiceIdentity {key}, which is gone,"


class Undertaker:
    """Works through the orders to revoke, each until it is done or an hour has passed."""

    def __init__(self, ports: Ports, roster: Roster, drivers: Drivers, tokens: IdentityTokens) -> None:
        self._ports = ports
        self._roster = roster
        self._drivers = drivers
        self._tokens = tokens
        self._orders: dict[str, _Order] = {}
        self._providers: dict[tuple[str, tuple[tuple[str, SecretValue], ...]], Provider] = {}

    async def load(self, alive: AbstractSet[str], shards: frozenset[int] | None = None) -> None:
        """Take up the orders that another process left, in ``shards`` (in all that are held, where none are named).

        ``alive`` are the uids of identities that are declared and have their record: an order for one of them was cut
        off before the record was put away, and the credentials that it would revoke are in use.
        """
        wanted = shards if shards is not None else self._roster.shards.held
        async for held in self._ports.store.buried():
            if self._roster.shards.of_order(held.record) not in wanted:
                continue
            if held.record.uid in alive:
                await self._ports.store.settle(held)
                continue
            self._orders.setdefault(held.record.uid, _Order(held))

    @property
    def open_orders(self) -> int:
        """How many are not done."""
        return len(self._orders)

    def next_time(self) -> float:
        """Return when to work next (Unix seconds), infinity where there is nothing to do."""
        times = (order.next_attempt for order in self._orders.values() if not order.busy and self._is_ours(order))
        return min(times, default=float("inf"))

    def shift(self, seconds: float) -> None:
        """Move the next attempts along with a jump of the wall clock."""
        for order in self._orders.values():
            order.next_attempt += seconds

    async def work(self) -> None:
        """Carry out what is due, all at once: a provider that is away holds up no other's. Raises nothing."""
        now = self._ports.clock.now()
        due = [uid for uid, order in self._orders.items() if order.next_attempt <= now and self._is_ours(order)]
        for start in range(0, len(due), AT_ONCE):
            await asyncio.gather(*(self._work(uid) for uid in due[start : start + AT_ONCE]))
        if not self._orders:
            self._providers.clear()

    def drop(self, shards: frozenset[int]) -> None:
        """Leave the orders of these shards to another process."""
        for uid, order in list(self._orders.items()):
            if self._roster.shards.of_order(order.held.record) in shards:
                order.dropped = True
                if not order.busy:
                    del self._orders[uid]

    def is_working(self, shards: frozenset[int]) -> bool:
        """Tell whether an order of these shards is being carried out."""
        busy = (order for order in self._orders.values() if order.busy)
        return any(self._roster.shards.of_order(order.held.record) in shards for order in busy)

    def _is_ours(self, order: _Order) -> bool:
        return self._roster.shards.of_order(order.held.record) in self._roster.shards.held

    async def _work(self, uid: str) -> None:
        order = self._orders.get(uid)
        if order is None or not self._is_ours(order):
            return  # it was left to another process meanwhile
        order.busy = True
        try:
            if await self._carry_out(order):
                if order.forget is not None:
                    order.forget()
                else:
                    await self._ports.store.settle(order.held)
                self._orders.pop(uid, None)
        except KeyferryError as error:
            log.warning("an order to revoke could not be put away: %s", error)
            order.next_attempt = self._ports.clock.now() + backoff(1, self._ports.rng.random())
        except Exception as error:  # noqa: BLE001 - one order that we do not understand must not stop the others
            log.error("unexpected %s while revoking for %s", type(error).__name__, order.held.record.key)  # noqa: TRY400
            order.next_attempt = self._ports.clock.now() + UNEXPECTED_WAIT
        finally:
            order.busy = False
            if order.dropped:
                self._orders.pop(uid, None)

    async def _carry_out(self, order: _Order) -> bool:
        """Revoke; return whether the order is done with, one way or the other."""
        record = order.held.record
        now = self._ports.clock.now()
        order.attempts += 1
        try:
            done = await self._revoke(record)
        except KeyferryError as error:
            final = isinstance(error, Refused | ResourceError) and error.retry is not RetryClass.TRANSIENT
            if not final and now - record.buried_at <= GIVE_UP_AFTER:
                order.next_attempt = now + backoff(order.attempts, self._ports.rng.random())
                return False
            self._tell(
                record,
                Level.ERROR,
                "revocation_failed",
                f"{order.whose} could not be revoked and stay valid until they expire: {error.message}. Revoke them at"
                " the provider if that matters.",
            )
            return True
        if done:
            self._tell(
                record,
                Level.INFO,
                "revoked",
                f"{order.whose} are revoked",
            )
        return True

    async def _revoke(self, record: Record) -> bool:
        """Revoke what the record holds; tell whether there was anything."""
        order = record.revocation
        if order is None or order.policy != DeletionPolicy.REVOKE.value:
            return False
        provider = self._provider(record, order)
        if provider.resource.spec.type is ProviderType.LABARCHIVES:
            raise ResourceError(
                "LabArchives has no way to revoke a login but its person's own account settings",
                reason=Reason.GRANT_NOT_SUPPORTED,
            )
        channel = Channel(provider, await provider.driver(), self._ports, lambda _seconds: None)
        if provider.resource.spec.type is ProviderType.TILED:
            return await revoke_tiled(record, await provider.tiled(channel), channel.send, self._ports.clock)
        return await self._revoke_oauth(record, order, provider, channel)

    def _provider(self, record: Record, order: Revocation) -> Provider:
        """Rebuild the provider from what the record keeps, since its resource may be gone as well."""
        kind = ProviderKind(order.provider_kind)
        model = TokenProviderSpec if kind is ProviderKind.TOKEN_PROVIDER else ClusterTokenProviderSpec
        try:
            spec = model.model_validate(order.provider)
        except ValidationError:
            raise ResourceError("what was kept of its provider is not understood by this version") from None
        # Many identities of one provider may go at once: they share its rate, and what was discovered about it.
        written = json.dumps([order.provider_kind, order.provider_namespace, order.provider], sort_keys=True)
        identity = (written, record.keepsakes)
        if identity not in self._providers:
            key = ObjectKey(order.provider_namespace, f"{record.key.name} (gone)")
            resource = ProviderResource(key=key, kind=kind, spec=spec)
            ports = replace(self._ports, credentials=Remembered(self._ports.credentials, record.keepsakes))
            self._providers[identity] = Provider(resource, ports, self._drivers)
        return self._providers[identity]

    async def _revoke_oauth(self, record: Record, order: Revocation, provider: Provider, channel: Channel) -> bool:
        """Refresh token first, then access token (RFC 7009 2.1: the first often ends the second)."""
        tokens: list[tuple[SecretValue, TokenTypeHint]] = []
        if record.refresh_token is not None:
            tokens.append((record.refresh_token, "refresh_token"))
        published = record.token
        # After a restart the value of a published token may not be known any more.
        if published is not None and published.access_token and published.expires_at > self._ports.clock.now():
            tokens.append((published.access_token, "access_token"))
        unused = [thrown.tokens for thrown in record.thrown]
        if record.approval is not None and record.approval.candidate is not None:
            unused.append(record.approval.candidate.tokens)
        for issued in unused:  # what logins brought that never became the session
            if issued.refresh_token is not None:
                tokens.append((issued.refresh_token, "refresh_token"))
            tokens.append((issued.access_token, "access_token"))
        if not tokens or (record.spec_hash and await self._in_use(record)):
            return False
        metadata = await provider.oauth(channel)
        if not metadata.revocation_endpoint:
            raise ResourceError("the provider has no revocation endpoint", reason=Reason.GRANT_NOT_SUPPORTED)
        if record.binding is not None and metadata.hosts != frozenset(record.binding.hosts):
            raise ResourceError(
                "the provider's endpoints lie on other hosts than when the tokens were issued, so nothing was sent",
                reason=Reason.PROVIDER_CHANGED,
            )
        clients, hidden = await self._clients(record, order, provider, metadata)
        for token, hint in tokens:
            await self._revoke_one(metadata.revocation_endpoint, clients, token, hint, channel, hidden)
        return True

    async def _revoke_one(
        self,
        endpoint: str,
        clients: list[ClientAuth],
        token: SecretValue,
        hint: TokenTypeHint,
        channel: Channel,
        hidden: tuple[SecretValue, ...],
    ) -> None:
        """Revoke one token, with the first of the client's secrets that the provider accepts."""
        for index, client in enumerate(clients):
            try:
                await drive(revoke(endpoint, client, token, hint, self._ports.clock.now(), hidden), channel.send)
            except Refused as error:
                if error.reason is not Reason.CLIENT_REJECTED or index == len(clients) - 1:
                    raise
            else:
                return

    async def _clients(
        self, record: Record, order: Revocation, provider: Provider, metadata: ProviderMetadata
    ) -> tuple[list[ClientAuth], tuple[SecretValue, ...]]:
        """Return the ways in which the client may authenticate, and what of its id must not be shown."""
        oauth = provider.resource.spec.oauth
        if order.client is not None:
            source = Remembered(self._ports.credentials, record.keepsakes)
            reader = CredentialReader(source, record.key.namespace, metadata.hosts)
            client: Client | None = Client.model_validate(order.client)
        else:
            reader, client = provider.reader(metadata.hosts), oauth.client if oauth is not None else None
        await provider.may_show_certificate(metadata.hosts)
        found = await client_candidates(client, reader, metadata.issuer, self._tokens, record.key)
        return found, hidden_id(client, found)

    async def _in_use(self, gone: Record) -> bool:
        """Tell whether a declared identity publishes the access token of one that is gone.

        Equal exchanges are made once.
        """
        for key, entry in list(self._roster.entries.items()):
            if entry.spec_hash == gone.spec_hash and key.namespace == gone.key.namespace:
                held = await self._ports.store.read(key, entry.uid)
                token = held.record.token if held is not None else None
                if token is not None and gone.token is not None and token.access_token == gone.token.access_token:
                    return True
        return False

    def _tell(self, record: Record, level: Level, event: str, message: str) -> None:
        reason = Reason.ISSUED if level is Level.INFO else Reason.RETRYING
        self._ports.reporter.event(Event(level, event, reason, message, record.key))

    def discard(self, record: Record, forget: Callable[[], None]) -> None:
        """Revoke what the record holds, of an identity that lives; ``forget`` is called when that is done with."""
        self._orders.setdefault(record.uid, _Order(Versioned(record, ""), forget=forget))

    def add(self, held: Versioned) -> None:
        """Take up an order that was just buried, where its shard is held; else whoever holds it finds it."""
        if self._roster.shards.of_order(held.record) in self._roster.shards.held:
            self._orders[held.record.uid] = _Order(held)
