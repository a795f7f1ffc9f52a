"""A broker with many identities is killed at random times, hundreds of times."""

from __future__ import annotations

import random
import signal
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import RefreshPolicy, Rotation
from tests.crash.files import FileScene
from tests.crash.scene import APPROVAL, Identity, Kind, unique
from tests.crash.watcher import Watcher
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.crash.zygote import Zygote

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(1200)]

KILLS = 300
LIVES = (2.0, 3.0, 4.0)
TIMEOUT = 1
"""Seconds after which a request is given up: less than some brokers live, so that doubts are settled in the storm."""
LATENCY = 0.08
"""Seconds that the issuers take to answer, so that a kill finds requests under way."""
LONG = 0.15
"""Share of the brokers that live for long enough to settle a doubt."""
IDENTITIES = (
    *[(Kind.REFRESH, "strict", "{}")] * 9,
    *[(Kind.REFRESH, "strict", "{inDoubt: AskPerson}")] * 2,
    *[(Kind.REFRESH, "grace", "{reuseWindow: 60s}")] * 2,
    (Kind.REFRESH, "reusable", "{rotation: Reusable}"),
    *[(Kind.PASSWORD, "strict", "{}")] * 4,
    *[(Kind.CLIENT, "strict", "{}")] * 2,
)
POLICIES = {
    "strict": RefreshPolicy(),
    "grace": RefreshPolicy(reuse_window=60),
    "reusable": RefreshPolicy(rotation=Rotation.REUSABLE),
}


def lifetime(dice: random.Random) -> float:
    """Return for how many seconds a broker lives."""
    return dice.uniform(1.2, 2.2) if dice.random() < LONG else dice.uniform(0.03, 0.7)


def help_out(scene: FileScene) -> int:
    """Give a new seed to every identity that asked the last broker for one; return to how many."""
    waiting = [identity for identity in scene.identities if scene.reported(identity, APPROVAL)]
    for identity in waiting:
        scene.plant(identity)
    return len(waiting)


async def storm(scene: FileScene, dice: random.Random) -> int:
    """Kill again and again; return how often a person had to help."""
    helped = 0
    for _ in range(KILLS):
        broker = scene.start()
        end = time.monotonic() + lifetime(dice)
        while (left := end - time.monotonic()) > 0:
            await scene.pause(min(left, 0.05))
            assert broker.status is None, "it ended before it was killed"
        broker.kill()
        assert await broker.ended() == -signal.SIGKILL
        helped += help_out(scene)
    return helped


async def calm(scene: FileScene) -> None:
    """Let a last broker live until every identity is renewed, with a person's help where it needs that."""
    scene.start()
    renewals = {identity.name: scene.renewal(identity, 2) for identity in scene.identities}
    for identity in scene.identities:
        done = renewals[identity.name]

        def settled(identity: Identity = identity, done: Callable[[], bool] = done) -> bool:
            return done() or scene.reported(identity, APPROVAL)

        await scene.until(f"{identity.name} settles", settled)
        if scene.reported(identity, APPROVAL):
            scene.plant(identity)
            await scene.renewed(identity)
    await scene.finish()


async def test_no_moment_is_a_bad_one_to_die(tmp_path: Path, zygote: Zygote) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"random kills: seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        issuers = {
            name: await stack.enter_async_context(FaultIssuer(refresh_policy=policy, record_limit=1 << 30))
            for name, policy in POLICIES.items()
        }
        for issuer in issuers.values():
            issuer.faults.add(Fault(FaultKind.LATENCY, delay=LATENCY))
        identities = [
            Identity(
                unique(f"{kind.value}-{where}"),
                kind,
                issuers[where],
                refresh_tokens,
                LIVES[number % len(LIVES)],
                timeout=TIMEOUT,
            )
            for number, (kind, where, refresh_tokens) in enumerate(IDENTITIES)
        ]
        scene = FileScene(tmp_path / "random", zygote, identities)
        with Watcher() as watcher:
            scene.watch(watcher)
            try:
                helped = await storm(scene, random.Random(seed))  # noqa: S311 - to be repeatable, not secret
                await calm(scene)
            finally:
                await scene.close()
        issued = {token.value for issuer in issuers.values() for token in issuer.issued}
    verdict = scene.verdict()
    requests = sum(len(issuer.requests) for issuer in issuers.values())
    print(  # noqa: T201
        f"random kills: {len(scene.brokers) - 1} kills, {requests} requests, {verdict.tokens} refresh tokens,"
        f" {verdict.spends} spent, {verdict.doubts} replays claimed, {verdict.replays} presented twice,"
        f" {verdict.escrowed} answers in escrow, {verdict.rescued} of them found after a kill, a person helped"
        f" {helped} times, {watcher.reads} reads, {time.monotonic() - begun:.0f} s"
    )
    assert len(scene.brokers) == KILLS + 1
    assert not verdict.faults
    assert not watcher.faults(issued)
    # The storm did reach what it is about.
    assert verdict.doubts > 0
    assert verdict.replays > 0
