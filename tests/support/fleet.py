"""Engines over one store, one place for tokens and one set of statuses, as the replicas of a cluster have."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyferry.engine import Engine, EngineSettings, Ports
from keyferry.errors import CredentialError, PublishError
from keyferry.io.addresses import AddressPolicy, HostRule
from keyferry.publication import Published
from keyferry.render import Delivery
from keyferry.spec.resources import load_object
from tests.support.memory_store import MemoryEscrow, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from keyferry.engine import Event, IdentityStatus
    from keyferry.io.clock import Clock
    from keyferry.model import ObjectKey
    from keyferry.plan import Failure
    from keyferry.publication import Publication
    from keyferry.record import Record
    from keyferry.secret import SecretValue
    from keyferry.spec.resources import IdentityResource, ProviderResource

API = "keyferry.dev/v1alpha1"


class SharedPublisher:
    """Implements `keyferry.engine.ports.Publisher`: what was written last, by uid."""

    delivery = Delivery.SECRET

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.writes = 0
        self.away = False
        """Whether every write fails."""
        self._published: dict[str, tuple[ObjectKey, Published]] = {}

    def endpoint(self, _key: ObjectKey) -> None:
        return None

    def place(self, _key: ObjectKey) -> str:
        return ""

    async def publish(self, publication: Publication, _record: Record) -> Published:
        if self.away:
            raise PublishError("the API server is away")
        self.writes += 1
        published = Published(
            uid=publication.uid,
            revision=publication.revision,
            generation=publication.generation,
            issued_at=publication.issued_at,
            expires_at=publication.expires_at,
            spec_hash=publication.spec_hash,
            files_hash=publication.files_hash,
            names=tuple(publication.files),
            intact=True,
        )
        self._published[publication.uid] = publication.key, published
        self.files[publication.uid] = dict(publication.files)
        return published

    async def observe(self, key: ObjectKey) -> Published | None:
        return next((seen for place, seen in reversed(self._published.values()) if place == key), None)

    async def observe_many(self, keys: Iterable[ObjectKey]) -> Mapping[ObjectKey, Published | None]:
        return {key: await self.observe(key) for key in keys}

    async def withdraw(self, _key: ObjectKey, uid: str) -> None:
        self._published.pop(uid, None)
        self.files.pop(uid, None)


@dataclass
class Shared:
    """What all replicas have in common."""

    restricts_hosts = False

    store: MemoryStore = field(default_factory=MemoryStore)
    publisher: SharedPublisher = field(default_factory=SharedPublisher)
    secrets: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """By name and key."""
    failures: dict[ObjectKey, Failure] = field(default_factory=dict)

    async def secret(self, _namespace: str, name: str, key: str, _hosts: frozenset[str]) -> bytes:
        try:
            return self.secrets[name, key]
        except KeyError:
            raise CredentialError(f"Secret {name} has no key {key}") from None

    async def config(self, _namespace: str, name: str, key: str) -> bytes:
        raise CredentialError(f"ConfigMap {name} has no key {key}")

    async def service_account_token(
        self, _namespace: str, name: str, _audience: str, _expiration: float, _hosts: frozenset[str]
    ) -> SecretValue:
        raise CredentialError(f"ServiceAccount {name} is not there")


class Notes:
    """Implements `keyferry.engine.ports.Reporter`; failures are kept where every replica finds them."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.statuses: list[IdentityStatus] = []
        self.events: list[Event] = []

    def report(self, status: IdentityStatus) -> None:
        self.statuses.append(status)

    def forget(self, key: ObjectKey) -> None:
        """Keep what was said: that is what is looked at."""

    def event(self, event: Event) -> None:
        self.events.append(event)

    async def remember(self, key: ObjectKey, failure: Failure | None) -> None:
        if failure is None:
            self._shared.failures.pop(key, None)
        else:
            self._shared.failures[key] = failure

    async def failures(self) -> Mapping[ObjectKey, Failure]:
        return dict(self._shared.failures)

    def words(self, name: str) -> list[str]:
        return [event.event for event in self.events if event.key is not None and event.key.name == name]


class Replica:
    """One engine among several."""

    def __init__(self, shared: Shared, clock: Clock, name: str, **settings: Any) -> None:
        self.notes = Notes(shared)
        policy = AddressPolicy(allowed=(HostRule.parse("127.0.0.1"),))
        ports = Ports(
            store=shared.store,
            escrow=MemoryEscrow(),
            credentials=shared,
            publisher=shared.publisher,
            reporter=self.notes,
            clock=clock,
            rng=random.Random(7),  # noqa: S311 - jitter
            addresses=lambda _resource: policy,
            admits=lambda _namespace, _resource: "",
        )
        self.engine = Engine(ports, EngineSettings(holder=name, **settings))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the engine until the end of the block, then let it finish what is under way."""
        task = asyncio.create_task(self.engine.run())
        try:
            yield
        finally:
            self.engine.stop()
            await task
            await self.engine.close()


def provider(name: str, issuer: str, *, uid: str = "", **oauth: Any) -> ProviderResource:
    """Return a TokenProvider whose client is `bot`, with its secret in the Secret `bot`."""
    client = {"id": "bot", "secretsFrom": [{"secretKeyRef": {"name": "bot", "key": "secret"}}]}
    spec = {"type": "OAuth", "oauth": {"issuer": issuer, "client": client, **oauth}}
    return load_object(_object("TokenProvider", name, uid, spec)).providers[0]


def identity(name: str, of: str, *, uid: str, **spec: Any) -> IdentityResource:
    """Return a ServiceIdentity of the provider `of`."""
    defaults = {"providerRef": {"name": of}, "grant": {"type": "ClientCredentials"}}
    return load_object(_object("ServiceIdentity", name, uid, defaults | spec)).identities[0]


def _object(kind: str, name: str, uid: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": kind,
        "metadata": {"name": name, "namespace": "default", "uid": uid or f"uid-of-{name}"},
        "spec": spec,
    }
