"""What changes in the cluster, handed to the engine: lists, watches, and a sweep against what no watch told of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from keyferry.engine.credentials import Reference
from keyferry.errors import KeyferryError
from keyferry.model import ObjectKey
from keyferry.spec.identity import ProviderKind
from keyferry.spec.resources import Sharing, load_object
from keyferry_operator.asking import Requests
from keyferry_operator.catalog import is_known
from keyferry_operator.client import CLUSTER_PROVIDERS, IDENTITIES, NAMESPACES, PROVIDERS, SECRETS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import CREDENTIAL_LABEL, MANAGED_LABEL, REQUESTS
from keyferry_operator.rereading import Rereader
from keyferry_operator.sweep import Sweep
from keyferry_operator.watch import Change, Reflector, ResourceWatch, WatchTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import kopf

    from keyferry.engine import Engine
    from keyferry.engine.entry import ProviderKey
    from keyferry.record import Versioned
    from keyferry.spec.resources import Loaded
    from keyferry_operator.admission import Admission
    from keyferry_operator.catalog import Catalog, SeenSecret
    from keyferry_operator.client import Kind, KubeClient, Object
    from keyferry_operator.credentials import ClusterCredentials
    from keyferry_operator.provider_status import ProviderReporter
    from keyferry_operator.publish import SecretPublisher

log = logging.getLogger(__name__)

LIST_PAUSE: Final = 5.0
"""Seconds until the first list is tried again."""


class IdentityFollower(Protocol):
    """Who is told of changes."""

    def changed(self, key: ObjectKey) -> None:
        """Take note that an identity, its status or its Secret is another."""
        ...

    def gone(self, key: ObjectKey) -> None:
        """Take note that an identity is gone."""
        ...


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
        credentials: ClusterCredentials,
        login: Callable[[], kopf.ConnectionInfo],
        *,
        namespace: str,
        watch_namespaces: tuple[str, ...],
        service_accounts: bool,
        times: WatchTimes,
        followers: Iterable[IdentityFollower] = (),
    ) -> None:
        """``namespace`` is the operator's own, ``watch_namespaces`` those to look after (none: all).

        With ``service_accounts`` those are read again too, that identities ask for a token of. ``followers`` are told
        of every change of an identity, or of its Secret.
        """
        self._followers = tuple(followers)
        self._client = client
        self._engine = engine
        self._catalog = catalog
        self._publisher = publisher
        self._admission = admission
        self._providers = providers
        self._credentials = credentials
        self._sharing = Sharing()
        self._login = login
        self._namespace = namespace
        self._watch_namespaces = watch_namespaces
        self._requests = Requests(engine, catalog)
        self._rereader = Rereader(
            client, engine.roster.references, self._reference_changed, service_accounts=service_accounts
        )
        self._inbox: asyncio.Queue[Change] = asyncio.Queue()
        self._times = times
        self._since: dict[str, str] = {}
        """The version at which the list of a kind ended, by its URL path: the watch goes on from there."""
        self._read_at = ""
        """The version of the cluster after all lists: what the watch tells of earlier ones is not news to everybody."""
        self._managed, self._credential_secrets = (
            self._reflector(SECRETS, f"{label}=true") for label in (MANAGED_LABEL, CREDENTIAL_LABEL)
        )
        # Cluster providers are offered by the namespaces' labels; there are none where only some are watched.
        self._all_namespaces = () if watch_namespaces else (self._reflector(NAMESPACES),)
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
        return ResourceWatch(
            self._login,
            self._watch_namespaces,
            self._kinds(),
            self._inbox.put_nowait,
            self._times,
            since=self._since,
        )

    async def run(self) -> None:
        """Follow what changes until cancelled."""
        await asyncio.gather(
            self._follow(),
            self._sweep.run(),
            self._providers.run(),
            self._rereader.run(),
            *(each.run() for each in (self._managed, self._credential_secrets, *self._all_namespaces)),
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
        """Act on what was asked for while another replica, or none, looked after an identity; look at its provider."""
        self._requests.resume()
        self._providers.resume()
        for key, status in self._catalog.statuses():
            if "asked" in status:
                for follower in self._followers:
                    follower.changed(key)

    async def read_all(self) -> None:
        """Read what is declared and published, as soon as the API server tells."""
        first_try = True
        while True:
            try:
                for each in self._all_namespaces:
                    await each.read(self._read_namespace)
                for kind in self._kinds():
                    for namespace in self._where(kind):
                        await self._read_kind(kind, namespace)
                await self._managed.read(self._read_managed)
                await self._credential_secrets.read(self._read_credential)
                self._read_at = await self._version_now()
            except ApiError as error:
                log.warning("the resources could not be listed yet: %s", error)
                first_try = False
                await asyncio.sleep(LIST_PAUSE)
            else:
                if not first_try:  # what vanished between two tries is noticed by a list of the watch's own
                    self._since.clear()
                return

    async def _version_now(self) -> str:
        """Return the version of the cluster."""
        async for version, _ in self._client.listing(PROVIDERS, self._where(PROVIDERS)[0]):
            return version
        return ""

    async def _read_kind(self, kind: Kind, namespace: str | None) -> None:
        async for version, page in self._client.listing(kind, namespace):
            for listed in page:
                body = await self._current(kind, listed)
                self._declare(kind, body, listed=True)
                if kind is IDENTITIES:
                    self._requests.see(_key(body), body)
            self._since[kind.path(namespace)] = version

    async def _current(self, kind: Kind, body: Object) -> Object:
        """Return an identity as it is now where something is asked that was not acted on, as far as ``body`` tells.

        A list may be of yesterday, and the watch that goes on from there tells of requests that were acted on since.
        """
        if kind is not IDENTITIES or not self._requests.are_open(body):
            return body
        key = _key(body)
        found = await self._client.find(kind, key.namespace, key.name)
        return found if found is not None and found["metadata"]["uid"] == body["metadata"]["uid"] else body

    def _read_namespace(self, change: Change) -> None:
        self._admission.see(change.body, deleted=change.deleted)

    def _read_managed(self, change: Change) -> None:
        if change.deleted:
            self._catalog.discard(_key(change.body))
        else:
            self._publisher.see(change.body)

    def _read_credential(self, change: Change) -> None:
        if change.deleted:
            self._catalog.credentials.pop(_key(change.body), None)
        else:
            self._catalog.credentials[_key(change.body)] = change.body["metadata"]["resourceVersion"]

    def _reflector(self, kind: Kind, labels: str = "") -> Reflector:
        namespaces = self._watch_namespaces if kind.namespaced else ()
        return Reflector(self._client, kind, labels, self._inbox.put_nowait, namespaces=namespaces, times=self._times)

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
                    body = change.body
                    if is_known(body["metadata"]["resourceVersion"], self._read_at, listed=False):
                        with contextlib.suppress(ApiError):  # else what the watch tells is believed
                            body = await self._current(change.kind, body)
                    self._changed(change.kind, body, listed=change.listed)
                    if change.listed:
                        self._sweep.listed(change.kind, _key(change.body))
            except KeyferryError as error:
                log.warning("a change could not be taken in: %s", error)
            except Exception as error:  # noqa: BLE001 - one object that we do not understand must not stop the others
                log.error("unexpected %s while a change was taken in", type(error).__name__)  # noqa: TRY400 - nor show it

    def _changed(self, kind: Kind, body: Object, *, listed: bool) -> None:
        key, uid = _key(body), str(body["metadata"]["uid"])
        if kind is IDENTITIES and self._catalog.uid_of(key) not in ("", uid):
            self._gone(kind, {"metadata": {**body["metadata"], "uid": self._catalog.uid_of(key)}})
        if kind is IDENTITIES and self._catalog.knows_spec(key, body["metadata"]):
            self._tell_status(key, *self._see_status(key, body, listed=listed))
        else:
            self._declare(kind, body, listed=listed)
        if kind is IDENTITIES:
            self._requests.see(key, body)
            for follower in self._followers:
                follower.changed(key)

    def _declare(self, kind: Kind, body: Object, *, listed: bool) -> None:
        loaded: Loaded = load_object(body, cluster_namespace=self._namespace, sharing=self._sharing)
        for problem in loaded.problems:
            log.warning("%s", problem)
        for provider in loaded.providers:
            self._engine.declare_provider(provider)
        if kind is not IDENTITIES:
            self._declare_provider(self._provider_key(kind, _key(body)), body, loaded)
        for identity in loaded.identities:
            self._catalog.identities[identity.key] = identity
            seen = self._see_status(identity.key, body, listed=listed)
            self._engine.declare_identity(identity)
            self._tell_status(identity.key, *seen)
        if loaded.problems and kind is IDENTITIES:
            self._engine.refuse_identity(_key(body), loaded.problems[0].as_error())

    def _see_status(self, key: ObjectKey, body: Object, *, listed: bool) -> tuple[int, bool]:
        """Take in an identity's status; return its revision, and whether another replica issued that token."""
        ours = self._engine.looks_after(key)
        before = None if ours else self._catalog.status_of(key).get("revision")
        status = self._catalog.see_status(key, body, listed=listed)
        for request in REQUESTS:
            handled, known = str(status.get(request.field) or ""), self._catalog.handled[request]
            if handled and not (ours and key in known):
                known[key] = handled
        revision = status.get("revision")
        return int(revision or 0), not ours and revision != before

    def _tell_status(self, key: ObjectKey, revision: int, elsewhere: bool) -> None:  # noqa: FBT001 - as seen
        self._engine.note_revision(key, revision)
        if elsewhere:
            self._engine.issued_elsewhere(key)

    def _gone(self, kind: Kind, body: Object) -> None:
        key = _key(body)
        if kind is IDENTITIES:
            if self._catalog.uid_of(key) != body["metadata"]["uid"]:
                return
            self._engine.dismiss_identity(key, self._catalog.uid_of(key))
            self._catalog.identities.pop(key, None)
            self._catalog.forget_status(key)
            self._requests.forget(key)
            for follower in self._followers:
                follower.gone(key)
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
        self._credentials.forget(reference.namespace, reference.name)
        self._engine.credentials_changed([reference])
        self._providers.look(self._engine.roster.providers_trusting(reference))

    def _secret_changed(self, change: Change) -> None:
        key, metadata = _key(change.body), change.body["metadata"]
        version = metadata["resourceVersion"]
        uid = metadata["uid"]
        if self._catalog.knows_secret(key, uid, version, deleted=change.deleted, listed=change.listed):
            return
        if MANAGED_LABEL in (metadata.get("labels") or {}) or key in self._catalog.secrets:
            self._managed_changed(key, change)
        elif change.deleted or self._catalog.credentials.get(key) != version:
            if change.deleted:
                self._catalog.credentials.pop(key, None)
            else:
                self._catalog.credentials[key] = version
            self._reference_changed(Reference(key.namespace, key.name))

    def _managed_changed(self, key: ObjectKey, change: Change) -> None:
        """Have put right what somebody changed or deleted, also where it cannot be told any more whose it was."""
        before = self._catalog.secrets.get(key)
        seen = self._catalog.discard(key) if change.deleted else self._publisher.see(change.body)
        for identity in {each.identity for each in (before, seen) if each is not None and each.identity is not None}:
            for follower in self._followers:
                follower.changed(identity)
        if (
            seen is not None
            and seen.identity is not None
            and (change.deleted or seen.published is None or not seen.published.intact)
        ):
            self._engine.republish(seen.identity)
        elif before is not None and before.identity is not None and before != seen and not self._is_current(seen):
            self._engine.republish(before.identity)

    def _is_current(self, seen: SeenSecret | None) -> bool:
        """Tell whether a Secret is what the engine publishes now: its own write, told of before it was answered."""
        if seen is None or seen.identity is None or seen.published is None or not seen.published.intact:
            return False
        entry = self._engine.roster.entries.get(seen.identity)
        shown = seen.published
        return entry is not None and (shown.uid, shown.revision, shown.files_hash) == (
            entry.uid,
            entry.revision,
            entry.files_hash,
        )


def _key(body: Object) -> ObjectKey:
    metadata = body["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])
