import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.scheduler import Lane, LaneLimits
from keyferry.scheduler.lane import (
    BACKOFF_CAP,
    BREAKER_THRESHOLD,
    MAXIMUM_RETRY_AFTER,
    Breaker,
    backoff,
)


def lane(rate: float = 10.0, burst: int = 2, concurrency: int = 100) -> Lane:
    return Lane(LaneLimits(rate, burst, concurrency), now=0.0, rng=random.Random(1))  # noqa: S311


@given(count=st.integers(0, 1000), draw=st.floats(0, 1, exclude_max=True), floor=st.just(0.0) | st.floats(0, 1e6))
def test_backoff_stays_between_a_second_and_its_bounds(count: int, draw: float, floor: float) -> None:
    wait = backoff(count, draw, floor=floor)
    if floor > 0:
        assert min(floor, MAXIMUM_RETRY_AFTER) <= wait <= MAXIMUM_RETRY_AFTER + 30
    else:
        assert 1.0 <= wait <= BACKOFF_CAP


def test_backoff_grows_with_the_failures_and_is_jittered_over_its_whole_range() -> None:
    assert [backoff(count, 0.999) > 0.9 * min(300, 2.0**count) for count in range(1, 12)] == [True] * 11
    assert backoff(8, 0.01) < 4


def test_the_rate_holds_after_the_burst() -> None:
    way = lane(rate=10, burst=2)
    started, now = 0, 0.0
    while now < 3.0:
        wait = way.wait(now)
        if wait <= 0:
            way.start(now)
            way.finish()
            started += 1
        else:
            now += wait
    assert started in (31, 32)


def test_further_requests_of_an_exchange_are_paid_for() -> None:
    way = lane(rate=10, burst=1)
    way.start(0.0)
    assert way.another_request(0.0) == pytest.approx(0.1)
    assert way.another_request(0.0) == pytest.approx(0.2)
    way.finish()
    assert way.wait(0.0) == pytest.approx(0.3)


def test_slots_bound_what_is_in_flight() -> None:
    way = lane(burst=10, concurrency=2)
    way.start(0.0)
    way.start(0.0)
    assert way.wait(0.0) == math.inf
    way.finish()
    assert way.wait(0.0) == 0.0
    assert way.busy == 1


def test_failures_in_a_row_open_the_breaker_and_one_probe_closes_it() -> None:
    way = lane()
    for _ in range(BREAKER_THRESHOLD):
        assert way.state(0.0) is Breaker.CLOSED
        way.failed(0.0, "refused")
    assert way.state(0.0) is Breaker.OPEN
    reopens = way.blocked_until(0.0)
    assert 1.0 <= reopens <= 4.0
    assert way.wait(0.0) == pytest.approx(reopens)
    assert way.state(reopens) is Breaker.HALF_OPEN
    way.start(reopens)
    assert way.wait(reopens) == math.inf, "one probe at a time"
    way.succeeded()
    way.finish()
    assert way.state(reopens) is Breaker.CLOSED
    assert way.wait(reopens) == 0.0


def test_a_failed_probe_opens_it_again_for_longer() -> None:
    way = lane()
    for _ in range(BREAKER_THRESHOLD):
        way.failed(0.0, "refused")
    now, pauses = 0.0, []
    for _ in range(12):
        reopens = way.blocked_until(now)
        pauses.append(reopens - now)
        now = reopens
        way.start(now)
        way.failed(now, "refused")
        way.finish()
    assert max(pauses[-4:]) > 30
    assert max(pauses) <= BACKOFF_CAP


def test_a_success_between_failures_keeps_it_closed() -> None:
    way = lane()
    for _ in range(BREAKER_THRESHOLD * 3):
        way.failed(0.0, "reset")
        way.succeeded()
    assert way.state(0.0) is Breaker.CLOSED


def test_retry_after_closes_the_way_for_everybody_and_is_bounded() -> None:
    way = lane()
    way.failed(0.0, "429", retry_after=20.0)
    assert way.wait(0.0) == pytest.approx(20.0)
    way.failed(0.0, "429", retry_after=1e9)
    assert way.wait(0.0) <= MAXIMUM_RETRY_AFTER


def test_changed_limits_take_effect_without_a_gift() -> None:
    way = lane(rate=10, burst=20)
    way.resize(LaneLimits(1.0, 1, 5), 0.0)
    way.start(0.0)
    way.finish()
    assert way.wait(0.0) == pytest.approx(1.0)
