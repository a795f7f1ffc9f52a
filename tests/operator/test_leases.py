"""One Lease: what is decided about it, and what becomes of it when the API server does not play along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry_operator.errors import ApiError
from keyferry_operator.leases import DEADLINE, DURATION, Claim, Hold, Place, Seen, Step, decide, lease_object
from tests.operator.lease_server import Server
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from keyferry_operator.client import Object

PLACE = Place("keyferry", "keyferry-shard-3", {"keyferry.dev/shards": "4"})


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


def test_a_lease_that_ran_out_is_nobodys() -> None:
    seen = Seen(Claim("other", "t", 1), 100.0)
    assert seen.holder(100.0 + DURATION - 0.001) == "other"
    assert seen.holder(100.0 + DURATION) == ""
    assert Seen(None, 100.0).holder(100.0) == ""


@pytest.mark.parametrize("body", [{"metadata": {}}, {"spec": None}, {"spec": {"holderIdentity": None}}])
def test_a_lease_that_says_nothing_is_free(body: Object) -> None:
    assert decide(Seen(Claim.of(body), 0.0), "me", 0.0) is Step.TAKE


def test_what_is_written_counts_changes_of_holder_and_keeps_what_others_put_on_it() -> None:
    body = {
        "metadata": {"name": PLACE.name, "labels": {"a": "b", "keyferry.dev/shards": "8"}, "resourceVersion": "7"},
        "spec": {"holderIdentity": "other", "leaseTransitions": 4, "acquireTime": "then"},
    }
    taken = lease_object(body, Step.TAKE, "me", PLACE)
    assert taken["metadata"]["labels"] == {"a": "b", "keyferry.dev/shards": "4"}
    assert taken["metadata"]["resourceVersion"] == "7"
    assert taken["spec"]["holderIdentity"] == "me"
    assert taken["spec"]["leaseTransitions"] == 5
    assert taken["spec"]["acquireTime"] != "then"
    renewed = lease_object(taken, Step.RENEW, "me", PLACE)
    assert renewed["spec"]["leaseTransitions"] == 5
    assert renewed["spec"]["acquireTime"] == taken["spec"]["acquireTime"]
    created = lease_object(None, Step.CREATE, "me", PLACE)
    assert created["metadata"] == {"name": PLACE.name, "namespace": "keyferry", "labels": PLACE.labels}
    assert created["spec"]["leaseTransitions"] == 0


async def test_two_attempts_and_one_holder() -> None:
    server, clock = Server(), FakeClock()
    first, second = Hold(server, PLACE, "a", clock), Hold(server, PLACE, "b", clock)
    assert await first.attempt()
    assert not await second.attempt()
    assert second.taken_by == "a"
    assert first.left == DEADLINE
    await clock.advance(4)
    assert first.left == DEADLINE - 4
    assert await first.attempt()
    assert first.left == DEADLINE
    await clock.advance(DURATION)
    assert not await second.attempt()  # it changed since the last look
    await clock.advance(DURATION)
    assert await second.attempt()
    assert not await first.attempt()  # it was written over another version
    assert not await first.attempt()
    assert first.taken_by == "b"


async def test_what_was_listed_need_not_be_read_to_be_taken() -> None:
    server, clock = Server(), FakeClock()
    await Hold(server, PLACE, "a", clock).attempt()
    seen, body = Seen(Claim.of(server.leases[PLACE.name]), clock.boottime()), server.leases[PLACE.name]
    await clock.advance(DURATION)
    server.requests.clear()
    assert await Hold(server, PLACE, "b", clock).attempt(seen, body)
    assert server.requests == ["replace"]


@pytest.mark.parametrize("trouble", [ApiError("away", status=503), OSError("disk"), ValueError("json"), TimeoutError()])
async def test_no_trouble_is_raised_and_time_runs_out(trouble: Exception) -> None:
    server, clock = Server(), FakeClock()
    hold = Hold(server, PLACE, "a", clock)
    assert await hold.attempt()
    server.down = trouble
    await clock.advance(DEADLINE - 1)
    assert not await hold.attempt()
    assert hold.left == 1
    assert hold.taken_by == ""
    await hold.release()
    assert server.holder(PLACE.name) == "a"
    server.down = None
    assert await hold.attempt()
    assert hold.left == DEADLINE


async def test_a_lost_answer_is_found_out() -> None:
    server, clock = Server(), FakeClock()
    hold = Hold(server, PLACE, "a", clock)
    server.lose_answers = True
    assert not await hold.attempt()
    assert server.holder(PLACE.name) == "a"
    server.lose_answers = False
    assert await hold.attempt()
    assert server.leases[PLACE.name]["spec"]["leaseTransitions"] == 0


async def test_only_ones_own_is_released() -> None:
    server, clock = Server(), FakeClock()
    hold = Hold(server, PLACE, "a", clock)
    await hold.attempt()
    server.seize(PLACE.name, "b")
    await hold.release()
    await hold.release(delete=True)
    assert server.holder(PLACE.name) == "b"
    server.seize(PLACE.name, "a")
    await hold.release()
    assert server.holder(PLACE.name) == ""
    server.seize(PLACE.name, "a")
    await hold.release(delete=True)
    assert not server.leases
