"""Leader election: what it decides, and what becomes of it when the API server does not play along."""

from __future__ import annotations

import asyncio
import copy
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from keyferry_operator.errors import ApiError
from keyferry_operator.leases import DEADLINE, DURATION, LEASE, Claim, Election, Seen, Step, decide, lease_object
from tests.support.clock import FakeClock, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyferry_operator.client import Kind, Object


class Server:
    """Keeps one Lease as the API server does: with versions, and refusing what was written over another version."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.down: BaseException | None = None
        self.lose_answers = False
        self.requests = 0
        self._version = 0

    async def get(self, _kind: Kind, _namespace: str | None, _name: str) -> Object | None:
        self._ask()
        return copy.deepcopy(self.lease)

    async def create(self, _kind: Kind, _namespace: str | None, body: Object) -> Object:
        self._ask()
        if self.lease is not None:
            raise ApiError("it is there", status=409)
        return self._put(body)

    async def replace(self, _kind: Kind, _namespace: str | None, body: Object) -> Object:
        self._ask()
        if self.lease is None:
            raise ApiError("it is not there", status=404)
        if self.lease["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            raise ApiError("somebody wrote first", status=409)
        return self._put(body)

    def _ask(self) -> None:
        self.requests += 1
        if self.down is not None:
            raise self.down

    def _put(self, body: Object) -> Object:
        self._version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        if self.lose_answers:
            raise ApiError("the connection broke")
        return copy.deepcopy(self.lease)

    @property
    def holder(self) -> str:
        claim = Claim.of(self.lease)
        return claim.holder if claim is not None else ""


@asynccontextmanager
async def _background(*tasks: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        await settle()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _election(server: Server, name: str, clock: FakeClock) -> Election:
    return Election(server, "keyferry", name, clock=clock)


@pytest.mark.parametrize(
    ("claim", "age", "step"),
    [
        (None, 0.0, Step.CREATE),
        (Claim("me", "t", 3), 0.0, Step.RENEW),
        (Claim("me", "t", 3), 1e9, Step.RENEW),
        (Claim("", "t", 3), 0.0, Step.TAKE),
        (Claim("other", "t", 3), 0.0, Step.WAIT),
        (Claim("other", "t", 3), DURATION - 0.001, Step.WAIT),
        (Claim("other", "t", 3), DURATION, Step.TAKE),
        (Claim("me2", "t", 3), 0.0, Step.WAIT),
    ],
)
def test_what_to_do_with_a_lease(claim: Claim | None, age: float, step: Step) -> None:
    assert decide(Seen(claim, 100.0), "me", 100.0 + age) is step


def test_a_claim_is_as_old_as_the_look_at_which_it_was_new() -> None:
    first = Seen(Claim("other", "2001-01-01T00:00:00Z", 1), 100.0)
    assert first.then(Claim("other", "2001-01-01T00:00:00Z", 1), 110.0).since == 100.0
    assert first.then(Claim("other", "1999-01-01T00:00:00Z", 1), 110.0).since == 110.0
    assert first.then(None, 110.0).since == 110.0


@pytest.mark.parametrize("body", [{"metadata": {}}, {"spec": None}, {"spec": {"holderIdentity": None}}])
def test_a_lease_that_says_nothing_is_free(body: Object) -> None:
    assert decide(Seen(Claim.of(body), 0.0), "me", 0.0) is Step.TAKE


def test_what_is_written_counts_changes_of_leader_and_keeps_what_others_put_on_it() -> None:
    body = {
        "metadata": {"name": LEASE, "labels": {"a": "b"}, "resourceVersion": "7"},
        "spec": {"holderIdentity": "other", "leaseTransitions": 4, "acquireTime": "then"},
    }
    taken = lease_object(body, Step.TAKE, "me", "keyferry")
    assert taken["metadata"] == body["metadata"]
    assert taken["spec"]["holderIdentity"] == "me"
    assert taken["spec"]["leaseTransitions"] == 5
    assert taken["spec"]["acquireTime"] != "then"
    renewed = lease_object(taken, Step.RENEW, "me", "keyferry")
    assert renewed["spec"]["leaseTransitions"] == 5
    assert renewed["spec"]["acquireTime"] == taken["spec"]["acquireTime"]
    created = lease_object(None, Step.CREATE, "me", "keyferry")
    assert created["metadata"] == {"name": LEASE, "namespace": "keyferry"}
    assert created["spec"]["leaseTransitions"] == 0


async def test_one_of_two_leads_and_the_other_takes_over_when_it_is_gone() -> None:
    server, clock = Server(), FakeClock()
    first, second = _election(server, "a", clock), _election(server, "b", clock)
    await first.acquire()
    holding, waiting = asyncio.create_task(first.hold()), asyncio.create_task(second.acquire())
    async with _background(holding, waiting):
        await clock.advance(60)
        assert server.holder == first.identity
        assert not waiting.done()
        holding.cancel()
        await clock.advance(DURATION - 4)
        assert not waiting.done()
        await clock.advance(9)
        assert waiting.done()
        assert server.holder == second.identity
        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 1


async def test_a_released_lease_is_taken_at_the_next_look() -> None:
    server, clock = Server(), FakeClock()
    first, second = _election(server, "a", clock), _election(server, "b", clock)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    async with _background(waiting):
        await first.release()
        assert server.holder == ""
        await clock.advance(3)
        assert waiting.done()
    await first.release()
    assert server.holder == second.identity


async def test_two_replicas_of_one_name_are_two() -> None:
    server, clock = Server(), FakeClock()
    await _election(server, "a", clock).acquire()
    waiting = asyncio.create_task(_election(server, "a", clock).acquire())
    async with _background(waiting):
        await clock.advance(3)
        assert not waiting.done()


@pytest.mark.parametrize("trouble", [ApiError("away", status=503), OSError("disk"), ValueError("json"), TimeoutError()])
async def test_the_leader_steps_down_before_others_may_take_over(trouble: Exception) -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    async with _background(holding):
        await clock.advance(5)
        server.down = trouble
        await clock.advance(DEADLINE - 3)
        assert not holding.done()
        await clock.advance(3)
        assert holding.done()
        assert holding.exception() is None


async def test_a_short_trouble_costs_nothing() -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    async with _background(holding):
        for _ in range(5):
            server.down = ApiError("away")
            await clock.advance(DEADLINE - 4)
            server.down = None
            await clock.advance(4)
        assert not holding.done()
        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 0


async def test_a_lost_answer_is_found_out() -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    server.lose_answers = True
    acquiring = asyncio.create_task(election.acquire())
    async with _background(acquiring):
        assert server.holder == election.identity
        assert not acquiring.done()
        server.lose_answers = False
        await clock.advance(3)
        assert acquiring.done()


async def test_a_lease_that_another_took_is_lost_and_left_to_it() -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    async with _background(holding):
        assert server.lease is not None
        server.lease["spec"]["holderIdentity"] = "b_0"
        server.lease["metadata"]["resourceVersion"] = "99"
        await clock.advance(5)
        assert holding.done()
    await election.release()
    assert server.holder == "b_0"


async def test_a_machine_that_slept_does_not_think_that_it_still_leads() -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    async with _background(holding):
        clock.suspend(3600)
        server.down = ApiError("the network is not up yet")
        await clock.advance(3)
        assert holding.done()


async def test_leading_costs_one_request_for_each_renewal() -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    await election.acquire()
    holding = asyncio.create_task(election.hold())
    async with _background(holding):
        before = server.requests
        await clock.advance(20.5)
        assert server.requests - before == 10


async def test_a_release_that_fails_is_no_error() -> None:
    server, clock = Server(), FakeClock()
    election = _election(server, "a", clock)
    await election.acquire()
    server.down = ApiError("away")
    await election.release()
    assert server.holder == election.identity
