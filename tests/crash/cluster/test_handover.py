"""From one replica to the other: killed, stopped, or robbed of its Lease, with the times that people have."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.cases import KILLED, Part, Terms
from tests.crash.cluster.chronicle import LEASES
from tests.crash.cluster.scene import PEOPLES, ClusterScene, Variant, stage
from tests.crash.scene import PATIENCE
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.crash.zygote import Zygote
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.slow]

TERMS = Terms(life=60.0, renewal="{before: 55s}", timeout=20)
"""Renewed every five seconds, and not in need of it for a minute."""
TAKEOVER = 30.0
LONGEST_TURN = 0.2
"""Seconds between two looks on a machine that is not too busy."""
SLOW = 4.0
"""Seconds that an answer takes: while it is on its way, the replica is told to end."""


class Pair(Part):
    """Two replicas; the first works, and the second stands by."""

    scene: ClusterScene

    async def begin(self) -> None:
        self.first = self.scene.replica("a")
        self.scene.brokers.append(self.first)
        await self.scene.renewed(self.identity, 1)
        self.second = self.scene.replica("b")
        await self.until(lambda: self.scene.says("b", "this replica stands by"))

    async def until(self, what: Callable[[], object]) -> float:
        """Wait until something is so; return for how many seconds, those not counted in which nobody was let run."""
        seconds, looked = 0.0, time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while not what():
                await asyncio.sleep(0.02)
                now = time.monotonic()
                seconds, looked = seconds + min(now - looked, LONGEST_TURN), now
        return seconds

    def slow_down(self) -> None:
        """Let the next answer be late: the refresh token is spent at once."""
        fault = Fault(FaultKind.STALL_AFTER, client=self.identity.name, grant="refresh_token", times=1, delay=SLOW)
        self.identity.issuer.faults.add(fault)

    def spending(self) -> bool:
        """Tell whether the late answer is on its way."""
        return any(request.fault is not None and request.processed for request in self.identity.issuer.requests)

    async def record(self) -> dict[str, Any]:
        """Return the private state as it is now."""
        await self.scene.caught_up()
        return self.scene.record(self.identity)

    async def taken_over(self) -> float:
        """Wait until the second replica holds the Lease and has renewed the token; return when it got the Lease."""
        seconds = await self.until(lambda: self.scene.holder() == "b")
        self.scene.brokers.append(self.second)
        await self.scene.renewed(self.identity, 2)
        return seconds

    async def end(self) -> None:
        """End the second, and judge."""
        await self.scene.finish()
        assert not self.presented
        assert not self.scene.verdict().faults
        assert self.scene.verdict().doubts == 0


@pytest.fixture
async def pair(definitions: Cluster, replicas: Zygote, tmp_path: Path) -> AsyncIterator[Pair]:
    """Return two replicas at work; whatever of them still runs is ended after the test."""
    async with stage(definitions, replicas, tmp_path, variant=Variant.TAKEOVER, lease=PEOPLES) as scenes:
        pair = Pair(scenes, "pair", TERMS)
        try:
            await pair.begin()
            yield pair
        finally:
            await pair.scene.close()


async def test_a_killed_replica_is_replaced_within_half_a_minute(pair: Pair) -> None:
    # Between two renewals: what a kill in the midst of one means is another test's.
    await pair.scene.renewed(pair.identity, 1)
    pair.first.kill()
    assert await pair.first.ended() == KILLED
    seconds = await pair.taken_over()
    print(f"takeover after SIGKILL: {seconds:.1f} s")  # noqa: T201
    assert seconds < TAKEOVER
    await pair.end()


async def test_a_stopped_replica_finishes_its_spend_and_hands_over(pair: Pair) -> None:
    pair.slow_down()
    await pair.until(pair.spending)
    before = await pair.record()
    pair.first.terminate()
    assert await pair.first.ended() == 0
    after = await pair.record()
    assert after["generation"] == before["generation"] + 1
    assert "claim" not in after
    seconds = await pair.taken_over()
    print(f"hand-over after SIGTERM: {seconds:.1f} s")  # noqa: T201
    # The Lease was released: nobody waits until it has run out.
    assert seconds < PEOPLES.duration
    await pair.end()


async def test_a_replica_that_loses_its_lease_finishes_its_spend_and_begins_no_other(
    definitions: Cluster, pair: Pair
) -> None:
    pair.slow_down()
    await pair.until(pair.spending)
    before = await pair.record()
    lease = definitions.api.get(*LEASES, "keyferry-operator", pair.scene.home)
    definitions.api.patch(lease, {"spec": {"holderIdentity": "somebody"}})
    await pair.until(lambda: pair.scene.record(pair.identity)["generation"] > before["generation"])
    begun = len(pair.identity.issuer.requests)
    assert "claim" not in await pair.record()
    # Somebody never renews it: it runs out, and one of the two goes on. Until then nothing is sent.
    await pair.until(lambda: pair.scene.holder() in {"a", "b"})
    assert len(pair.identity.issuer.requests) == begun
    await pair.scene.renewed(pair.identity, 2)
    await pair.end()
