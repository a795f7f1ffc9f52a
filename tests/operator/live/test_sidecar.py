"""The program that pods run, with an operator and an API server that are real."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from shutil import copyfile
from typing import TYPE_CHECKING

import jwt
import pytest

from keyferry_operator.crds import manifests
from tests.operator.live.conftest import Field
from tests.operator.live.pods import LOOPBACK, Pod, Site, prepare, serving
from tests.sidecar.contract import ask_everything
from tests.sidecar.pod import PodPlace, until
from tests.support.issuer import FaultIssuer
from tests.support.keycloak_realm import SigningKey
from tests.support.kube_servers import Options
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

CONSUMERS = [{"serviceAccountName": "ingest"}]


def place_of(site: Site, base: Path, pod: Pod) -> PodPlace:
    assert site.operator.broker is not None
    bundle = site.operator.broker.server.certificates.bundle
    assert bundle is not None
    return PodPlace(base, site.url, bundle, site.field.namespace, pod.token())


async def test_the_operators_broker_keeps_the_contract(field: Field, tmp_path: Path) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field) as site:
        await field.until_ready("nightly")
        place = place_of(site, tmp_path, Pod.create(field, "ingest-1", inject="nightly,never-there"))
        broker = site.operator.broker
        assert broker is not None
        renew = partial(asyncio.to_thread, field.renew, "nightly", "now")
        await ask_everything(place, renew, lambda: broker.held.count)
        for client in place.clients:
            client.close()


async def test_a_pods_files_follow_its_operator_and_outlive_it(field: Field, tmp_path: Path) -> None:
    prepare(field)
    settings = replace(LOOPBACK, port=free_port())
    pod = Pod.create(field, "ingest-1")
    async with AsyncExitStack() as stack:
        async with serving(field, settings) as site:
            place = place_of(site, tmp_path, pod)
            await stack.enter_async_context(place.running("--spread", "2s"))
            await until(lambda: "nightly: NotFound" in place.log, "word that there is no such identity")
            field.apply(field.identity("nightly", consumers=CONSUMERS))
            await until(place.read, "the first token")
            assert place.read() == field.token("nightly")
            await until(lambda: "the containers may start" in place.log, "the gate")
            assert (await place.check())[0] == 0
        kept = place.read()
        await until(lambda: "its files stay as they are" in place.log, "word that the operator is gone")
        assert place.read() == kept
        async with serving(field, settings):
            await until(lambda: "the broker answers again" in place.log, "recovery")
            await asyncio.to_thread(field.renew, "nightly", "now")
            await until(lambda: place.read() not in ("", kept), "the renewal")
            await field.until_ready("nightly", revision=2)
            assert place.read() == field.token("nightly")
    assert "Traceback" not in place.log


def rotate_keys(cluster: Cluster) -> None:
    """Have the API server sign with another key from now on; what the one before signed is still good."""
    control = cluster.control
    assert control is not None
    key, before, flags = (control.files / name for name in ("service-account.key", "before.key", "api-server-flags"))
    cluster.stop_apiserver()
    copyfile(key, before)
    key.write_text(SigningKey.create("RS256", "rotated").private_key)
    flags.write_text(f"{flags.read_text()}\n--service-account-key-file={before}")
    cluster.start_apiserver()


def key_of(token: str) -> object:
    return jwt.get_unverified_header(token)["kid"]


@pytest.mark.slow
async def test_the_clusters_keys_and_the_brokers_authority_are_rotated_under_a_sidecar(
    start_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = await asyncio.to_thread(start_cluster, Options(audit=False))
    for manifest in manifests():
        cluster.api.apply(manifest, manager="user")
    settings = replace(LOOPBACK, port=free_port())
    async with FaultIssuer() as issuer, AsyncExitStack() as stack:
        field = Field(cluster, cluster.create_namespace("team"), cluster.create_namespace("home"), issuer, tmp_path)
        prepare(field, field.identity("nightly", consumers=CONSUMERS))
        pod = Pod.create(field, "ingest-1")
        async with serving(field, settings) as site:
            place = place_of(site, tmp_path, pod)
            await stack.enter_async_context(place.running("--spread", "2s"))
            await until(place.read, "the first token")
            first = place.read()
            await site.until_held()
            await asyncio.to_thread(rotate_keys, cluster)
            fresh = pod.token()
            assert key_of(fresh) != key_of(place.credential)
            place.token.write_text(fresh)  # as the kubelet does in time
            await asyncio.to_thread(field.renew, "nightly", "now")
            await until(lambda: place.read() != first, "the renewal")
            await site.until_held()  # the next request shows the token of the other key
            assert (await site.get(place.credential)).status_code == 200, "that of the first is still good"
        second, known = place.read(), place.authorities.read_text()
        cluster.api.delete(cluster.api.get("v1", "Secret", "keyferry-serving", field.home))
        await until(lambda: "its files stay as they are" in place.log, "word that the operator is gone")
        async with serving(field, settings) as site:
            await field.until(lambda: _authorities(field) not in ("", known))
            assert known not in _authorities(field), "the sidecar trusts none of them yet"
            assert place.read() == second
            place.authorities.write_text(_authorities(field))  # as the kubelet does
            await until(lambda: "the broker answers again" in place.log, "recovery")
            await site.until_held()
            assert place.read() == second == field.token("nightly")
    assert "Traceback" not in place.log


def _authorities(field: Field) -> str:
    found = field.cluster.api.find("v1", "ConfigMap", "keyferry-ca", field.namespace)
    return str((found or {}).get("data", {}).get("ca.crt", ""))
