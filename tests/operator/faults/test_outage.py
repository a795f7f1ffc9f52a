"""The API server is away across renewals: what was obtained is kept and written later, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry_operator.process import Probes
from tests.operator.faults.marks import ENDS_EARLY
from tests.operator.faults.site import Site, define
from tests.support.issuer import FaultIssuer
from tests.support.kube_servers import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.operator.faults.site import Replica
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, ENDS_EARLY]

OUTAGE = float(os.environ.get("KEYFERRY_TEST_OUTAGE", "60"))
"""Seconds; 300 are the five minutes that are promised. Tokens live for as long, so each is renewed, and runs out."""
ASKED = ("asked-0", "asked-1", "asked-private")
"""Are being renewed when the API server goes: their answers arrive when nothing can be stored."""
IDLE = ("idle-0", "idle-1", "client")
NAMES = (*ASKED, *IDLE)


@pytest.fixture
async def away(start_cluster: Callable[..., Cluster], tmp_path: Path) -> AsyncIterator[Site]:
    """Return a site on a cluster of its own, whose API server can be stopped."""
    cluster = await asyncio.to_thread(start_cluster, Options(audit=False))
    define(cluster)
    async with FaultIssuer() as issuer:
        yield Site(cluster, cluster.create_namespace("team"), cluster.create_namespace("keyferry"), issuer, tmp_path)


@pytest.mark.parametrize("names", [("first",), ("first", "second")], ids=["one", "two"])
async def test_what_was_obtained_is_written_when_the_api_server_is_back(away: Site, names: tuple[str, ...]) -> None:
    away.prepare(lifetime=OUTAGE, timeout="120s")
    for name in ("asked-0", "asked-1", "idle-0", "idle-1"):
        away.apply(away.seed(name), away.seeded(name))
    away.apply(away.seed("asked-private"), away.seeded("asked-private", target={"type": "None"}))
    away.apply(away.identity("client"))
    async with contextlib.AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(away.replica(name, leader_election=len(names) > 1)) for name in names
        ]
        await away.until(lambda: away.ready(*NAMES))
        probed = [await stack.enter_async_context(probes(replica)) for replica in replicas]
        away.issuer.pause()
        sent = _sent(away)
        away.ask_renewal("now", *ASKED)
        await away.until(lambda: _sent(away) == sent + len(ASKED))
        await asyncio.to_thread(away.cluster.stop_apiserver)
        away.issuer.resume()
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + OUTAGE:
            await asyncio.sleep(1)
            assert _sent(away) == sent + len(ASKED), "nothing is spent whose answer could not be stored"
            for url in probed:
                text = await _answers(url)
                # Of two, neither can hold its Lease, so neither tells of what it does not look after.
                shown = [f'keyferry_identity_ready{{identity="{name}",namespace="{away.namespace}"}}' for name in NAMES]
                assert len(names) > 1 or all(line in text for line in shown)
        assert _kept(away, names) == len(ASKED)
        await asyncio.to_thread(away.cluster.start_apiserver)
        await away.until(lambda: away.ready(*NAMES, revision=2))
        await away.until(lambda: _all_good(away))
        for url in probed:
            await _answers(url)
        # Their tokens are as old as the outage is long, so that some are just being renewed once more.
        await away.until(lambda: _settled(away))
    assert away.spent_twice() == []
    assert not any(over for _sent, over in away.sessions().values())
    assert _kept(away, names) == 0


@contextlib.asynccontextmanager
async def probes(replica: Replica) -> AsyncIterator[str]:
    """Serve what the kubelet and Prometheus ask a replica, at the address that is yielded; it must not end."""
    assert replica.now is not None
    server = Probes(replica.now, "127.0.0.1:0")
    await server.start()
    try:
        yield server.url.removesuffix("/metrics")
        assert replica.ends == []
    finally:
        await server.close()


async def _answers(url: str) -> str:
    """See that a replica counts as ready, since another could do no better; return its metrics."""
    async with httpx.AsyncClient(timeout=60) as client:
        for probe in ("/healthz", "/readyz"):
            answer = await client.get(f"{url}{probe}")
            assert (answer.status_code, answer.text) == (200, "ok\n")
        return (await client.get(f"{url}/metrics")).text


def _all_good(site: Site) -> bool:
    good, targets = site.good_tokens(), site.targets()
    return all(site.published_token(name) in good for name in targets) and len(targets) == len(NAMES) - 1


def _settled(site: Site) -> bool:
    return all(record.claim is None and not record.refresh_ended for record in site.states().values())


def _sent(site: Site) -> int:
    """Return how many refresh tokens arrived at the issuer so far."""
    return sum(site.issuer.sent_refresh_tokens().values())


def _kept(site: Site, names: tuple[str, ...]) -> int:
    """Return how many answers lie in escrow."""
    return sum(len(list((site.escrow / f"escrow-{name}" / "escrow").glob("*"))) for name in names)
