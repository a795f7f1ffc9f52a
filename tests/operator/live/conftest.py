"""The operator over a real API server, with the fault-injecting issuer as its provider."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jwt
import kopf
import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyferry.demo.clients import AuthMethod, Client
from keyferry.io.addresses import HostRule
from keyferry.io.file_escrow import FileEscrow
from keyferry_operator.crds import manifests
from keyferry_operator.operator import Operator, OperatorSettings
from tests.chart.conftest import helm
from tests.support.issuer import FaultIssuer
from tests.support.kube_fixtures import cluster, namespace, start_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from aiohttp.abc import AbstractResolver

    from tests.support.cluster import Cluster

__all__ = ["cluster", "helm", "namespace", "start_cluster"]

GROUP = "keyferry.dev/v1alpha1"
PATIENCE = 300.0
"""Seconds: on a machine that is busy enough, an interpreter takes a minute to start."""


@dataclass
class Field:
    """One namespace of a cluster, with an operator of its own that looks after it alone."""

    cluster: Cluster
    namespace: str
    home: str
    issuer: FaultIssuer
    escrow: Path

    def login(self) -> kopf.ConnectionInfo:
        config = yaml.safe_load(self.cluster.kubeconfig.read_text())
        kube, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        return kopf.ConnectionInfo(
            server=kube["server"],
            ca_path=kube.get("certificate-authority"),
            ca_data=kube.get("certificate-authority-data"),
            token=user.get("token"),
            certificate_path=user.get("client-certificate"),
            certificate_data=user.get("client-certificate-data"),
            private_key_path=user.get("client-key"),
            private_key_data=user.get("client-key-data"),
        )

    @contextlib.asynccontextmanager
    async def operator(self, *, names: AbstractResolver | None = None, **changes: Any) -> AsyncIterator[Operator]:
        """Run an operator, with some of its settings changed; it is stopped in good order at the end.

        `names` answers in place of the DNS.
        """
        settings = OperatorSettings(
            namespace=self.home,
            instance="test",
            watch_namespaces=(self.namespace,),
            allowed_hosts=(HostRule.parse("127.0.0.1"),),
        )
        settings = replace(settings, **changes)
        resolver = None if names is None else lambda: names
        with ThreadPoolExecutor(4) as executor:
            escrow = FileEscrow(self.escrow, executor)
            async with Operator(settings, self.login, escrow, resolver=resolver) as operator:
                running = asyncio.create_task(operator.run())
                try:
                    yield operator
                finally:
                    operator.stop()
                    await running

    @property
    def host(self) -> str:
        """Host and port of the issuer, as an owner allows it."""
        return self.issuer.url.removeprefix("http://")

    def within(self, namespace: str) -> Field:
        """Return the same for another namespace."""
        return replace(self, namespace=namespace)

    def apply(self, *documents: dict[str, Any]) -> None:
        for document in documents:
            document["metadata"]["namespace"] = self.namespace
            self.cluster.api.apply(document, manager="user")

    def provider(self, name: str = "issuer") -> dict[str, Any]:
        return {
            "apiVersion": GROUP,
            "kind": "TokenProvider",
            "metadata": {"name": name},
            "spec": {
                "type": "OAuth",
                "oauth": {
                    "issuer": self.issuer.issuer,
                    "client": {"id": "bot", "secretsFrom": [{"secretKeyRef": {"name": "bot", "key": "secret"}}]},
                },
            },
        }

    def trust_account(self, name: str) -> None:
        """Let the issuer take the cluster's word that a ServiceAccount is the client of the same name."""
        keys = jwt.PyJWKSet.from_json(self.cluster.jwks()).keys
        pems = [key.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for key in keys]
        self.issuer.clients.add(
            Client(
                name,
                methods=(AuthMethod.PRIVATE_KEY_JWT,),
                public_keys=tuple(pems),
                assertion_issuer=self.cluster.issuer,
                assertion_subject=f"system:serviceaccount:{self.namespace}:{name}",
            )
        )

    def identity(self, name: str, **spec: Any) -> dict[str, Any]:
        body = {"providerRef": {"name": "issuer"}, "grant": {"type": "ClientCredentials"}, **spec}
        return {"apiVersion": GROUP, "kind": "ServiceIdentity", "metadata": {"name": name}, "spec": body}

    def secret(self, name: str, hosts: str | None = None, *, label: bool = True, **values: str) -> dict[str, Any]:
        host = self.host if hosts is None else hosts
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "labels": {"keyferry.dev/credential": "true"} if label else {},
                "annotations": {"keyferry.dev/hosts": host},
            },
            "stringData": values,
        }

    def renew(self, name: str, value: str) -> None:
        """Ask for a renewal, as a person does with kubectl."""
        found = self.cluster.api.find(GROUP, "ServiceIdentity", name, self.namespace)
        assert found is not None
        self.cluster.api.patch(found, {"metadata": {"annotations": {"keyferry.dev/renew": value}}})

    def status(self, name: str) -> dict[str, Any]:
        found = self.cluster.api.find(GROUP, "ServiceIdentity", name, self.namespace)
        return dict((found or {}).get("status") or {})

    def condition(self, name: str, kind: str = "Ready") -> dict[str, Any]:
        return next((item for item in self.status(name).get("conditions", ()) if item["type"] == kind), {})

    def provider_condition(self, name: str, kind: str = "TokenProvider") -> dict[str, Any]:
        """The condition Ready of a provider."""
        found = self.cluster.api.find(GROUP, kind, name, None if kind.startswith("Cluster") else self.namespace)
        return next(iter(((found or {}).get("status") or {}).get("conditions", ())), {})

    def target(self, name: str) -> dict[str, Any] | None:
        return self.cluster.api.find("v1", "Secret", name, self.namespace)

    async def told(self, name: str, kind: str = "Ready", *, message: str = "", **wanted: str) -> dict[str, Any]:
        """Wait until an identity's condition is as `wanted`, with `message` in its message; return it."""
        return await self._found(lambda: self.condition(name, kind), message, wanted)

    async def provider_told(
        self, name: str, kind: str = "TokenProvider", *, message: str = "", **wanted: str
    ) -> dict[str, Any]:
        """Wait until a provider's condition Ready is as `wanted`, with `message` in its message; return it."""
        return await self._found(lambda: self.provider_condition(name, kind), message, wanted)

    async def _found(self, look: Callable[[], dict[str, Any]], message: str, wanted: dict[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def there() -> bool:
            found.clear()
            found.update(look())
            return message in found.get("message", "") and wanted.items() <= found.items() and bool(found)

        await self.until(there)
        return found

    def is_ready(self, name: str, revision: int = 1) -> bool:
        status = self.status(name)
        ready = self.condition(name).get("status") == "True"
        return ready and status.get("revision", 0) >= revision

    def token(self, name: str) -> str:
        """Return the published token, or nothing."""
        found = self.target(name)
        return base64.b64decode((found or {}).get("data", {}).get("token", "")).decode()

    async def until_ready(self, *names: str, revision: int = 1) -> None:
        for name in names:
            await self.until(partial(self.is_ready, name, revision))

    async def until_reason(self, name: str, reason: str) -> str:
        """Wait until an identity's condition gives a reason, and return what it says."""
        await self.until(lambda: self.condition(name).get("reason") == reason)
        return str(self.condition(name)["message"])

    async def until_refused(self, name: str, reason: str) -> str:
        """Do so where nothing was ever published."""
        message = await self.until_reason(name, reason)
        assert self.condition(name)["status"] == "False"
        return message

    async def until(self, what: Callable[[], object]) -> None:
        """Wait until `what` is true; it may ask the API server, so it runs in a thread."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not await asyncio.to_thread(what):
            assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
            await asyncio.sleep(0.2)


@pytest.fixture
def definitions(cluster: Cluster) -> Cluster:
    for manifest in manifests():
        cluster.api.apply(manifest, manager="user")
    return cluster


@pytest.fixture
async def field(definitions: Cluster, tmp_path: Path) -> AsyncIterator[Field]:
    with definitions.namespace("team") as team, definitions.namespace("keyferry") as home:
        async with FaultIssuer() as issuer:
            yield Field(definitions, team, home, issuer, tmp_path)
