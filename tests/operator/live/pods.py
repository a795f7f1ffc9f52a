"""Pods without a kubelet, and what their sidecars would ask of the broker API of an operator."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.io.tls import TlsSettings, build_context
from keyferry_operator.api.broker import BrokerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyferry_operator.operator import Operator
    from tests.operator.live.conftest import Field
    from tests.support.kube_api import Api, Document

ACCOUNT = "ingest"
LOOPBACK = BrokerSettings("127.0.0.1", 0, hosts=("127.0.0.1",))
PATIENCE = 180.0


@dataclass
class Pod:
    """A pod that nothing runs."""

    api: Api
    document: Document

    @classmethod
    def create(
        cls, field: Field, name: str, *, inject: str | None = "nightly", account: str = ACCOUNT, namespace: str = ""
    ) -> Pod:
        """Make a pod, and its service account where that is not there."""
        api, where = field.cluster.api, namespace or field.namespace
        if api.find("v1", "ServiceAccount", account, where) is None:
            api.create(
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": where}}
            )
        annotations = {} if inject is None else {"keyferry.dev/inject": inject}
        spec = {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": "localhost/none"}],
        }
        metadata = {"name": name, "namespace": where, "annotations": annotations}
        return cls(api, api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))

    def token(self, *, audience: str = "keyferry", bound: bool = True, seconds: int = 3600) -> str:
        """Return what the kubelet would project into it."""
        metadata, spec = self.document["metadata"], self.document["spec"]
        reference = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        wanted = {"audiences": [audience], "expirationSeconds": seconds}
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {**wanted, "boundObjectRef": reference} if bound else wanted,
        }
        path = self.api.path("v1", "ServiceAccount", metadata["namespace"], spec["serviceAccountName"])
        return str(self.api.request("POST", f"{path}/token", body)["status"]["token"])

    def delete(self) -> None:
        self.api.delete(self.document, gracePeriodSeconds=0)

    def status(self, **status: Any) -> None:
        self.api.patch(self.document, {"status": status}, subresource="status")


@dataclass
class Site:
    """An operator that serves, and a client that trusts it."""

    field: Field
    operator: Operator
    client: httpx.AsyncClient

    @property
    def url(self) -> str:
        assert self.operator.broker is not None
        return self.operator.broker.server.url

    def path(self, name: str = "nightly", rest: str = "token", namespace: str = "") -> str:
        return f"{self.url}/v1/namespaces/{namespace or self.field.namespace}/identities/{name}/{rest}"

    async def get(
        self,
        token: str | None,
        name: str = "nightly",
        *,
        namespace: str = "",
        etag: str = "",
        wait: float | None = None,
        minimum: str = "",
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        if etag:
            headers["If-None-Match"] = etag
        if wait is not None:
            headers["Prefer"] = f"wait={wait}"
        query = {"minimum_remaining": minimum} if minimum else None
        return await self.client.get(self.path(name, namespace=namespace), headers=headers, params=query)

    async def post(self, token: str, rest: str, body: Any = None, name: str = "nightly") -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.client.post(self.path(name, rest), headers=headers, json={} if body is None else body)

    async def until_held(self, count: int = 1) -> None:
        """Wait until so many requests are held."""
        broker = self.operator.broker
        assert broker is not None
        async with asyncio.timeout(PATIENCE):
            while broker.held.count != count:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)


def prepare(field: Field, *identities: Document) -> None:
    """Let a provider know the client whose tokens the identities are."""
    secret = "bot-secret-1"
    field.issuer.clients.add(Client("bot", secrets=(secret,), methods=(AuthMethod.BASIC,), grants=tuple(Grant)))
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=secret), *identities)


@contextlib.asynccontextmanager
async def serving(field: Field, settings: BrokerSettings = LOOPBACK, **changes: Any) -> AsyncIterator[Site]:
    """Run an operator that serves the broker API."""
    async with field.operator(broker=settings, **changes) as operator:
        assert operator.broker is not None
        server = operator.broker.server
        async with asyncio.timeout(PATIENCE):
            while not server.listening:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        context = build_context(TlsSettings(authorities=server.certificates.bundle))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(verify=context, limits=limits, timeout=PATIENCE, trust_env=False) as client:
            yield Site(field, operator, client)


def limited(**limits: Any) -> BrokerSettings:
    """Return the settings with some limits changed."""
    return replace(LOOPBACK, limits=replace(LOOPBACK.limits, **limits))
