"""The broker API of one replica, put together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from keyferry_operator.api.certificates import Certificates, DirectorySource, SecretSource
from keyferry_operator.api.server import ApiServer
from keyferry_operator.api.trust import TrustPublisher
from keyferry_operator.leases import cancelled
from keyferry_operator.names import SERVICE

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How the broker API is served."""

    host: str
    port: int
    """0 lets the system choose."""
    certificate: Path | None = None
    """A directory with ``tls.crt``, ``tls.key`` and, where clients need it, ``ca.crt``; None: the operator's own."""
    service: str = SERVICE
    """Name of the Service in the operator's namespace, for the certificate that the operator makes."""
    hosts: tuple[str, ...] = ()
    """Further names and addresses for that certificate."""

    def url(self, namespace: str) -> str:
        """Return the URL by which pods reach it."""
        return f"https://{self.service}.{namespace}.svc:{self.port}"

    def names(self, namespace: str) -> tuple[str, ...]:
        """Return the names that clients may know the server by."""
        base = f"{self.service}.{namespace}"
        return tuple(dict.fromkeys((f"{base}.svc", f"{base}.svc.cluster.local", base, self.service, *self.hosts)))


class Broker:
    """Serves while in ``async with``. ``server.routes`` takes more, before it is entered."""

    def __init__(self, settings: BrokerSettings, client: KubeClient, catalog: Catalog, *, namespace: str) -> None:
        """``namespace`` is the operator's own."""
        source = (
            SecretSource(client, namespace, settings.names(namespace))
            if settings.certificate is None
            else DirectorySource(settings.certificate)
        )
        self.certificates = Certificates(source)
        """Whose ``listeners`` are told of the authorities to trust."""
        self.server = ApiServer(self.certificates, settings.host, settings.port)
        self._trust = TrustPublisher(client, catalog, namespace)
        self.certificates.listeners.append(self._trust.trust)

    async def __aenter__(self) -> Self:
        """Begin to serve. Raises KeyferryError where the address cannot be had."""
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self.server)
        tasks = [asyncio.create_task(self._trust.run(), name="trust")]
        self._stack.push_async_callback(cancelled, *tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def drain(self) -> None:
        """Send clients to the other replicas; to be called when this one is about to end."""
        self.server.drain()
