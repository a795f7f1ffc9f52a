"""The program that pods run, with an operator and an API server that are real."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.operator.live.pods import LOOPBACK, Pod, Site, prepare, serving
from tests.sidecar.contract import ask_everything
from tests.sidecar.pod import PodPlace, until
from tests.support.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.operator.live.conftest import Field

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
