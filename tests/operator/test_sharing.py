"""Shares of the work: the rule, and replicas that follow it over one set of Leases."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import StoreUnavailable
from keyferry_operator.division import shards_to_take
from keyferry_operator.errors import ApiError
from keyferry_operator.leases import DEADLINE, DURATION, RETRY
from keyferry_operator.names import LEASE, REPLICA, SHARD
from keyferry_operator.sharing import BURIED, GAIN_PAUSE, Sharing
from tests.operator.lease_server import Server
from tests.support.clock import FakeClock, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TURN = RETRY * 1.3
"""Seconds in which everybody has looked once."""


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "holders", "wanted"),
    [
        ("", ["", "", "", ""], 4),
        ("b", ["", "", "", ""], 2),
        ("bc", ["", "", "", ""], 2),
        ("bcd", ["", "", "", ""], 1),
        ("bcdef", ["", "", "", ""], 1),
        ("bcdef", ["b", "c", "d", "e"], 0),
        ("b", ["a", "a", "a", "a"], -2),
        ("bc", ["a", "a", "b", "b"], -1),
        ("bc", ["a", "", "b", "b"], 0),
        ("bc", ["a", "a", "b", ""], 0),
        ("bc", ["a", "a", "b", "c"], 0),
        ("bc", ["b", "b", "b", "b"], 0),
        ("", ["b", "b", "", ""], 2),
        ("b", [""], 1),
        ("b", ["b"], 0),
    ],
)
def test_how_many_to_take(others: str, holders: list[str], wanted: int) -> None:
    assert shards_to_take("a", set(others), dict(enumerate(holders))) == wanted


@given(st.integers(1, 12), st.integers(1, 6), st.data())
def test_every_beginning_ends_in_equal_shares_and_rests(count: int, replicas: int, data: st.DataObject) -> None:
    members = [chr(ord("a") + each) for each in range(replicas)]
    holders = {shard: data.draw(st.sampled_from(["", *members])) for shard in range(count)}
    moves = 1
    for _ in range(count + 3):
        moves = 0
        for member in members:
            wanted = shards_to_take(member, set(members), holders)
            chosen = [shard for shard, holder in holders.items() if holder == ("" if wanted > 0 else member)]
            for shard in chosen[: abs(wanted)]:
                holders[shard] = member if wanted > 0 else ""
                moves += 1
    assert moves == 0
    shares = Counter(holders.values())
    assert "" not in shares
    assert all(count // replicas <= shares[member] <= -(-count // replicas) for member in members)


@given(st.integers(1, 12), st.integers(2, 5))
def test_one_more_replica_moves_no_more_than_its_own_share(count: int, replicas: int) -> None:
    members = [chr(ord("a") + each) for each in range(replicas)]
    before = {shard: members[shard % (replicas - 1)] for shard in range(count)}
    after = dict(before)
    for _ in range(2 * count + 3):
        for member in members:
            wanted = shards_to_take(member, set(members), after)
            for shard in [s for s, holder in after.items() if holder == ("" if wanted > 0 else member)][: abs(wanted)]:
                after[shard] = member if wanted > 0 else ""
    moved = sum(before[shard] != after[shard] for shard in before)
    assert moved == Counter(after.values())[members[-1]]


# --- replicas ---------------------------------------------------------------------------------------------------------


class Work:
    """Notes what it is told; ``held`` is where work is done now."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.gained: list[int] = []
        self.lost: list[int] = []
        self.handed_over: list[int] = []
        self.resumed: set[int] = set()
        """Of those that were gained last, what nobody else had since it was lost."""
        self.failures = 0
        self.quiet = asyncio.Event()
        self.quiet.set()

    async def gain(self, shards: frozenset[int], undisturbed: frozenset[int]) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("not now")
        self.gained += shards
        self.resumed = set(undisturbed)
        self.held |= shards

    def lose(self, shards: frozenset[int]) -> None:
        self.lost += shards
        self.held -= shards

    async def hand_over(self, shards: frozenset[int]) -> None:
        await self.quiet.wait()
        self.handed_over += shards
        self.held -= shards


class Replica:
    def __init__(self, server: Server, clock: FakeClock, name: str, shards: int) -> None:
        self.work = Work()
        self.sharing = Sharing(server, "keyferry", name, shards, self.work, clock=clock)
        self.running = asyncio.create_task(self.sharing.run())

    def kill(self) -> None:
        """End it without a word."""
        self.running.cancel()


class Fleet:
    """Replicas over one API server; `replica` starts one more."""

    def __init__(self, shards: int) -> None:
        self.server, self.clock, self.shards = Server(), FakeClock(), shards
        self.replicas: list[Replica] = []

    def replica(self, name: str, shards: int | None = None) -> Replica:
        self.replicas.append(Replica(self.server, self.clock, name, shards or self.shards))
        return self.replicas[-1]

    def at_work(self) -> list[int]:
        """Return the shards that are worked on, each as often as it is."""
        alive = [replica for replica in self.replicas if not replica.running.cancelled()]
        return sorted(shard for replica in alive for shard in replica.work.held)

    @contextlib.asynccontextmanager
    async def to_the_end(self) -> AsyncIterator[None]:
        try:
            await settle()
            yield
        finally:
            for replica in self.replicas:
                replica.kill()
            await asyncio.gather(*(replica.running for replica in self.replicas), return_exceptions=True)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(4)


async def test_replicas_come_and_go_and_each_shard_has_one(fleet: Fleet) -> None:
    first = fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        assert first.work.held == {0, 1, 2, 3}
        second = fleet.replica("b")
        await fleet.clock.advance(4 * TURN)
        assert (len(first.work.held), len(second.work.held)) == (2, 2)
        third = fleet.replica("c")
        await fleet.clock.advance(4 * TURN)
        assert sorted(len(each.work.held) for each in (first, second, third)) == [1, 1, 2]
        assert fleet.at_work() == [0, 1, 2, 3]
        assert not any(each.work.lost for each in fleet.replicas)
        before = [set(each.work.held) for each in fleet.replicas]
        await fleet.clock.advance(300)
        assert [each.work.held for each in fleet.replicas] == before  # nothing goes back and forth
        orphans = set(second.work.held)
        second.kill()
        await fleet.clock.advance(DURATION + 2 * TURN)
        assert first.work.held | third.work.held == {0, 1, 2, 3}
        assert (len(first.work.held), len(third.work.held)) == (2, 2)
        assert orphans <= set(first.work.gained + third.work.gained)
        await fleet.clock.advance(BURIED + DURATION)
        assert len([name for name in fleet.server.leases if name.startswith(REPLICA)]) == 2


async def test_a_shard_is_released_when_its_work_is_done_and_not_before(fleet: Fleet) -> None:
    first = fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        first.work.quiet.clear()
        second = fleet.replica("b")
        await fleet.clock.advance(60)
        assert not second.work.held
        assert [fleet.server.holder(f"{SHARD}{each}") for each in range(4)] == [first.sharing.identity] * 4
        first.work.quiet.set()
        await fleet.clock.advance(3 * TURN)
        assert len(second.work.held) == 2
        assert fleet.at_work() == [0, 1, 2, 3]


async def test_who_stops_hands_over_at_once(fleet: Fleet) -> None:
    first, second = fleet.replica("a"), fleet.replica("b")
    async with fleet.to_the_end():
        await fleet.clock.advance(4 * TURN)
        closing = asyncio.create_task(first.sharing.close())
        await fleet.clock.advance(TURN)
        assert closing.done()
        first.kill()
        await fleet.clock.advance(TURN)
        assert second.work.held == {0, 1, 2, 3}
        assert not second.work.lost
        assert len([name for name in fleet.server.leases if name.startswith(REPLICA)]) == 1


async def test_who_cannot_renew_stops_before_others_begin(fleet: Fleet) -> None:
    first = fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        fleet.server.down = ApiError("away")
        await fleet.clock.advance(DEADLINE - TURN)
        assert first.work.held == {0, 1, 2, 3}
        await fleet.clock.advance(TURN)
        assert sorted(first.work.lost) == [0, 1, 2, 3]
        fleet.server.down = None
        await fleet.clock.advance(2 * TURN)
        assert first.work.held == first.work.resumed == {0, 1, 2, 3}  # nobody else came


async def test_a_short_trouble_costs_nothing(fleet: Fleet) -> None:
    first = fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        for _ in range(5):
            fleet.server.down = ApiError("away")
            await fleet.clock.advance(DEADLINE - 2 * TURN)
            fleet.server.down = None
            await fleet.clock.advance(2 * TURN)
        assert not first.work.lost
        assert fleet.server.leases[f"{SHARD}0"]["spec"]["leaseTransitions"] == 0


async def test_a_shard_that_another_took_is_lost_and_the_rest_goes_on(fleet: Fleet) -> None:
    first = fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        fleet.server.seize(f"{SHARD}2", "somebody")
        await fleet.clock.advance(3 * TURN)
        assert first.work.lost == [2]
        assert not first.work.resumed
        assert first.work.held >= {0, 1, 3} - set(first.work.handed_over)
        await fleet.clock.advance(DURATION + 3 * TURN)
        assert first.work.held == {0, 1, 2, 3}
        assert 2 not in first.work.resumed


async def test_a_machine_that_slept_does_not_think_that_it_still_holds_anything(fleet: Fleet) -> None:
    first = fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        fleet.clock.suspend(3600)
        fleet.server.down = ApiError("the network is not up yet")
        await fleet.clock.advance(TURN)
        assert not first.work.held


async def test_records_that_cannot_be_read_are_read_again(fleet: Fleet) -> None:
    first = fleet.replica("a")
    first.work.failures = 2
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        assert not first.work.held
        await fleet.clock.advance(2 * GAIN_PAUSE)
        assert first.work.held == {0, 1, 2, 3}


async def test_one_shard_is_led_by_one_replica_under_the_name_that_it_always_had() -> None:
    fleet = Fleet(1)
    first, second = fleet.replica("a"), fleet.replica("b")
    async with fleet.to_the_end():
        await fleet.clock.advance(60)
        leader, standby = (first, second) if first.work.held else (second, first)
        assert (leader.work.held, standby.work.held) == ({0}, set())
        assert set(fleet.server.leases) == {LEASE}
        leader.kill()
        await fleet.clock.advance(DURATION + 2 * TURN)
        assert standby.work.held == {0}


async def test_a_lead_costs_two_requests_for_each_turn() -> None:
    fleet = Fleet(1)
    fleet.replica("a")
    async with fleet.to_the_end():
        await fleet.clock.advance(TURN)
        fleet.server.requests.clear()
        await fleet.clock.advance(10 * RETRY)
        counts = Counter(fleet.server.requests)
        assert set(counts) == {"list", "replace"}
        assert max(counts.values()) <= 10


@pytest.mark.parametrize(("old", "new"), [(1, 4), (4, 1), (4, 8), (8, 4)])
async def test_another_number_of_shards_waits_until_the_last_of_the_old_is_gone(old: int, new: int) -> None:
    fleet = Fleet(old)
    first, second = fleet.replica("a"), fleet.replica("b")
    async with fleet.to_the_end():
        await fleet.clock.advance(4 * TURN)
        third = fleet.replica("c", shards=new)
        await fleet.clock.advance(60)
        assert not third.work.held
        assert sorted(first.work.held | second.work.held) == list(range(old))  # it does not count among them
        assert not first.work.lost + second.work.lost
        for each in (first, second):
            closing = asyncio.create_task(each.sharing.close())
            await fleet.clock.advance(TURN)
            assert closing.done()
            each.kill()
            await fleet.clock.advance(2 * TURN)
        assert third.work.held == set(range(new))
        assert not third.work.lost
