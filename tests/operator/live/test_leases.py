"""Two replicas on a real API server: one works, the other takes over; and a renewal that somebody asked for."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry_operator.names import LEASE
from tests.operator.live.replicas import holder, replica
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


def _bot(field: Field) -> None:
    field.issuer.clients.add(
        Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=(Grant.CLIENT_CREDENTIALS,))
    )
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))


def _holder(field: Field) -> str:
    return holder(field, LEASE)


async def _seconds_until(field: Field, what: Callable[[], object]) -> float:
    begun = asyncio.get_running_loop().time()
    await field.until(what)
    return asyncio.get_running_loop().time() - begun


def _ready(field: Field, revision: int) -> bool:
    return field.condition("nightly").get("status") == "True" and field.status("nightly").get("revision") == revision


async def test_a_killed_leader_is_replaced_and_nothing_is_exchanged_anew(field: Field, tmp_path: Path) -> None:
    _bot(field)
    async with replica(field, "first", tmp_path) as first:
        await field.until(lambda: _ready(field, 1))
        async with replica(field, "second", tmp_path) as second:
            await field.until(lambda: second.says("this replica stands by"))
            assert _holder(field).startswith("first")
            first.process.send_signal(signal.SIGKILL)
            await first.process.wait()
            passed = await _seconds_until(field, lambda: _holder(field).startswith("second"))
            print(f"\na killed leader was replaced after {passed:.1f} s (the aim: 30 s)")  # noqa: T201
            assert len(field.issuer.issued) == 1
            field.renew("nightly", "now")
            await field.until(lambda: _ready(field, 2))
            assert len(field.issuer.issued) == 2
            assert SECRET not in first.log.read_text() + second.log.read_text()
            assert not any(token.value in second.log.read_text() for token in field.issuer.issued)


async def test_a_stopped_leader_hands_over_at_once(field: Field, tmp_path: Path) -> None:
    _bot(field)
    async with replica(field, "first", tmp_path) as first:
        await field.until(lambda: _ready(field, 1))
        async with replica(field, "second", tmp_path) as second:
            await field.until(lambda: second.says("this replica stands by"))
            first.process.send_signal(signal.SIGTERM)
            assert await first.ends() == 0
            print(f"\na stopped leader was followed after {await _seconds_until(field, second.leads):.1f} s")  # noqa: T201
            second.process.send_signal(signal.SIGTERM)
            assert await second.ends() == 0
    assert _holder(field) == ""
    assert len(field.issuer.issued) == 1


async def test_a_standby_can_be_stopped(field: Field, tmp_path: Path) -> None:
    _bot(field)
    async with (
        replica(field, "first", tmp_path) as first,
        replica(field, "second", tmp_path) as second,
    ):
        await field.until(lambda: first.leads() or second.leads())
        leader, standby = (first, second) if first.leads() else (second, first)
        await field.until(lambda: standby.says("this replica stands by"))
        standby.process.send_signal(signal.SIGTERM)
        assert await standby.ends() == 0
        assert _holder(field) == leader.name


async def test_what_is_being_exchanged_when_the_leader_is_stopped_is_finished(field: Field, tmp_path: Path) -> None:
    field.issuer.faults.add(Fault(FaultKind.LATENCY, times=1, delay=6.0))
    _bot(field)
    async with replica(field, "first", tmp_path) as first:
        await field.until(lambda: any(request.path == "/token" for request in field.issuer.requests))
        assert not field.target("nightly")
        first.process.send_signal(signal.SIGTERM)
        assert await first.ends() == 0
    assert field.target("nightly")
    assert _ready(field, 1)
    assert len(field.issuer.issued) == 1


async def test_metrics_are_served(field: Field, tmp_path: Path) -> None:
    _bot(field)
    async with (
        replica(field, "first", tmp_path, "--metrics", "127.0.0.1:0") as first,
        httpx.AsyncClient(timeout=60) as client,
    ):
        await field.until(lambda: _ready(field, 1))
        url = next(line["message"] for line in first.lines() if "metrics are at" in line["message"]).rsplit(" ", 1)[-1]
        for probe in ("/healthz", "/readyz"):
            assert (await client.get(url.replace("/metrics", probe))).text == "ok\n"
        text = (await client.get(url)).text
        assert f'keyferry_identity_ready{{identity="nightly",namespace="{field.namespace}"}} 1' in text
        assert 'keyferry_renewals_total{provider="' in text
        assert re.search(r'keyferry_renewals_total\{.*result="success"\} 1\.0', text)
        assert any(line["event"] == "obtained" and line["identity"] == "nightly" for line in first.lines())


async def test_a_leader_that_lost_its_lease_stands_by_and_leads_again(field: Field, tmp_path: Path) -> None:
    _bot(field)
    async with replica(field, "first", tmp_path) as first:
        await field.until(lambda: _ready(field, 1))
        lease = field.cluster.api.find("coordination.k8s.io/v1", "Lease", LEASE, field.home)
        assert lease is not None
        field.cluster.api.patch(lease, {"spec": {"holderIdentity": "somebody"}})
        await field.until(lambda: first.says("somebody holds it now"))
        field.renew("nightly", "now")
        await field.until(lambda: first.says("somebody leads; this replica stands by"))
        assert len(field.issuer.issued) == 1
        await field.until(lambda: _holder(field).startswith("first"))  # whoever that was never renewed it
        await field.until(lambda: _ready(field, 2))
        assert len(field.issuer.issued) == 2


async def test_a_renewal_is_made_once_over_a_restart(field: Field) -> None:
    _bot(field)
    async with field.operator():
        await field.until(lambda: _ready(field, 1))
        field.renew("nightly", "please")
        await field.until(lambda: field.status("nightly").get("lastHandledRenew") == "please")
        await field.until(lambda: _ready(field, 2))
    version = field.status("nightly")
    async with field.operator():
        field.apply(field.identity("later"))
        await field.until(lambda: field.condition("later").get("status") == "True")
    assert field.status("nightly") == version
    assert len(field.issuer.issued) == 3
