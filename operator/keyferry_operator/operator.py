"""``keyferry operator``: the engine over the cluster. The one place where its parts are put together."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from keyferry.doubt import SETTLE_MARGIN
from keyferry.engine import Engine, EngineSettings, Ports
from keyferry.errors import KeyferryError
from keyferry.io.clock import SystemClock
from keyferry.run.memory import building, settle
from keyferry_operator.addresses import Addresses
from keyferry_operator.admission import Admission
from keyferry_operator.api.broker import Broker
from keyferry_operator.catalog import Catalog
from keyferry_operator.client import NAMESPACES, SECRETS, KubeClient
from keyferry_operator.credentials import ClusterCredentials
from keyferry_operator.errors import ApiError
from keyferry_operator.following import Follower
from keyferry_operator.installation import Installation
from keyferry_operator.leases import DEFAULT_TIMING, Timing, cancelled, done_before
from keyferry_operator.names import KEYS_SECRET, MANAGER
from keyferry_operator.provider_status import ProviderReporter
from keyferry_operator.publish import SecretPublisher
from keyferry_operator.report import ClusterReporter
from keyferry_operator.rescue import rescue
from keyferry_operator.sharing import GAIN_PAUSE, Sharing
from keyferry_operator.state import SecretStore
from keyferry_operator.touch import PodToucher
from keyferry_operator.watch import DEFAULT_TIMES, WatchTimes
from keyferry_operator.webhook import Webhook
from keyferry_operator.work import LAST_WORDS, ShardWork

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import kopf
    from aiohttp.abc import AbstractResolver

    from keyferry.escrow import Escrow
    from keyferry.io.addresses import HostRule
    from keyferry.ledger import Checkpoint
    from keyferry.secret import SecretValue
    from keyferry_operator.api.broker import BrokerSettings
    from keyferry_operator.client import Object

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What an installation sets (chart values, flags)."""

    namespace: str
    """The operator's own: private state, and the references of cluster providers."""
    instance: str
    """This replica: its pod's name."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    allowed_hosts: tuple[HostRule, ...] = ()
    """Open to every provider, beside what ``installation`` opens."""
    installation: Installation = field(default_factory=Installation)
    """The settings file."""
    proxy: SecretValue | None = None
    """URL of the HTTP proxy by which providers are reached; proxies in the environment are ignored."""
    api_audiences: frozenset[str] = frozenset(
        {"https://kubernetes.default.svc", "https://kubernetes.default.svc.cluster.local"}
    )
    service_account_tokens: bool = False
    touch_pods: bool = False
    """Let identities have the pods that mount their Secret annotated; needs rights on pods."""
    suspend_all: bool = False
    leader_election: bool = False
    """Work only in shards whose Lease this replica holds; needs rights on Leases."""
    shards: int = 1
    """Into how many parts the work falls, by provider, that replicas share."""
    lease: Timing = DEFAULT_TIMING
    settle_margin: float = SETTLE_MARGIN
    """Seconds beyond a request's deadline for which the claim of another replica is left alone."""
    times: WatchTimes = DEFAULT_TIMES
    escrow: Path = Path("/var/lib/keyferry")
    """Root of the ``FileEscrow``."""
    broker: BrokerSettings | None = None
    """How the broker API is served; None: not at all."""
    count_pods: bool = False
    """Whether pods that came in past the webhook are counted, by listing all pods now and then."""
    page_url: str = ""
    """Where people find the approval page; empty where there is none."""
    webhook: str = ""
    """Name of the MutatingWebhookConfiguration that is answered for; empty: of none. It needs ``broker``, and the
    installation's ``sidecar``."""


class Operator:
    """Keeps the Secrets of a cluster's ServiceIdentities fresh. Use it in ``async with``, then ``run``."""

    def __init__(
        self,
        settings: OperatorSettings,
        login: Callable[[], kopf.ConnectionInfo],
        escrow: Escrow,
        *,
        token_file: Path | None = None,
        resolver: Callable[[], AbstractResolver] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Begin nothing yet; ``resolver`` makes what asks the DNS for providers' names, in place of the system's.

        ``checkpoint`` is called at every step of the ledger and of publishing, by name.
        """
        self.settings = settings
        self._login = login
        self._escrow = escrow
        self._token_file = token_file
        self._resolver = resolver
        self._checkpoint = checkpoint
        self.catalog = Catalog()
        self.broker: Broker | None = None
        """The broker API, where it is served; its ``server.routes`` takes more until ``run``."""
        self.webhook: Webhook | None = None
        self._stop_asked = asyncio.Event()
        self._listed = False

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self.client = await self._stack.enter_async_context(KubeClient(self._login(), token_file=self._token_file))
        try:
            await self._assemble()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engine.close()
        await self._stack.aclose()

    async def _assemble(self) -> None:
        settings = self.settings
        origin = await self._origin()
        key = await self._keys()
        self._store = SecretStore(self.client, settings.namespace, self.catalog, origin=origin, digest_key=key)
        self.reporter = ClusterReporter(self.client, self.catalog, instance=settings.instance)
        self._toucher = PodToucher(self.client, enabled=settings.touch_pods, tell=self.reporter.event)
        self._publisher = SecretPublisher(self.client, self.catalog, key=key, origin=origin, toucher=self._toucher)
        addresses = Addresses(settings.installation, allowed=settings.allowed_hosts, proxy=settings.proxy)
        admission = Admission(settings.installation.targets, settings.watch_namespaces)
        credentials = ClusterCredentials(
            self.client,
            api_audiences=settings.api_audiences,
            allow_service_account_tokens=settings.service_account_tokens,
        )
        ports = Ports(
            store=self._store,
            escrow=self._escrow,
            credentials=credentials,
            publisher=self._publisher,
            reporter=self.reporter,
            clock=SystemClock(),
            rng=random.SystemRandom(),
            addresses=addresses.policy,
            admits=admission.admits,
            permits=admission.permits,
            proxy=addresses.proxy,
            resolver=self._resolver,
            cluster_namespace=settings.namespace,
            without_cluster_providers=admission.without_cluster_providers,
            keeps_credentials=True,
        )
        self.engine = Engine(
            ports,
            EngineSettings(
                holder=settings.instance,
                suspend_all=settings.suspend_all,
                shards=settings.shards,
                settle_margin=settings.settle_margin,
                page_url=settings.page_url,
            ),
            checkpoint=self._checkpoint,
        )
        if settings.broker is not None:
            self.broker = Broker(settings.broker, self.client, self.catalog, self.engine, namespace=settings.namespace)
        self._follower = Follower(
            self.client,
            self.engine,
            self.catalog,
            self._publisher,
            admission,
            ProviderReporter(
                self.client, self.engine.survey, asks=not settings.suspend_all, is_ours=self.engine.holds_provider
            ),
            credentials,
            self._login,
            namespace=settings.namespace,
            watch_namespaces=settings.watch_namespaces,
            service_accounts=settings.service_account_tokens,
            times=settings.times,
            followers=() if self.broker is None else (self.broker,),
        )
        self._work = ShardWork(self.engine, self._follower, self.reporter)
        if settings.broker is not None and self.broker is not None and settings.webhook:
            self.webhook = Webhook(
                settings.webhook,
                self.client,
                self.catalog,
                settings.installation,
                namespace=settings.namespace,
                broker_url=settings.broker.url(settings.namespace),
                counts_pods=settings.count_pods,
            )
            self.webhook.attach(self.broker)

    async def _origin(self) -> str:
        """Return the cluster's name: the uid of kube-system, which no restore brings elsewhere."""
        system = await self.client.get(NAMESPACES, None, "kube-system")
        if system is None:
            raise ApiError("namespace kube-system is not there")
        return str(system["metadata"]["uid"])

    async def _keys(self) -> bytes:
        """Return the key of fingerprints and signatures, made at the first start of all."""
        settings = self.settings
        found = await self.client.get(SECRETS, settings.namespace, KEYS_SECRET)
        if found is None:
            body: Object = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": KEYS_SECRET,
                    "namespace": self.settings.namespace,
                    "labels": {"app.kubernetes.io/managed-by": MANAGER},
                },
                "type": "Opaque",
                "data": {"digest": base64.b64encode(secrets.token_bytes(32)).decode()},
            }
            try:
                found = await self.client.create(SECRETS, self.settings.namespace, body)
            except ApiError as error:
                if not error.conflict:
                    raise
                found = await self.client.get(SECRETS, self.settings.namespace, KEYS_SECRET)
        if found is None:
            raise ApiError(f"Secret {KEYS_SECRET} appeared and vanished")
        key = base64.b64decode((found.get("data") or {}).get("digest", ""))
        if not key:
            raise ApiError(
                f"Secret {settings.namespace}/{KEYS_SECRET} has no key 'digest'. Restore it, or delete it: then every"
                " published Secret is written anew, and seeds that were used before are not recognized any more"
            )
        return key

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work on a fair share of the shards until ``stop`` is called; what is being spent then is finished first."""
        with building():
            if not await done_before(self._follower.read_all(), self._stop_asked):
                return
        settle(len(self.catalog.identities))
        if not await done_before(self._rescue(), self._stop_asked):
            return
        async with AsyncExitStack() as stack:
            if self.broker is not None:
                await stack.enter_async_context(self.broker)
            if self.webhook is not None:
                await stack.enter_async_context(self.webhook)
            self._listed = True
            await self._work_on()

    async def _work_on(self) -> None:
        watch = self._follower.watch()
        watch.start()
        tasks = [
            asyncio.create_task(self._follower.run(), name="changes"),
            asyncio.create_task(self.reporter.run(), name="reporter"),
            asyncio.create_task(self._toucher.run(), name="pods"),
        ]
        working = asyncio.create_task(self.engine.run(), name="engine")
        working.add_done_callback(lambda _: self._stop_asked.set())
        try:
            await (self._share() if self.settings.leader_election else self._have_all())
            await working
            await asyncio.gather(self.reporter.flush(LAST_WORDS), watch.stop())
        finally:
            self.engine.stop()
            await cancelled(*tasks, working)
            await watch.stop()

    async def _rescue(self) -> None:
        """Commit the answers that an earlier process of this replica left in the escrow, whoever holds the shards now.

        Whoever does waits for them for a while (``doubt.settle_time``), and then takes them for lost.
        """
        try:
            await rescue(self._escrow, self.engine.rescue)
        except KeyferryError as error:
            log.warning("the answers in escrow could not be committed yet: %s", error)
        except Exception as error:  # noqa: BLE001 - a defect here must keep no replica from its work
            log.error("unexpected %s while the answers in escrow were committed", type(error).__name__)  # noqa: TRY400

    async def _have_all(self) -> None:
        """Work on everything, since nobody else does."""
        while not self._stop_asked.is_set():
            try:
                await done_before(self._work.gain(frozenset(range(self.settings.shards))), self._stop_asked)
                await self._stop_asked.wait()
            except KeyferryError as error:
                log.warning("what is stored could not be read yet: %s", error)
                await asyncio.sleep(GAIN_PAUSE)

    async def _share(self) -> None:
        """Hold shards until ``stop`` is called, then hand them over."""
        # Renewals of a lease must not wait for a connection behind ten thousand Secrets.
        async with KubeClient(self._login(), token_file=self._token_file) as client:
            settings = self.settings
            sharing = Sharing(
                client,
                settings.namespace,
                settings.instance,
                settings.shards,
                self._work,
                timing=settings.lease,
            )
            running = asyncio.create_task(sharing.run(), name="leases")
            asked = asyncio.create_task(self._stop_asked.wait())
            try:
                await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
                await sharing.close()
                if running.done():
                    running.result()  # it ends by a defect only
            finally:
                await cancelled(running, asked)

    def stop(self) -> None:
        """Start nothing new; ``run`` returns when spends and commits under way are done."""
        self._stop_asked.set()
        if self.broker is not None:
            self.broker.drain()
        self.engine.stop()

    @property
    def ready(self) -> bool:
        """Whether it works, or would at once if another replica ended."""
        return self._listed and not self._stop_asked.is_set()
