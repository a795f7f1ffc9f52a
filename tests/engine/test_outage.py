"""An issuer that is away for longer than a token lives, then asks for patience, then is back."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Self

import pytest

from keyferry.errors import Reason
from keyferry.scheduler.lane import Breaker
from tests.engine.world import SECRET, client_of, identity, secret, tree, until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from keyferry.run.broker import LocalBroker
    from tests.engine.clocks import FastClock
    from tests.engine.world import World

NAMES = [f"bot-{number:02}" for number in range(50)]
LIFETIME = 60
RATE, BURST = 5, 5


class Lag:
    """How long the event loop was ever kept from running: by so much may an arrival be late."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._task = asyncio.create_task(self._measure())

    async def _measure(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.worst = max(self.worst, time.monotonic() - before - 0.01)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def populate(world: World) -> None:
    for name in NAMES:
        world.add_client(name, access_lifetime=LIFETIME)
    world.write("provider.yaml", world.provider(limits={"requestsPerSecond": RATE, "burst": BURST, "concurrency": 4}))
    world.write(
        "bots.yaml",
        *(identity(name, client=client_of(name)) for name in NAMES),
        *(secret(name, secret=SECRET) for name in NAMES),
    )


def assert_within_rate(arrivals: list[float], lag: float) -> None:
    """No stretch of time saw more arrivals than rate and burst allow; `lag` is by how much one may be late."""
    for first, begun in enumerate(arrivals):
        for last in range(first, len(arrivals)):
            allowed = BURST + RATE * (arrivals[last] - begun + lag) + 1
            assert last - first + 1 <= allowed


class Play:
    """The three acts of an outage, and what was seen of it."""

    def __init__(self, world: World, clock: FastClock, broker: LocalBroker) -> None:
        self.world, self.clock, self.broker = world, clock, broker
        self.attempts = 0
        self.expirations: dict[str, float] = {}
        self.published: dict[str, bytes] = {}
        broker.engine.exchange_seconds = self._count

    def _count(self, _provider: str, _seconds: float) -> None:
        self.attempts += 1

    async def go_away(self) -> None:
        """Refuse connections, until every token has expired."""
        world, clock = self.world, self.clock
        lane = next(iter(self.broker.engine.lanes().values()))
        world.issuer.stop()
        await until(lambda: lane.state(clock.monotonic()) is not Breaker.CLOSED)
        await until(lambda: not any(world.busy(name) for name in NAMES))
        self.expirations = {name: world.status(name).expiration_time or 0.0 for name in NAMES}
        self.published = tree(world.out)
        attempts, told, sleeps, begun = self.attempts, len(world.told.statuses), clock.sleeps, clock.now()
        retrying = [name for name in NAMES if world.shown(name) is Reason.RETRYING]
        assert retrying, "some were due while their tokens were still good"
        assert all(world.status(name).next_attempt_time for name in retrying)
        await until(lambda: clock.now() > max(self.expirations.values()) + 2)
        await until(lambda: all(world.status(name).message for name in NAMES))
        for name in NAMES:
            status = world.status(name)
            assert world.shown(name) is Reason.EXPIRED
            assert not status.ready(clock.now())
            assert not status.stalled()
            assert world.busy(name) or status.next_attempt_time is not None or "its turn" in status.message
        away = clock.now() - begun
        assert self.attempts - attempts <= 8 + away, "one probe at a time, with pauses between them"
        assert clock.sleeps - sleeps < 50 * away, "nothing spins"
        assert len(world.told.statuses) - told < len(NAMES) * (away + 10)
        assert tree(world.out) == self.published, "last-good files stay as they are"

    async def ask_for_patience(self) -> float:
        """Answer 429; return until when nobody may come."""
        world, wait = self.world, 8
        refusal = world.issuer.faults.add(Fault(FaultKind.STATUS, status=429, retry_after=str(wait)))
        seen = len(world.requests())
        await world.issuer.start()
        await until(lambda: world.issuer.faults.used(refusal) >= 3)
        refused = [request.at for request in world.requests()[seen:]]
        assert all(later - earlier >= wait * 0.9 for earlier, later in itertools.pairwise(refused))
        until_then = refused[-1] + wait
        await until(
            lambda: any(
                "429" in world.status(name).message and (world.status(name).next_attempt_time or 0) >= until_then - 2
                for name in NAMES
            )
        )
        assert tree(world.out) == self.published
        return until_then

    async def be_well(self, lag: Lag, nobody_before: float) -> None:
        world = self.world
        world.issuer.faults.clear()
        seen = len(world.requests())
        lag.worst = 0.0
        await world.fresh(*NAMES, revision=2)
        recovery = world.requests()[seen:]
        assert recovery[0].at >= nobody_before - 2
        assert_within_rate([request.at for request in recovery], 4 * lag.worst * 8 + 0.5)
        order = [request.client or "" for request in recovery if request.client in self.expirations][: len(NAMES)]
        assert sorted(set(order)) == NAMES, "everybody came back, and nobody twice before the last had been"
        assert inversions(order, self.expirations) < 0.25, "least slack first (by chance it would be a half)"
        assert all(world.valid_tokens()[world.token(name)] for name in NAMES)
        assert all(world.shown(name) is Reason.ISSUED for name in NAMES)
        assert all(world.status(name).failure_count == 0 for name in NAMES)
        # The pauses of those who had failed most often are over with the outage.
        assert recovery[len(NAMES) - 1].at - recovery[0].at < 200


@pytest.mark.slow
async def test_an_outage_longer_than_a_life_then_429_then_recovery(world: World, clock: FastClock) -> None:
    populate(world)
    async with world.broker() as broker, Lag() as lag:
        play = Play(world, clock, broker)
        await world.fresh(*NAMES)
        await play.go_away()
        nobody_before = await play.ask_for_patience()
        await play.be_well(lag, nobody_before)


def inversions(order: list[str], expirations: dict[str, float]) -> float:
    """Return the share of pairs that came in the wrong order, those that expire within a second not counted."""
    ends = [expirations[name] for name in order]
    pairs = [(one, two) for one, two in itertools.combinations(ends, 2) if abs(one - two) > 1]
    return sum(one > two for one, two in pairs) / max(1, len(pairs))


async def test_a_date_to_come_back_at_is_kept_by_everybody(world: World, clock: FastClock) -> None:
    populate(world)
    again = int(clock.now()) + 60
    date = formatdate(again, usegmt=True)
    world.issuer.faults.add(Fault(FaultKind.STATUS, status=429, retry_after=date, times=4))
    async with world.broker():
        await until(lambda: all(world.status(name).next_attempt_time for name in NAMES))
        assert min(world.status(name).next_attempt_time or 0 for name in NAMES) >= again - 1
        await world.fresh(*NAMES)
        later = [request.at for request in world.requests() if request.outcome == "issued"]
        assert min(later) >= again - 1
        assert len([request for request in world.requests() if request.status == 429]) <= 4


async def test_a_provider_that_recovers_wakes_those_whose_pause_is_long(world: World) -> None:
    names = NAMES[:8]
    for name in names:
        world.add_client(name)
    world.write("provider.yaml", world.provider(limits={"concurrency": 20}))
    world.write(
        "bots.yaml",
        *(identity(name, client=client_of(name)) for name in names),
        *(secret(name, secret=SECRET) for name in names),
    )
    world.issuer.stop()
    notes = [world.state / "failures" / "default" / f"{name}.json" for name in names]
    async with world.broker():
        await until(lambda: sum(note.exists() for note in notes) >= 6)
    for note in notes:
        if note.exists():
            # As after an hour of failures: the pause after the next one is up to five minutes.
            note.write_text(json.dumps(json.loads(note.read_text()) | {"count": 20, "nextAttempt": 0}))
    async with world.broker():
        await until(lambda: sum(world.status(name).failure_count > 20 for name in names) >= 5)
        await world.issuer.start()
        await world.fresh(*names)
        arrivals = [request.at for request in world.requests()]
        woken = [at for at in arrivals if at - min(arrivals) < 30]
        # One or two may have been failing just then, and wait for their own next try.
        assert len(woken) >= len(names) - 2, "the first success is the signal for all who wait"


async def test_failures_of_our_own_say_nothing_of_the_provider(world: World, clock: FastClock) -> None:
    """A missing secret must not pass for an answer of the provider, which would end its rest."""
    lost = [f"lost-{number}" for number in range(6)]
    world.basics()
    world.write("bots.yaml", *(identity(name, parameters={"acr_values": name}) for name in NAMES[:6]))
    async with world.broker() as broker:
        await world.fresh(*NAMES[:6])
        lane = next(iter(broker.engine.lanes().values()))
        world.issuer.stop()
        for name in NAMES[:6]:
            world.renew(name)
        await until(lambda: lane.state(clock.monotonic()) is not Breaker.CLOSED)
        world.write("lost.yaml", *(identity(name, client=client_of("nowhere", id=name)) for name in lost))
        states = set()

        def told_of_the_secret() -> bool:
            states.add(lane.state(clock.monotonic()))
            return any(world.declared(name) and world.shown(name) is Reason.SECRET_NOT_FOUND for name in lost)

        await until(told_of_the_secret)
        assert Breaker.CLOSED not in states


async def test_one_client_that_always_fails_does_not_hold_up_the_others(world: World, clock: FastClock) -> None:
    world.basics()
    world.issuer.service.settings.access_lifetime = 20
    world.add_client("bad")
    world.issuer.faults.add(Fault(FaultKind.ERROR, client="bad", status=503, error="temporarily_unavailable"))
    world.write("bad.yaml", identity("bad", client=client_of("bot", id="bad")), identity("good"))
    async with world.broker():
        await world.fresh("good", revision=6)
        assert world.shown("bad") is Reason.RETRYING
        begun = world.requests()[0].at
        bad = [request for request in world.requests() if request.client == "bad"]
        assert len(bad) < 10 + (clock.now() - begun) / 2, "its own backoff holds"
