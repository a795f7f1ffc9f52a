"""The broker API's certificate where replicas make it together, and the authorities that sidecars are told to trust."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.io.tls import TlsSettings, build_context
from keyferry_operator.api.authority import DEFAULT_LIVES
from keyferry_operator.api.broker import BrokerSettings
from keyferry_operator.api.certificates import Certificates, SecretSource
from keyferry_operator.client import KubeClient

if TYPE_CHECKING:
    from typing import Any

    from tests.operator.live.conftest import Field

pytestmark = pytest.mark.cluster

HOSTS = ("keyferry-broker.keyferry.svc", "127.0.0.1")


def secret(field: Field) -> dict[str, Any]:
    return field.cluster.api.get("v1", "Secret", "keyferry-serving", field.home)


async def test_replicas_that_start_at_once_make_one_certificate_and_rotate_it_together(field: Field) -> None:
    now = [dt.datetime.now(dt.UTC)]
    async with KubeClient(field.login()) as client:
        replicas = [Certificates(SecretSource(client, field.home, HOSTS, now=lambda: now[0])) for _ in range(4)]
        await asyncio.gather(*(replica.start() for replica in replicas))
        assert len({replica.bundle for replica in replicas}) == 1
        first, made = replicas[0].bundle, secret(field)
        assert base64.b64decode(made["data"]["ca.crt"]).decode() == first
        assert made["type"] == "kubernetes.io/tls"
        assert not any(await asyncio.gather(*(replica.refresh() for replica in replicas)))
        assert secret(field)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
        now[0] += DEFAULT_LIVES.authority * 0.7  # the certificate lapsed meanwhile, and the authority is to
        assert all(await asyncio.gather(*(replica.refresh() for replica in replicas)))
        assert len({replica.bundle for replica in replicas}) == 1
        assert replicas[0].bundle.startswith(first), "the old authority is trusted beside the new one"


async def test_a_secret_that_was_spoilt_or_deleted_is_made_again(field: Field) -> None:
    async with KubeClient(field.login()) as client:
        replica = Certificates(SecretSource(client, field.home, HOSTS))
        await replica.start()
        first = replica.bundle
        field.cluster.api.patch(secret(field), {"data": {"authorities": base64.b64encode(b"[]").decode()}})
        assert await replica.refresh()
        second = replica.bundle
        field.cluster.api.delete(secret(field))
        assert await replica.refresh()
        assert len({first, second, replica.bundle}) == 3


async def test_the_operator_serves_and_tells_whom_to_trust_where_there_are_consumers(field: Field) -> None:
    field.apply(field.provider(), field.secret("bot", secret="bot-secret-1"))
    field.apply(field.identity("unconsumed"), field.identity("chained", consumers=[{"identityName": "unconsumed"}]))
    settings = BrokerSettings("127.0.0.1", 0, hosts=("127.0.0.1",))
    api = field.cluster.api
    async with field.operator(broker=settings) as operator:
        assert operator.broker is not None
        server = operator.broker.server
        await field.until(lambda: server.listening and api.find("v1", "ConfigMap", "keyferry-ca", field.home))
        trusted = api.get("v1", "ConfigMap", "keyferry-ca", field.home)["data"]["ca.crt"]
        assert api.find("v1", "ConfigMap", "keyferry-ca", field.namespace) is None
        field.apply(field.identity("nightly", consumers=[{"serviceAccountName": "ingest"}]))
        await field.until(lambda: api.find("v1", "ConfigMap", "keyferry-ca", field.namespace))
        assert api.get("v1", "ConfigMap", "keyferry-ca", field.namespace)["data"]["ca.crt"] == trusted
        async with httpx.AsyncClient(verify=build_context(TlsSettings(authorities=trusted)), timeout=60) as client:
            assert (await client.get(f"{server.url}/nowhere")).status_code == 404
