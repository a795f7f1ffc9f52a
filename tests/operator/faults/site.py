"""One team's namespace, the operator that looks after it through a faulty proxy, and what is left in the end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import kopf

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.state import User
from keyferry.errors import KeyferryError
from keyferry.io.addresses import HostRule
from keyferry.io.file_escrow import FileEscrow
from keyferry.record_json import dumps, loads
from keyferry_operator.crds import manifests
from keyferry_operator.operator import Operator, OperatorSettings
from tests.operator.live.conftest import GROUP, Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyferry.record import Record
    from tests.support.cluster import Cluster
    from tests.support.kube_proxy import KubeProxy

Document = dict[str, Any]
SECRET, LATER_SECRET = "s3cret of the bot", "an0ther s3cret"
PATIENCE = 300.0
RESTART_PAUSE = 1.0


def define(cluster: Cluster) -> None:
    """Have the cluster know our resources."""
    for manifest in manifests():
        cluster.api.apply(manifest, manager="user")


@dataclass
class Replica:
    """An operator that is started again whenever it ends by itself, as Kubernetes does with its container."""

    ends: list[str] = field(default_factory=list)
    """How it ended, each time."""
    now: Operator | None = None
    stopping: bool = False

    def stop(self) -> None:
        self.stopping = True
        if self.now is not None:
            self.now.stop()

    async def run(self, start: Callable[[], Operator]) -> None:
        while not self.stopping:
            try:
                async with start() as self.now:
                    await self.now.run()
            except KeyferryError as error:
                self.ends.append(error.message)
                await asyncio.sleep(RESTART_PAUSE)
            else:
                self.ends.append("ended")


@dataclass
class Site(Field):
    proxy: KubeProxy | None = None
    """What is between the operator and the API server; None: nothing."""

    @property
    def faulty(self) -> KubeProxy:
        assert self.proxy is not None
        return self.proxy

    def login(self) -> kopf.ConnectionInfo:
        access = self.proxy.access if self.proxy is not None else self.cluster.access
        return kopf.ConnectionInfo(server=access.url, ca_data=access.ca, token=access.token)

    @contextlib.asynccontextmanager
    async def replica(self, name: str = "first", **settings: Any) -> AsyncIterator[Replica]:
        """Run an operator with an escrow of its own; it is stopped in good order at the end."""
        chosen = OperatorSettings(
            **{
                "namespace": self.home,
                "instance": name,
                "watch_namespaces": (self.namespace,),
                "allowed_hosts": (HostRule.parse("127.0.0.1"),),
            }
            | settings
        )
        replica = Replica()
        with ThreadPoolExecutor(4) as executor:
            escrow = FileEscrow(self.escrow / f"escrow-{name}", executor)
            running = asyncio.create_task(replica.run(lambda: Operator(chosen, self.login, escrow)))
            try:
                yield replica
            finally:
                replica.stop()
                await running

    # What is declared

    def prepare(self, *, lifetime: float = 3600.0, timeout: str = "10s") -> None:
        """Register the bot, and write its provider and its secret. ``timeout`` is that of a request to the issuer."""
        self.register(SECRET)
        self.issuer.service.settings.access_lifetime = lifetime
        provider = self.provider()
        provider["spec"]["limits"] = {"timeout": timeout}
        self.apply(provider, self.secret("bot", secret=SECRET))

    def register(self, *secrets: str) -> None:
        """Have the issuer accept these secrets of the bot, and no others."""
        self.issuer.clients.add(
            Client("bot", secrets=secrets, methods=(AuthMethod.BASIC,), grants=tuple(Grant), scopes=("read", "write"))
        )

    def seed(self, name: str) -> Document:
        """Return a Secret with the first refresh token of the session that is called ``name`` at the issuer."""
        return self.secret(f"seed-{name}", token=self.issuer.seed_refresh_token("bot", name))

    def seeded(self, name: str, *, seed: str = "", **spec: Any) -> Document:
        """Return the identity that uses that Secret, or the one that was made for ``seed``."""
        ref = {"from": {"secretKeyRef": {"name": f"seed-{seed or name}", "key": "token"}}}
        return self.identity(name, grant={"type": "RefreshToken", "refreshToken": ref}, **spec)

    def user(self, name: str) -> Document:
        """Return a Secret with the password of a person."""
        self.issuer.service.add_user(User(name, "pa55word", email=f"{name}@example.org"))
        return self.secret(f"user-{name}", username=name, password="pa55word")

    def person(self, name: str, **spec: Any) -> Document:
        """Return the identity that logs in as that person."""
        refs = {
            f"{what}From": {"secretKeyRef": {"name": f"user-{name}", "key": key}}
            for what, key in (("username", "username"), ("password", "password"))
        }
        return self.identity(name, grant={"type": "Password", "password": refs}, **spec)

    def change(self, name: str, **spec: Any) -> None:
        self.patch(name, {"spec": spec})

    def ask_renewal(self, value: str, *names: str) -> None:
        for name in names:
            self.patch(name, {"metadata": {"annotations": {"keyferry.dev/renew": value}}})

    def patch(self, name: str, changes: Document) -> None:
        self.cluster.api.patch(self.identity(name) | {"metadata": self.place(name)}, changes)

    def delete(self, *names: str) -> None:
        for name in names:
            self.cluster.api.delete(self.identity(name) | {"metadata": self.place(name)})

    def place(self, name: str) -> Document:
        return {"name": name, "namespace": self.namespace}

    def secret_of(self, client: str) -> str:
        """Return the client's secret as it is in its Secret."""
        found = self.cluster.api.get("v1", "Secret", client, self.namespace)
        return base64.b64decode(found["data"]["secret"]).decode()

    # What is there

    def identities(self) -> dict[str, Document]:
        return {
            item["metadata"]["name"]: item for item in self.cluster.api.items(GROUP, "ServiceIdentity", self.namespace)
        }

    def targets(self) -> dict[str, Document]:
        """Return the Secrets that are published, by name."""
        found = self.cluster.api.items("v1", "Secret", self.namespace, labelSelector="keyferry.dev/managed=true")
        return {item["metadata"]["name"]: item for item in found}

    def states(self, state: str = "private") -> dict[str, Record]:
        """Return the private records, by the identity's name."""
        found = self.cluster.api.items("v1", "Secret", self.home, labelSelector=f"keyferry.dev/state={state}")
        records = [loads(base64.b64decode(item["data"]["record"]))[0] for item in found]
        return {record.key.name: record for record in records if record.key.namespace == self.namespace}

    def with_record(self, document: Document, record: Record) -> Document:
        """Return a private state Secret with another record in it."""
        return {**document, "data": {"record": base64.b64encode(dumps(record, 0)).decode()}}

    def ready(self, *names: str, revision: int = 1) -> bool:
        """Tell whether identities are issued, of a revision or a later one, and say so of their last version."""
        found = self.identities()
        return all(name in found and is_ready(found[name], revision) for name in names)

    async def until(self, what: Callable[[], object], patience: float = PATIENCE) -> None:
        deadline = asyncio.get_running_loop().time() + patience
        while not await asyncio.to_thread(what):
            assert asyncio.get_running_loop().time() < deadline, f"not in time; statuses: {self.summary()}"
            await asyncio.sleep(0.3)

    def summary(self) -> dict[str, Any]:
        """Return what the statuses say, for a person who wonders why a test failed."""
        return {
            name: [
                item.get("status", {}).get("revision"),
                *[
                    f"{condition['type']}={condition['status']} {condition['reason']} {condition['message']}"
                    for condition in item.get("status", {}).get("conditions", ())[:1]
                ],
            ]
            for name, item in self.identities().items()
        }

    def published_token(self, name: str) -> str:
        return base64.b64decode(self.targets().get(name, {}).get("data", {}).get("token", "")).decode()

    def good_tokens(self) -> set[str]:
        """Return the access tokens that the issuer takes now."""
        return {token.value for token in self.issuer.issued if self.issuer.service.active(token)}

    def sessions(self) -> dict[str, tuple[int, bool]]:
        """Return, for each session at the issuer, how many refresh tokens were sent and whether it is over."""
        found: dict[str, tuple[int, bool]] = {}
        for spend in self.issuer.spends:
            sent, over = found.get(spend.subject or "?", (0, False))
            found[spend.subject or "?"] = (sent + spend.presented, over or spend.revoked)
        return found

    def spent_twice(self) -> list[str]:
        """Return whose refresh tokens were sent more than once."""
        return [spend.subject or "?" for spend in self.issuer.spends if spend.presented > 1]


def is_ready(identity: Document, revision: int) -> bool:
    status = identity.get("status") or {}
    conditions: list[Document] = status.get("conditions") or []
    ready: Document = next((item for item in conditions if item["type"] == "Ready"), {})
    return bool(
        status.get("revision", 0) >= revision
        and ready.get("status") == "True"
        and status.get("failureCount", 0) == 0
        and ready.get("observedGeneration") == identity["metadata"]["generation"]
    )
