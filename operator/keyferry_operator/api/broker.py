"""The broker API of one replica, put together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from keyferry_operator.api import openapi
from keyferry_operator.api.callers import Callers
from keyferry_operator.api.certificates import Certificates, DirectorySource, SecretSource
from keyferry_operator.api.gate import Gate
from keyferry_operator.api.holders import Holders
from keyferry_operator.api.jwks import ClusterKeys
from keyferry_operator.api.labarchives import LabArchivesEndpoint
from keyferry_operator.api.limits import DEFAULT_LIMITS, Buckets, Held, Limits
from keyferry_operator.api.news import News
from keyferry_operator.api.openapi import IDENTITY
from keyferry_operator.api.page import ClusterViewers, PageEndpoint
from keyferry_operator.api.pods import LivePods
from keyferry_operator.api.server import ApiServer
from keyferry_operator.api.shelf import Shelf
from keyferry_operator.api.tokens import TokenEndpoint
from keyferry_operator.api.trust import TrustPublisher
from keyferry_operator.api.wants import Wants
from keyferry_operator.leases import cancelled
from keyferry_operator.names import SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How the broker API is served."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 lets the system choose."""
    certificate: Path | None = None
    """A directory with ``tls.crt``, ``tls.key`` and, where clients need it, ``ca.crt``; None: the operator's own."""
    service: str = SERVICE
    """Name of the Service in the operator's namespace, for the certificate that the operator makes."""
    hosts: tuple[str, ...] = ()
    """Further names and addresses for that certificate."""
    check_address: bool = False
    """Refuse a token that comes from another address than its pod's; not where the network translates addresses."""
    limits: Limits = DEFAULT_LIMITS
    page_account: str = ""
    """The approval page's service account in the operator's namespace; empty: there is no page."""

    def url(self, namespace: str) -> str:
        """Return the URL by which pods reach it."""
        return f"https://{self.service}.{namespace}.svc:{self.port}"

    def names(self, namespace: str) -> tuple[str, ...]:
        """Return the names that clients may know the server by."""
        base = f"{self.service}.{namespace}"
        return tuple(dict.fromkeys((f"{base}.svc", f"{base}.svc.cluster.local", base, self.service, *self.hosts)))


class Broker:
    """Serves while in ``async with``. ``server.routes`` takes more, before it is entered.

    Implements ``keyferry_operator.following.IdentityFollower``.
    """

    def __init__(
        self, settings: BrokerSettings, client: KubeClient, catalog: Catalog, engine: Engine, *, namespace: str
    ) -> None:
        """``namespace`` is the operator's own."""
        source = (
            SecretSource(client, namespace, settings.names(namespace))
            if settings.certificate is None
            else DirectorySource(settings.certificate)
        )
        self.certificates = Certificates(source)
        """Whose ``listeners`` are told of the authorities to trust."""
        self.server = ApiServer(self.certificates, settings.host, settings.port)
        self._catalog = catalog
        self._trust = TrustPublisher(client, catalog, namespace)
        self.certificates.listeners.append(self._trust.trust)
        self._news = News()
        engine.issued_listeners.append(self._news.tell)
        self._wants = Wants(client, engine, catalog)
        self.held = Held(settings.limits)
        self._serve(settings, client, engine, namespace)

    def _serve(self, settings: BrokerSettings, client: KubeClient, engine: Engine, namespace: str) -> None:
        limits, add = settings.limits, self.server.routes.add
        pods = LivePods(client, check_address=settings.check_address)
        callers = Callers(client, ClusterKeys(client), pods)
        gate = Gate(callers, pods, self._catalog)
        buckets = Buckets(limits.burst, limits.rate)
        shelf = Shelf(engine, self._catalog, self._news)
        self._tokens = TokenEndpoint(gate, buckets, self.held, self._news, shelf, self._catalog, self._wants)
        # A bucket of their own: a pod with many short tokens must not wait for a token because it said what it holds.
        reports = Buckets(limits.burst, limits.rate)
        self._holders = Holders(gate, reports, client, engine, self._catalog)
        signatures = Buckets(limits.signatures_burst, limits.signatures_rate)
        labarchives = LabArchivesEndpoint(gate, buckets, signatures, engine, self._wants)
        add("GET", f"{IDENTITY}/token", self._tokens.get)
        add("POST", f"{IDENTITY}/held", self._holders.report)
        add("POST", f"{IDENTITY}/labarchives/signature", labarchives.signature)
        add("POST", f"{IDENTITY}/labarchives/user", labarchives.user)
        add("POST", f"{IDENTITY}/labarchives/clock", labarchives.clock)
        add("POST", f"{IDENTITY}/labarchives/refused", labarchives.refused)
        add("GET", openapi.DOCUMENT, openapi.serve)
        engine.approvals.viewers = ClusterViewers(client, self._catalog)
        page = PageEndpoint(
            callers,
            Buckets(limits.page_burst, limits.page_rate),
            engine.approvals,
            namespace=namespace,
            account=settings.page_account,
        )
        add("POST", openapi.PAGE, page.post)

    async def __aenter__(self) -> Self:
        """Begin to serve. Raises KeyferryError where the address cannot be had."""
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self.server)
        tasks = [
            asyncio.create_task(self._trust.run(), name="trust"),
            asyncio.create_task(self._holders.run(), name="holders"),
        ]
        self._stack.push_async_callback(cancelled, *tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def drain(self) -> None:
        """Send clients to the other replicas; to be called when this one is about to end."""
        self.server.drain()
        self._tokens.drain()

    def changed(self, key: ObjectKey) -> None:
        """Take note that an identity, its status or its Secret is another."""
        self._wants.hear(key, self._catalog.status_of(key))
        self._news.tell(key)

    def gone(self, key: ObjectKey) -> None:
        """Take note that an identity is gone."""
        self._wants.forget(key)
        self._holders.forget(key)
        self._news.tell(key)

    def series(self) -> Iterator[str]:
        """Yield lines of the Prometheus text format."""
        yield "# HELP keyferry_held_requests Requests of pods that are held until there is another token."
        yield "# TYPE keyferry_held_requests gauge"
        yield f"keyferry_held_requests {self.held.count}"
        yield from self._holders.series()
