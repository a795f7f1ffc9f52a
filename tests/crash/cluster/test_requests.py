"""The replica that works is killed before and after every single write to the API server, from its first start on."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.crash.cases import Part, Terms, play
from tests.crash.cluster.scene import ClusterScene, Variant, stage
from tests.crash.scene import Kind
from tests.support.kube_faults import ApiFault, ApiFaultKind, ApiRequest
from tests.support.kube_proxy import KubeProxy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.cluster.scene import ClusterStage
    from tests.crash.zygote import Zygote
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.slow]

ROUNDS = 2
"""Publications until which every write is tried."""
AT_ONCE = 4
BEFORE, AFTER = ApiFaultKind.STALL_BEFORE, ApiFaultKind.STALL_AFTER


class Death(Part):
    """One replica that is killed at a write: before the API server gets it, or after it has answered."""

    scene: ClusterScene

    def __init__(self, stage: ClusterStage, number: int, kind: ApiFaultKind, terms: Terms) -> None:
        super().__init__(stage, f"{'before' if kind is BEFORE else 'after'}-{number}", terms)
        self.number = number
        self.kind = kind
        self.fatal: list[ApiRequest] = []

    def counts(self, request: ApiRequest) -> bool:
        """Tell whether a request is a write of its replicas; a Lease is renewed too often to be of interest."""
        return (
            request.namespace in (self.scene.home, self.scene.team)
            and request.is_write
            and request.resource != "leases"
        )

    async def die(self, proxy: KubeProxy) -> None:
        """Run a replica until it meets its write."""

        def kill(request: ApiRequest) -> None:
            self.fatal.append(request)
            self.scene.brokers[-1].kill()

        proxy.add(ApiFault(self.kind, when=self.counts, skip=self.number - 1, hook=kill))
        self.scene.start()
        await self.killed()

    async def go_on(self) -> None:
        """Let the next replica go on; with a person's help where a replay is due and refused."""
        self.scene.start()
        asked = self.scene.asks_or_renewed(self.identity)
        await self.scene.until("it goes on, or asks for a person", asked)
        if self.scene.reported(self.identity, "ApprovalRequired"):
            assert self.identity.kind is Kind.REFRESH
            # An answer that is in no escrow any more is lost, and nothing else is.
            assert self.scene.variant is Variant.TAKEOVER
            assert self.presented == [["Accepted", "Reused"]]
            assert "RefreshInDoubt" in self.reasons
            self.scene.plant(self.identity)
            await self.scene.renewed(self.identity)
        else:
            assert not self.presented


async def writes(stage: ClusterStage, proxy: KubeProxy, terms: Terms) -> list[str]:
    """Return what a replica writes until it has published so many times."""
    dry = Death(stage, 0, BEFORE, terms)
    try:
        dry.scene.start()
        await dry.scene.renewed(dry.identity, ROUNDS)
        await dry.scene.finish()
    finally:
        await dry.scene.close()
    return [f"{request.verb} {request.resource} {request.name}" for request in proxy.requests if dry.counts(request)]


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        pytest.param(Kind.REFRESH, Variant.RESTART, id="refresh-restart"),
        pytest.param(Kind.REFRESH, Variant.TAKEOVER, id="refresh-takeover"),
        pytest.param(Kind.PASSWORD, Variant.TAKEOVER, id="password-takeover"),
    ],
)
async def test_no_write_is_a_bad_moment_to_die(
    definitions: Cluster, replicas: Zygote, tmp_path: Path, kind: Kind, variant: Variant
) -> None:
    terms = Terms(kind, life=8.0, timeout=8)
    with KubeProxy(definitions.access, tmp_path) as proxy:
        async with stage(definitions, replicas, tmp_path, variant=variant, proxy=proxy) as scenes:
            made = await writes(scenes, proxy, terms)
            print(Counter(line.partition(" ")[0] for line in made), made)  # noqa: T201 - pytest shows it when it fails
            places = asyncio.Semaphore(AT_ONCE)

            async def act(death: Death) -> None:
                async with places:
                    await death.die(proxy)
                await death.go_on()

            deaths = [Death(scenes, n, when, terms) for n in range(1, len(made) + 1) for when in (BEFORE, AFTER)]
            await play(deaths, act)
            assert all(len(death.fatal) == 1 for death in deaths)
