"""Two replicas with many identities are killed at random times: the one that works, the other, or both."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import RefreshPolicy, Rotation
from keyferry_operator.leases import Timing
from tests.crash.cases import KILLED
from tests.crash.cluster.chronicle import SECRETS
from tests.crash.cluster.scene import PATIENT, ClusterScene, Variant, stage
from tests.crash.scene import APPROVAL, Identity, Kind, Verdict, unique
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.cluster.scene import ClusterStage
    from tests.crash.zygote import Broker, Zygote
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(1200)]

SCENES = 4
"""Storms side by side, each over two replicas: while one waits for a Lease to run out, another is struck."""
KILLS = 26
"""In each of them."""
CALM_BETWEEN = 4
"""Kills, at least, between two lulls that are long enough to settle what is in doubt."""
TIMEOUT = 2
MARGIN = 2.0
LULL = TIMEOUT + MARGIN + 4.0
AT_WORK = 0.8
"""Share of the kills that wait until the leader sends something."""
HASTY = Timing(duration=2.0, deadline=1.5, retry=0.3, request=1.0)
LIVES = (3.0, 4.0, 5.0)
LATENCY = 0.1
"""Seconds that the issuers take to answer, so that a kill finds requests under way."""
LEADER_PATIENCE = 180.0
POLICIES = {
    "strict": RefreshPolicy(),
    "grace": RefreshPolicy(reuse_window=60),
    "reusable": RefreshPolicy(rotation=Rotation.REUSABLE),
}
IDENTITIES = (
    (
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{inDoubt: AskPerson}"),
        (Kind.CLIENT, "strict", "{}"),
        (Kind.EXCHANGE, "strict", "{}"),
    ),
    (
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{}"),
        (Kind.PASSWORD, "strict", "{}"),
        (Kind.ASSERTION, "strict", "{}"),
    ),
    (
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{inDoubt: AskPerson}"),
        (Kind.REFRESH, "grace", "{reuseWindow: 60s}"),
        (Kind.PASSWORD, "strict", "{}"),
    ),
    (
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "strict", "{}"),
        (Kind.REFRESH, "grace", "{reuseWindow: 60s}"),
        (Kind.REFRESH, "reusable", "{rotation: Reusable}"),
        (Kind.PASSWORD, "strict", "{}"),
    ),
)


@dataclass
class Storm:
    """One scene, and what was done to its replicas."""

    scene: ClusterScene
    dice: random.Random
    running: dict[str, Broker] = field(default_factory=dict)
    kills: int = 0
    of_leaders: int = 0
    of_both: int = 0
    helped: int = 0
    answered: dict[str, int] = field(default_factory=dict)
    """How much had been told of an identity when a person helped it last."""

    async def rage(self) -> None:
        """Kill again and again, and start again what was killed."""
        self.start("a", "b")
        since_lull = 0
        while self.kills < KILLS:
            await self.leader()
            if since_lull >= CALM_BETWEEN:
                since_lull = 0
                await self.settle(LULL)
            if self.dice.random() < AT_WORK:
                await self.at_work()
                await self.settle(self.dice.uniform(0.0, 3 * LATENCY))
            else:
                await self.settle(self.dice.uniform(0.0, 2.0))
            await self.strike()
            since_lull += 1
            self.help_out()
            await asyncio.sleep(self.dice.uniform(0.0, 0.3))
            self.start(*({"a", "b"} - self.running.keys()))

    def start(self, *instances: str) -> None:
        for instance in sorted(instances):
            self.running[instance] = self.scene.replica(instance)

    async def strike(self) -> None:
        """Kill the replica that works, mostly."""
        leader = self.scene.holder()
        roll = self.dice.random()
        victims = {"a", "b"} if roll < 0.2 else {leader} if roll < 0.9 else {"a", "b"} - {leader}
        self.of_leaders += leader in victims
        self.of_both += len(victims) == 2
        for victim in victims & self.running.keys():
            broker = self.running.pop(victim)
            broker.kill()
            self.kills += await broker.ended() == KILLED

    async def leader(self) -> None:
        """Wait until a replica that runs holds the Lease."""
        async with asyncio.timeout(LEADER_PATIENCE):
            while self.scene.holder() not in self.running:
                await self.settle(0.02)

    async def at_work(self) -> None:
        """Wait until a request of its identities arrives; not for long, for they may all be in doubt."""
        names = {identity.name for identity in self.scene.identities}
        issuers = {id(identity.issuer): identity.issuer for identity in self.scene.identities}.values()

        def sent() -> int:
            return sum(request.client in names for issuer in issuers for request in issuer.requests)

        before, end = sent(), time.monotonic() + LULL
        while sent() == before and time.monotonic() < end:
            await self.settle(0.01)

    async def settle(self, seconds: float) -> None:
        """Let the replicas work, and help where a person is needed."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))
            ended = [instance for instance, broker in self.running.items() if broker.has_ended()]
            assert not ended, f"{ended} ended before they were killed; {self.scene.last_words()}"
            self.help_out()

    def help_out(self) -> None:
        """Give a new seed to every identity that asked for one since it got the last."""
        for identity in self.scene.identities:
            told = len(self.scene.statuses(identity))
            if self.scene.reported(identity, APPROVAL) and told > self.answered.get(identity.name, 0):
                self.answered[identity.name] = told
                self.scene.plant(identity)
                self.helped += 1

    async def calm(self) -> None:
        """Let two last replicas live until every identity is renewed, with a person's help where it needs that."""
        for broker in self.running.values():
            broker.kill()
            await broker.ended()
        self.scene.lease = PATIENT
        self.start("a", "b")
        self.scene.brokers.append(self.running["a"])
        renewed = {identity.name: self.scene.renewal(identity, 2) for identity in self.scene.identities}

        def settled() -> bool:
            self.help_out()
            return all(done() for done in renewed.values())

        await self.scene.until("every identity is renewed", settled)
        await self.scene.finish()


def storms(stage: ClusterStage, issuers: dict[str, FaultIssuer], seed: int) -> list[Storm]:
    """Set the scenes up."""
    made = []
    for number, kinds in enumerate(IDENTITIES[:SCENES]):
        identities = [
            Identity(
                unique(f"{kind.value}-{where}"),
                kind,
                issuers[where],
                refresh_tokens,
                LIVES[place % len(LIVES)],
                timeout=TIMEOUT,
            )
            for place, (kind, where, refresh_tokens) in enumerate(kinds)
        ]
        for before, identity in itertools.pairwise(identities):
            if identity.kind is Kind.EXCHANGE:
                identity.subject, before.consumers = before.name, f"[{{identityName: {identity.name}}}]"
        dice = random.Random(seed + number)  # noqa: S311 - to be repeatable, not secret
        made.append(Storm(stage.scene_of(f"storm-{number}", identities), dice))
    return made


def sums(made: list[Storm], issuers: dict[str, FaultIssuer], begun: float) -> Verdict:
    """Judge all storms together, and print what happened."""
    verdict = Verdict()
    for storm in made:
        verdict.add(storm.scene.verdict())
    versions = sum(
        len(storm.scene.stage.chronicle.of(SECRETS, storm.scene.team, storm.scene.target(identity)))
        for storm in made
        for identity in storm.scene.identities
    )
    print(  # noqa: T201
        f"random kills of two replicas: {sum(storm.kills for storm in made)} kills"
        f" ({sum(storm.of_leaders for storm in made)} of leaders, {sum(storm.of_both for storm in made)} times both),"
        f" {sum(len(issuer.requests) for issuer in issuers.values())} requests, {verdict.tokens} refresh tokens,"
        f" {verdict.spends} spent, {verdict.doubts} replays claimed, {verdict.replays} presented twice,"
        f" {verdict.rescued} answers found in escrow after a kill, {versions} versions of published Secrets,"
        f" a person helped {sum(storm.helped for storm in made)} times, {time.monotonic() - begun:.0f} s"
    )
    return verdict


async def test_no_moment_is_a_bad_one_to_die(definitions: Cluster, replicas: Zygote, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"random kills of two replicas: seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        issuers = {
            name: await stack.enter_async_context(FaultIssuer(refresh_policy=policy, record_limit=1 << 30))
            for name, policy in POLICIES.items()
        }
        for issuer in issuers.values():
            issuer.faults.add(Fault(FaultKind.LATENCY, delay=LATENCY))
        scenes = await stack.enter_async_context(
            stage(definitions, replicas, tmp_path, variant=Variant.RETURN, lease=HASTY, margin=MARGIN)
        )
        made = storms(scenes, issuers, seed)
        try:
            await asyncio.gather(*(storm.rage() for storm in made))
            await asyncio.gather(*(storm.calm() for storm in made))
            verdict = sums(made, issuers, begun)
        finally:
            for storm in made:
                await storm.scene.close()
    assert sum(storm.kills for storm in made) >= 100
    assert not verdict.faults
    # The storm did reach what it is about.
    assert verdict.doubts > 0
    assert verdict.replays > 0
