"""Tells sidecars by which authorities they know the broker API: a ConfigMap in every namespace that has consumers.

A pod mounts ConfigMaps of its own namespace only, and the kubelet renews them in a running pod: so a pod outlives the
authority that was there when it started.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, final

from keyferry_operator.client import CONFIG_MAPS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import CA_CONFIG_MAP, MANAGED_LABEL, MANAGER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

LOOK: Final = 2.0
"""Seconds between looks which namespaces have consumers."""
AGAIN: Final = 600.0
"""Seconds after which all is written again, in case somebody changed it; nothing changes where nobody did."""
KEY: Final = "ca.crt"


@final
class TrustPublisher:
    """Writes the ConfigMaps; ``run`` does the work."""

    def __init__(self, client: KubeClient, catalog: Catalog, namespace: str) -> None:
        """``namespace`` is the operator's own, where the approval page looks."""
        self._client = client
        self._catalog = catalog
        self._namespace = namespace
        self._bundle = ""
        self._written: dict[str, float] = {}
        """When (monotonic) each namespace's was written, or could not be."""
        self._wake = asyncio.Event()

    def trust(self, bundle: str) -> None:
        """Have these authorities trusted from now on; none, where clients know them anyway."""
        self._bundle = bundle
        self._written.clear()
        self._wake.set()

    async def run(self) -> None:
        """Keep the ConfigMaps until cancelled."""
        while True:
            if self._bundle:
                await self._write_all()
            try:
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = {self._namespace, *self._consuming()}
        self._written = {name: at for name, at in self._written.items() if name in wanted}
        for namespace in sorted(wanted):
            if loop.time() - self._written.get(namespace, -AGAIN) < AGAIN:
                continue
            bundle = self._bundle
            try:
                await self._client.apply(CONFIG_MAPS, namespace, _body(namespace, bundle), manager=MANAGER)
            except ApiError as error:
                log.warning("ConfigMap %s/%s cannot be written yet: %s", namespace, CA_CONFIG_MAP, error)
            if bundle == self._bundle:
                self._written[namespace] = loop.time()

    def _consuming(self) -> Iterable[str]:
        for key, resource in self._catalog.identities.items():
            if any(consumer.service_account_name for consumer in resource.spec.consumers):
                yield key.namespace


def _body(namespace: str, bundle: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": CA_CONFIG_MAP,
            "namespace": namespace,
            "labels": {MANAGED_LABEL: "true", "app.kubernetes.io/managed-by": MANAGER},
        },
        "data": {KEY: bundle},
    }
