"""A thousand sidecars lose their broker at the same moment, and come back."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from keyferry.io.tls import RECORD
from tests.sidecar.pod import until

if TYPE_CHECKING:
    from keyferry.sidecar.follow import Follower
    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker

SIDECARS = 1000
SPREAD = 10.0
RATE = SIDECARS / SPREAD
"""Questions a second that the setting means."""


@pytest.mark.slow
async def test_a_thousand_sidecars_return_within_the_configured_rate(
    broker: FakeBroker, pod: PodPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two thousand ends of TLS in one process.
    monkeypatch.setattr("asyncio.sslproto.SSLProtocol.max_size", RECORD)
    names = [f"job-{number}" for number in range(SIDECARS)]
    dice = random.Random(3)  # noqa: S311 - jitter
    for name in names:
        broker.publish(name)
    followers = [pod.follower(name, spread=SPREAD, rng=dice) for name in names]
    returns: list[float] = []

    async def follow(follower: Follower) -> None:
        while True:
            pause = await follower.step()
            returns.append(time.monotonic() + pause)
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(follow(follower)) for follower in followers]
        await until(lambda: len(broker.held) == SIDECARS, "all at work")
        returns.clear()
        broker.stop()
        lost = time.monotonic()
        await until(lambda: len(returns) >= SIDECARS, "all to notice")
        await broker.start()
        planned = Counter(int(at - lost) for at in returns[:SIDECARS])
        assert max(planned.values()) <= RATE * 1.5, "they are spread as the setting says"
        assert max(returns[:SIDECARS]) - lost < SPREAD + 60, "and nobody stays away"
        await until(lambda: len(broker.held) == SIDECARS, "all to be back")
        broker.publish(names[-1], "news")
        await until(lambda: pod.read(f"{names[-1]}/token") == "news", "a renewal after that")
        asked = Counter(int(each.at - lost) for each in broker.asked if each.at > lost)
        questions = sum(asked.values())
        assert questions <= SIDECARS * 6, f"{questions} requests to bring {SIDECARS} back"
        for task in running:
            task.cancel()
