"""The mutating webhook, served beside the broker API, and the API server's trust in it.

Every replica answers, from what it has seen of the cluster. The chart ships the webhook configuration; what is written
into it here is ``caBundle`` alone, which nobody else can know.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self, final

from keyferry.model import ObjectKey
from keyferry.spec.durations import format_duration
from keyferry_operator.api.answers import answer as answered
from keyferry_operator.api.answers import bad_request, read_json, unavailable
from keyferry_operator.client import MUTATING_WEBHOOKS
from keyferry_operator.errors import ApiError
from keyferry_operator.injection import BadReview, Injection, InjectionSettings, answer, inject
from keyferry_operator.leases import cancelled
from keyferry_operator.names import MANAGER
from keyferry_operator.overlooked import Overlooked

if TYPE_CHECKING:
    from types import TracebackType

    from aiohttp import web

    from keyferry.spec.identity import ServiceIdentitySpec
    from keyferry_operator.api.broker import Broker
    from keyferry_operator.api.routes import Asked
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient, Object
    from keyferry_operator.injection import Pod
    from keyferry_operator.injection.settings import Version
    from keyferry_operator.installation import Installation

log = logging.getLogger(__name__)

PATH: Final = "/inject"
WEBHOOK: Final = "inject.keyferry.dev"
"""The name of the webhook in its configuration."""
LONGEST_REVIEW: Final = 8 << 20
"""Bytes of a request: a pod is at most some megabytes long, for etcd takes no more."""
LOOK: Final = 60.0
"""Seconds between looks at the configuration, and at the API server's release."""
SOON: Final = 2.0
"""Seconds until the next look where one failed."""
OUTCOMES: Final = ("injected", "unchanged", "refused")


@final
class Webhook:
    """Answers for pods. ``attach`` it to the broker before that listens, and use it in ``async with``."""

    def __init__(
        self,
        name: str,
        client: KubeClient,
        catalog: Catalog,
        installation: Installation,
        *,
        namespace: str,
        broker_url: str,
        counts_pods: bool = False,
        look: float = LOOK,
    ) -> None:
        """``name`` is the MutatingWebhookConfiguration's, ``namespace`` the operator's own.

        Raises ValueError where the installation does not say what sidecars are to be.
        """
        if installation.sidecar is None:
            raise ValueError("the installation's settings do not say which image sidecars have (sidecar.image)")
        self._name = name
        self._client = client
        self._catalog = catalog
        self._installation = installation
        self._sidecar = installation.sidecar
        self._namespace = namespace
        self._broker_url = broker_url
        self._look = look
        self._kubernetes: Version | None = None
        self._bundle = ""
        self._wake = asyncio.Event()
        self.overlooked = Overlooked(client) if counts_pods else None
        """Counts pods that came in without a sidecar."""
        self.outcomes: Counter[str] = Counter()
        """How many pods were asked about, by outcome."""

    def attach(self, broker: Broker) -> None:
        """Be asked where the broker API is served, and know whom to trust there."""
        broker.server.routes.add("POST", PATH, self.handle)
        broker.certificates.listeners.append(self.trust)

    def trust(self, bundle: str) -> None:
        """Have the API server trust these authorities (PEM); none, where it knows them anyway."""
        self._bundle = bundle
        self._wake.set()

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        tasks = [asyncio.create_task(self._run(), name="webhook")]
        if self.overlooked is not None:
            tasks.append(asyncio.create_task(self.overlooked.run(), name="overlooked"))
        self._stack.push_async_callback(cancelled, *tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # What is asked

    async def handle(self, asked: Asked) -> web.StreamResponse:
        """Answer an AdmissionReview. Raises Denied where it is none."""
        review = await read_json(asked.request, LONGEST_REVIEW)
        if self._kubernetes is None:
            raise unavailable("the operator does not know yet what this cluster can do; ask again", SOON)
        version = self._kubernetes
        try:
            found = answer(review, lambda pod, namespace: self._decide(pod, namespace, version))
        except BadReview as error:
            raise bad_request(str(error)) from None
        self.outcomes[found.outcome] += 1
        return answered(found.review)

    def series(self) -> list[str]:
        """Return the metrics in the Prometheus text format, line by line."""
        return [
            "# HELP keyferry_injections_total Pods that the webhook was asked about, by outcome.",
            "# TYPE keyferry_injections_total counter",
            *(f'keyferry_injections_total{{outcome="{each}"}} {self.outcomes[each]}' for each in OUTCOMES),
            *(self.overlooked.series() if self.overlooked is not None else ()),
        ]

    def _decide(self, pod: Pod, namespace: str, version: Version) -> Injection:
        if namespace == self._namespace:
            return Injection()

        def known(name: str) -> ServiceIdentitySpec | None:
            resource = self._catalog.identities.get(ObjectKey(namespace, name))
            return resource.spec if resource is not None else None

        return inject(pod, namespace, known, self._settings(namespace, version))

    def _settings(self, namespace: str, version: Version) -> InjectionSettings:
        sidecar = self._sidecar
        minimum = sidecar.minimum_remaining
        hosts = self._installation.providers.allowed_hosts
        return InjectionSettings(
            image=sidecar.image,
            broker_url=self._broker_url,
            kubernetes=version,
            authorities=bool(self._bundle),
            pull_policy=sidecar.pull_policy,
            resources=sidecar.resources,
            user=sidecar.run_as_user,
            host_network=sidecar.host_network,
            minimum_remaining=format_duration(minimum) if minimum is not None else None,
            log_level=sidecar.log_level,
            allowed_hosts=tuple(
                str(each.rule()) for each in hosts if not each.namespaces or namespace in each.namespaces
            ),
        )

    # The API server's side

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = self._look
            try:
                self._kubernetes = await self._client.release()
                await self._introduce()
            except ApiError as error:
                log.warning("the webhook %s cannot be looked after just now: %s", self._name, error)
                pause = SOON if self._kubernetes is None else self._look
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _introduce(self) -> None:
        """Write the authorities into the configuration, unless they are there."""
        if not self._bundle:
            return
        encoded = base64.b64encode(self._bundle.encode()).decode()
        found = await self._client.get(MUTATING_WEBHOOKS, None, self._name)
        if found is None:
            log.warning("MutatingWebhookConfiguration %s is not there, so no pod is injected", self._name)
            return
        written = {each["name"]: each["clientConfig"].get("caBundle") for each in found.get("webhooks") or ()}
        if written.get(WEBHOOK, encoded) == encoded:
            return
        await self._client.apply(MUTATING_WEBHOOKS, None, _body(self._name, encoded), manager=MANAGER)
        log.info("the API server knows the webhook %s by its present authorities", self._name)


def _body(name: str, bundle: str) -> Object:
    webhook: dict[str, Any] = {"name": WEBHOOK, "clientConfig": {"caBundle": bundle}}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [webhook],
    }
