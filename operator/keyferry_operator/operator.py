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
from typing import TYPE_CHECKING, Final, Self

from keyferry.engine import Engine, EngineSettings, Ports
from keyferry.errors import StoreError
from keyferry.io.clock import SystemClock
from keyferry_operator.addresses import Addresses
from keyferry_operator.admission import Admission
from keyferry_operator.catalog import Catalog
from keyferry_operator.client import NAMESPACES, SECRETS, KubeClient
from keyferry_operator.credentials import ClusterCredentials
from keyferry_operator.errors import ApiError
from keyferry_operator.following import Follower
from keyferry_operator.installation import Installation
from keyferry_operator.leases import Election, Outcome, cancelled, done_before
from keyferry_operator.names import KEYS_SECRET, MANAGER
from keyferry_operator.provider_status import ProviderReporter
from keyferry_operator.publish import SecretPublisher
from keyferry_operator.report import ClusterReporter
from keyferry_operator.state import SecretStore
from keyferry_operator.touch import PodToucher

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    import kopf
    from aiohttp.abc import AbstractResolver

    from keyferry.escrow import Escrow
    from keyferry.io.addresses import HostRule
    from keyferry.record import Versioned
    from keyferry.secret import SecretValue
    from keyferry_operator.client import Object

log = logging.getLogger(__name__)

STATE_PAUSE: Final = 5.0
"""Seconds until private state that could not be read is tried again."""
LAST_WORDS: Final = 5.0
"""Seconds that the last statuses and Events are given when the operator stops."""


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
    """Work only while this replica holds the Lease; needs rights on it."""
    escrow: Path = Path("/var/lib/keyferry")
    """Root of the ``FileEscrow``."""


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
    ) -> None:
        """Begin nothing yet; ``resolver`` makes what asks the DNS for providers' names, in place of the system's."""
        self.settings = settings
        self._login = login
        self._escrow = escrow
        self._token_file = token_file
        self._resolver = resolver
        self.catalog = Catalog()
        self._stop_asked = asyncio.Event()
        self._standing_by = self._engine_started = False

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
        ports = Ports(
            store=self._store,
            escrow=self._escrow,
            credentials=ClusterCredentials(
                self.client,
                api_audiences=settings.api_audiences,
                allow_service_account_tokens=settings.service_account_tokens,
            ),
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
        )
        self.engine = Engine(ports, EngineSettings(holder=settings.instance, suspend_all=settings.suspend_all))
        self._follower = Follower(
            self.client,
            self.engine,
            self.catalog,
            self._publisher,
            admission,
            ProviderReporter(self.client, self.engine.survey, asks=not settings.suspend_all),
            self._login,
            namespace=settings.namespace,
            watch_namespaces=settings.watch_namespaces,
            service_accounts=settings.service_account_tokens,
        )

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

    async def run(self) -> Outcome:
        """Lead as soon as nobody else does, and work until ``stop`` is called or the lease is lost."""
        if not self.settings.leader_election:
            await self._until(asyncio.Event())
            return Outcome.STOPPED
        # Renewals of the lease must not wait for a connection behind ten thousand Secrets.
        async with KubeClient(self._login(), token_file=self._token_file) as client:
            election = Election(client, self.settings.namespace, self.settings.instance)
            try:
                self._standing_by = True
                if not await done_before(election.acquire(), self._stop_asked):
                    return Outcome.STOPPED
                self._standing_by = False
                lost = asyncio.Event()
                holding = asyncio.create_task(election.hold(), name="lease")
                holding.add_done_callback(lambda _: lost.set())
                try:
                    await self._until(lost)
                finally:
                    holding.cancel()
                    await asyncio.gather(holding, return_exceptions=True)
                return Outcome.STOPPED if self._stop_asked.is_set() else Outcome.LOST
            finally:
                await election.release()

    async def _until(self, lost: asyncio.Event) -> None:
        """Work until ``stop`` or ``lost``; what is being spent and committed then is finished first."""
        working = asyncio.create_task(self._work(), name="operator")
        ends = [asyncio.create_task(self._stop_asked.wait()), asyncio.create_task(lost.wait())]
        try:
            await asyncio.wait([working, *ends], return_when=asyncio.FIRST_COMPLETED)
            self.engine.stop()
            if not self._engine_started:  # it only reads so far
                working.cancel()
            await asyncio.wait([working])
        finally:
            await cancelled(working, *ends)
        if not working.cancelled():
            working.result()

    async def _work(self) -> None:
        """List everything, start the engine, and follow what changes."""
        await self._follower.read_all()
        unknown = await self._start_engine()
        self._engine_started = True
        self._follower.let_go(unknown)
        watch = self._follower.watch()
        watch.start()
        tasks = [
            asyncio.create_task(self._follower.run(), name="changes"),
            asyncio.create_task(self.reporter.run(), name="reporter"),
            asyncio.create_task(self._toucher.run(), name="pods"),
        ]
        try:
            await self.engine.run()
            if self._stop_asked.is_set():  # else another replica tells by now
                await asyncio.gather(self.reporter.flush(LAST_WORDS), watch.stop())
        finally:
            for task in tasks:
                task.cancel()
            await watch.stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_engine(self) -> list[Versioned]:
        """Take up the private state, as soon as the API server shows it; to end instead would help nobody."""
        while True:
            try:
                return await self.engine.start()
            except StoreError as error:
                log.warning("the private state cannot be read yet: %s; trying again in %.0f s", error, STATE_PAUSE)
                await asyncio.sleep(STATE_PAUSE)

    def stop(self) -> None:
        """Start nothing new; ``run`` returns when spends and commits under way are done."""
        self._stop_asked.set()
        self.engine.stop()

    @property
    def ready(self) -> bool:
        """Whether it works, or would at once if the leader ended."""
        return (self._standing_by or self._engine_started) and not self._stop_asked.is_set()
