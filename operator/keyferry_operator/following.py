"""What changes in the cluster, handed to the engine: lists, watches, and a sweep against what no watch told of."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from keyferry.engine.credentials import Reference
from keyferry.errors import KeyferryError
from keyferry.model import ObjectKey
from keyferry.spec.identity import ProviderKind
from keyferry.spec.resources import load_object
from keyferry_operator.client import CLUSTER_PROVIDERS, IDENTITIES, NAMESPACES, PROVIDERS, SECRETS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import CREDENTIAL_LABEL, MANAGED_LABEL
from keyferry_operator.renewals import RenewalRequests
from keyferry_operator.rereading import Rereader
from keyferry_operator.sweep import Sweep
from keyferry_operator.watch import Change, Reflector, ResourceWatch, WatchTimes

if TYPE_CHECKING:
    from collections.abc import Callable

    import kopf

    from keyferry.engine import Engine
    from keyferry.engine.entry import ProviderKey
    from keyferry.record import Versioned
    from keyferry.spec.resources import Loaded
    from keyferry_operator.admission import Admission
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import Kind, KubeClient, Object
    from keyferry_operator.provider_status import ProviderReporter
    from keyferry_operator.publish import SecretPublisher

log = logging.getLogger(__name__)

LIST_PAUSE: Final = 5.0
"""Seconds until the first list is tried again."""


class Follower:
    """Keeps the engine and the catalog in step with the cluster."""

    def __init__(
        self,
        client: KubeClient,
        engine: Engine,
        catalog: Catalog,
        publisher: SecretPublisher,
        admission: Admission,
        providers: ProviderReporter,
        login: Callable[[], kopf.ConnectionInfo],
        *,
        namespace: str,
        watch_namespaces: tuple[str, ...],
        service_accounts: bool,
        times: WatchTimes,
    ) -> None:
        """``namespace`` is the operator's own, ``watch_namespaces`` those to look after (none: all).

        With ``service_accounts`` those are read again too, that identities ask for a token of.
        """
        self._client = client
        self._engine = engine
        self._catalog = catalog
        self._publisher = publisher
        self._admission = admission
        self._providers = providers
        self._login = login
        self._namespace = namespace
        self._watch_namespaces = watch_namespaces
        self._renewals = RenewalRequests(engine, catalog)
        self._rereader = Rereader(
            client, engine.roster.references, self._reference_changed, service_accounts=service_accounts
        )
        self._inbox: asyncio.Queue[Change] = asyncio.Queue()
        self._times = times
        self._sweep = Sweep(
            client,
            engine,
            catalog,
            self._inbox.put_nowait,
            lambda: {kind: self._where(kind) for kind in self._kinds()},
            self._let_go_strays,
            every=times.sweep,
        )

    def watch(self) -> ResourceWatch:
        """Return the watch of our own resources, to be started and stopped."""
        return ResourceWatch(self._login, self._watch_namespaces, self._kinds(), self._inbox.put_nowait, self._times)

    async def run(self) -> None:
        """Follow what changes until cancelled."""
        await asyncio.gather(
            self._follow(),
            self._sweep.run(),
            self._providers.run(),
            self._rereader.run(),
            self._reflect_namespaces(),
            *(self._reflect(label) for label in (MANAGED_LABEL, CREDENTIAL_LABEL)),
        )

    async def let_go(self, unknown: list[Versioned]) -> None:
        """Let the identities go of which only the record is left.

        It is asked who is there: another replica may have worked on one that no watch has told us of yet.
        """
        for namespace in sorted({held.record.key.namespace for held in unknown}):
            try:
                there = {body["metadata"]["uid"] async for body in self._client.pages(IDENTITIES, namespace)}
            except ApiError as error:
                log.warning("it is not known which identities of namespace %s are gone: %s", namespace, error)
                continue  # the next sweep asks again
            for held in unknown:
                if held.record.key.namespace == namespace and held.record.uid not in there:
                    self._engine.dismiss_record(held)

    async def _let_go_strays(self) -> None:
        await self.let_go(await self._engine.strays())

    def resume(self) -> None:
        """Act on what was asked for while another replica looked after an identity, and look at its provider."""
        self._renewals.resume()
        self._providers.resume()

    async def read_all(self) -> None:
        """Read what is declared and published, as soon as the API server tells."""
        while True:
            try:
                await self._list_namespaces()
                for kind in self._kinds():
                    for namespace in self._where(kind):
                        async for body in self._client.pages(kind, namespace):
                            self._declare(kind, body)
                for namespace in self._where(SECRETS):
                    async for body in self._client.pages(SECRETS, namespace, labels=f"{MANAGED_LABEL}=true"):
                        self._publisher.see(body)
            except ApiError as error:
                log.warning("the resources could not be listed yet: %s", error)
                await asyncio.sleep(LIST_PAUSE)
            else:
                return

    async def _reflect(self, label: str) -> None:
        reflector = Reflector(
            self._client,
            SECRETS,
            f"{label}=true",
            self._inbox.put_nowait,
            namespaces=self._watch_namespaces,
            times=self._times,
        )
        await reflector.run()

    async def _list_namespaces(self) -> None:
        if not self._watch_namespaces:
            async for body in self._client.pages(NAMESPACES):
                self._admission.see(body)

    async def _reflect_namespaces(self) -> None:
        """Follow the namespaces' labels, by which cluster providers are offered."""
        if not self._watch_namespaces:
            await Reflector(self._client, NAMESPACES, "", self._inbox.put_nowait).run()

    def _kinds(self) -> tuple[Kind, ...]:
        """Cluster providers need rights on the whole cluster."""
        return (PROVIDERS, IDENTITIES) if self._watch_namespaces else (PROVIDERS, CLUSTER_PROVIDERS, IDENTITIES)

    def _where(self, kind: Kind) -> tuple[str | None, ...]:
        return self._watch_namespaces if kind.namespaced and self._watch_namespaces else (None,)

    # --- changes ------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            change = await self._inbox.get()
            try:
                if change.kind is SECRETS:
                    self._secret_changed(change)
                elif change.kind is NAMESPACES:
                    self._namespace_changed(change)
                elif change.deleted:
                    self._gone(change.kind, change.body)
                else:
                    self._changed(change.kind, change.body)
                    if change.listed:
                        self._sweep.listed(change.kind, _key(change.body))
            except KeyferryError as error:
                log.warning("a change could not be taken in: %s", error)
            except Exception as error:  # noqa: BLE001 - one object that we do not understand must not stop the others
                log.error("unexpected %s while a change was taken in", type(error).__name__)  # noqa: TRY400 - nor show it

    def _changed(self, kind: Kind, body: Object) -> None:
        key, uid = _key(body), str(body["metadata"]["uid"])
        if kind is IDENTITIES and self._catalog.uid_of(key) not in ("", uid):
            self._gone(kind, {"metadata": {**body["metadata"], "uid": self._catalog.uid_of(key)}})
        self._declare(kind, body)
        if kind is IDENTITIES:
            self._renewals.see(key, body)

    def _declare(self, kind: Kind, body: Object) -> None:
        loaded: Loaded = load_object(body, cluster_namespace=self._namespace)
        for problem in loaded.problems:
            log.warning("%s", problem)
        for provider in loaded.providers:
            self._engine.declare_provider(provider)
        if kind is not IDENTITIES:
            self._declare_provider(self._provider_key(kind, _key(body)), body, loaded)
        for identity in loaded.identities:
            self._catalog.identities[identity.key] = identity
            status = dict(body.get("status") or {})
            before = self._catalog.status.get(identity.key, {})
            self._catalog.status[identity.key] = status
            handled = str(status.get("lastHandledRenew") or "")
            if self._engine.looks_after(identity.key):
                self._catalog.handled_renewals.setdefault(identity.key, handled)
            else:
                self._catalog.handled_renewals[identity.key] = handled
            self._engine.declare_identity(identity)
            self._engine.note_revision(identity.key, int(status.get("revision") or 0))
            elsewhere = not self._engine.looks_after(identity.key)
            if elsewhere and status.get("revision") != before.get("revision"):
                self._engine.issued_elsewhere(identity.key)
        if loaded.problems and kind is IDENTITIES:
            self._engine.refuse_identity(_key(body), loaded.problems[0].as_error())

    def _gone(self, kind: Kind, body: Object) -> None:
        key = _key(body)
        if kind is IDENTITIES:
            if self._catalog.uid_of(key) != body["metadata"]["uid"]:
                return
            self._engine.dismiss_identity(key, self._catalog.uid_of(key))
            self._catalog.identities.pop(key, None)
            self._catalog.status.pop(key, None)
            self._renewals.forget(key)
            return
        provider = self._provider_key(kind, key)
        self._engine.drop_provider(provider)
        self._providers.forget(provider)

    def _provider_key(self, kind: Kind, key: ObjectKey) -> ProviderKey:
        if kind is PROVIDERS:
            return ProviderKind.TOKEN_PROVIDER.value, key
        return ProviderKind.CLUSTER_TOKEN_PROVIDER.value, ObjectKey(self._namespace, key.name)

    def _declare_provider(self, key: ProviderKey, body: Object, loaded: Loaded) -> None:
        """Say in the provider's status, and to its identities, where it is not valid; else have it looked at."""
        error = loaded.problems[0].as_error() if loaded.problems else None
        if error is not None:
            self._engine.refuse_provider(key, error)
        self._providers.see(key, body, error)

    def _namespace_changed(self, change: Change) -> None:
        if self._admission.see(change.body, deleted=change.deleted):
            self._engine.recheck_namespace(change.body["metadata"]["name"])

    def _reference_changed(self, reference: Reference) -> None:
        self._engine.credentials_changed([reference])
        self._providers.look(self._engine.roster.providers_trusting(reference))

    def _secret_changed(self, change: Change) -> None:
        key = _key(change.body)
        labels = change.body["metadata"].get("labels") or {}
        if MANAGED_LABEL in labels or key in self._catalog.secrets:
            before = self._catalog.secrets.get(key)
            if change.deleted:
                self._catalog.secrets.pop(key, None)
                seen = before
            else:
                seen = self._publisher.see(change.body)
            if (
                seen is not None
                and seen.identity is not None
                and (change.deleted or seen.published is None or not seen.published.intact)
            ):
                self._engine.republish(seen.identity)
            elif before is not None and before.identity is not None and before != seen:
                self._engine.republish(before.identity)
        else:
            self._reference_changed(Reference(key.namespace, key.name))


def _key(body: Object) -> ObjectKey:
    metadata = body["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])
