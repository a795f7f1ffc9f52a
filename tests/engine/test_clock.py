"""A wall clock that jumps an hour either way under a broker at work."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import Reason
from tests.engine.test_outage import BURST, RATE, assert_within_rate
from tests.engine.world import REFRESH, SECRET, client_of, identity, secret, until

if TYPE_CHECKING:
    from tests.engine.clocks import FastClock
    from tests.engine.world import World

HOUR = 3_600.0
NAMES = [f"bot-{number:02}" for number in range(12)]


def populate(world: World, lifetime: int = 300) -> None:
    for name in NAMES:
        world.add_client(name, access_lifetime=lifetime)
    world.write(
        "provider.yaml",
        world.provider(limits={"requestsPerSecond": RATE, "burst": BURST}),
        secret("bot", secret=SECRET),
        secret("seed", token=world.issuer.seed_refresh_token("bot", "ada")),
    )
    world.write(
        "bots.yaml",
        identity("seeded", grant=REFRESH),
        *(identity(name, client=client_of(name)) for name in NAMES),
        *(secret(name, secret=SECRET) for name in NAMES),
    )


@pytest.mark.parametrize("jump", [HOUR, -HOUR, -120.0], ids=["ahead", "back", "a little back"])
async def test_after_a_jump_everything_is_renewed_once_and_in_rate(world: World, clock: FastClock, jump: float) -> None:
    populate(world)
    everybody = (*NAMES, "seeded")
    async with world.broker():
        await world.fresh(*everybody)
        seen, sleeps, at = len(world.requests()), clock.sleeps, clock.monotonic()
        clock.jump(jump)
        await until(lambda: all(world.status(name).revision == 2 for name in everybody))
        assert clock.monotonic() - at < 30 + len(everybody) / RATE + 60, "noticed within 30 s"
        await world.fresh(*everybody, revision=2)
        await asyncio.sleep(2)
        arrivals = [request.at for request in world.requests()[seen:]]
        assert len(arrivals) == len(everybody), "once each"
        assert_within_rate(arrivals, 4)
        assert clock.sleeps - sleeps < 1_500, "nothing spins"
        assert all(world.valid_tokens()[world.token(name)] for name in everybody)
        assert all(world.shown(name) is Reason.ISSUED for name in everybody)
        for name in everybody:
            renewal = world.status(name).renewal_time
            assert renewal is not None
            assert 0 < renewal - clock.now() < 300
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


async def test_a_jump_back_does_not_stretch_a_backoff(world: World, clock: FastClock) -> None:
    populate(world)
    world.issuer.stop()
    async with world.broker():
        await until(lambda: all(world.status(name).next_attempt_time for name in NAMES))
        clock.jump(-HOUR)
        await world.issuer.start()
        at = clock.monotonic()
        await world.fresh(*NAMES)
        assert clock.monotonic() - at < 600


async def test_a_jump_back_while_the_broker_was_off_is_noticed_at_the_start(world: World, clock: FastClock) -> None:
    populate(world)
    async with world.broker():
        await world.fresh(*NAMES, "seeded")
    clock.jump(-HOUR)
    async with world.broker():
        await world.fresh(*NAMES, "seeded", revision=2)
    assert max(world.issuer.sent_refresh_tokens().values()) == 1
