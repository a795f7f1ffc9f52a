"""What the engine needs from outside: each a small Protocol, implemented once for a machine and once for a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from keyferry.freshness import KUBELET_SYNC
from keyferry.render import Delivery
from keyferry.spec.resources import CLUSTER_NAMESPACE
from keyferry.spec.target import TargetType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from random import Random

    from aiohttp.abc import AbstractResolver

    from keyferry.engine.status import Event, IdentityStatus
    from keyferry.escrow import Escrow
    from keyferry.io.addresses import AddressPolicy
    from keyferry.io.clock import Clock
    from keyferry.model import ObjectKey
    from keyferry.plan import Failure
    from keyferry.publication import Publication, Published
    from keyferry.record import Record
    from keyferry.render import Endpoint
    from keyferry.secret import SecretValue
    from keyferry.spec.resources import IdentityResource, ProviderResource
    from keyferry.spec.target import Target
    from keyferry.store import Store


class CredentialSource(Protocol):
    """Reads what resources refer to. Every method raises CredentialError where it is not there or may not be used."""

    restricts_hosts: bool
    """Whether the owners of credentials say to which hosts they may be sent."""

    async def secret(self, namespace: str, name: str, key: str, hosts: frozenset[str]) -> bytes:
        """Return one key of a Secret, as it is now.

        ``hosts`` (each ``host[:port]``) are where it will be sent; none where it is only compared.
        """
        ...

    async def config(self, namespace: str, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap, as it is now."""
        ...

    async def service_account_token(
        self, namespace: str, name: str, audience: str, expiration: float, hosts: frozenset[str]
    ) -> SecretValue:
        """Return a token of a service account for ``audience``, good for about ``expiration`` seconds."""
        ...


class Publisher(Protocol):
    """Puts token files where workloads look for them. Raises PublishError."""

    delivery: Delivery
    """Whether it writes a Secret or a directory: some formats need the one or the other."""

    def place(self, key: ObjectKey) -> str:
        """Return the absolute directory in which workloads find the files; empty where that is not known."""
        ...

    def endpoint(self, key: ObjectKey) -> Endpoint | None:
        """Return the loopback endpoints that workloads find beside the files, where they are served."""
        ...

    async def publish(self, publication: Publication, record: Record) -> Published:
        """Make what lies there be as it says; write nothing where it is. ``record`` is what it was made from."""
        ...

    async def observe(self, key: ObjectKey) -> Published | None:
        """Return what lies there."""
        ...

    async def observe_many(self, keys: Iterable[ObjectKey]) -> Mapping[ObjectKey, Published | None]:
        """Return what lies there of each of ``keys``, in one go; those that cannot be read are left out."""
        ...

    async def withdraw(self, key: ObjectKey, uid: str) -> None:
        """Remove what is ours, and of the identity of this uid: another one may have its name by now."""
        ...


class Reporter(Protocol):
    """Tells people and keeps failures over a restart. Must not raise."""

    def report(self, status: IdentityStatus) -> None:
        """Take note of an identity's status."""
        ...

    def forget(self, key: ObjectKey) -> None:
        """Take note that an identity is gone."""
        ...

    def event(self, event: Event) -> None:
        """Say that something happened."""
        ...

    async def remember(self, key: ObjectKey, failure: Failure | None) -> None:
        """Keep the last failure, or clear it."""
        ...

    async def failures(self) -> Mapping[ObjectKey, Failure]:
        """Return the failures that were kept."""
        ...


def _nothing(_resource: object) -> None:
    """Return nothing, of whatever."""


def _no_objection(_resource: object) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Ports:
    """All collaborators of an engine."""

    store: Store
    escrow: Escrow
    credentials: CredentialSource
    publisher: Publisher
    reporter: Reporter
    clock: Clock
    rng: Random
    addresses: Callable[[ProviderResource], AddressPolicy]
    """Which hosts and addresses are open to a provider resource."""
    admits: Callable[[str, ProviderResource], str]
    """Why identities of a namespace may not use a provider, for people; empty where they may."""
    permits: Callable[[IdentityResource], str] = _no_objection
    """What of an identity the installation does not permit, for people; empty where all is well."""
    proxy: Callable[[ProviderResource], SecretValue | None] = _nothing
    """URL of the HTTP proxy by which a provider is reached, where there is one."""
    resolver: Callable[[], AbstractResolver] | None = None
    """Makes what asks the DNS; None: the system's."""
    cluster_namespace: str = CLUSTER_NAMESPACE
    """Where the references of ClusterTokenProviders resolve."""
    without_cluster_providers: str = ""
    """Why there are no ClusterTokenProviders at all, for people; empty where there may be some."""
    keeps_credentials: bool = False
    """What a revocation needs is kept in the private state: the Secrets may be gone by then, with their namespace."""

    def reading_delay(self, target: Target) -> float:
        """Return how long (seconds) after a write readers may still find what was there before."""
        mounted = self.publisher.delivery is Delivery.SECRET and target.type is TargetType.SECRET
        return KUBELET_SYNC if mounted else 0.0
