"""How much may be asked, and when those that are sent away come back."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest

from keyferry_operator.api.answers import Denied
from keyferry_operator.api.limits import Buckets, Held, Limits


def test_a_thousand_that_are_sent_away_come_back_at_the_rate_that_is_set() -> None:
    limits = Limits(returning=50.0)
    held = Held(limits)
    stack = ExitStack()
    for number in range(1000):
        stack.enter_context(held.holding(f"pod-{number}"))
    held.send_away()
    times = []
    for _ in range(1000):
        times.append(held.comes_back())
        held.count -= 1  # as they go, one by one
    by_second = Counter(int(at) for at in times)
    assert max(times) < 1 + 1000 / limits.returning
    assert max(by_second.values()) < 2 * limits.returning, "chance alone makes no second twice as full as the others"
    assert min(times) >= 1


def test_what_is_held_is_bounded_for_a_pod_and_for_all() -> None:
    held = Held(Limits(held_per_pod=2, held=3))
    with held.holding("a"), held.holding("a"):
        with pytest.raises(Denied) as refused, held.holding("a"):
            pass
        assert refused.value.problem.status == 429
        with held.holding("b"):
            assert held.count == 3
            with pytest.raises(Denied) as refused, held.holding("c"):
                pass
            assert refused.value.problem.status == 503
            assert int(refused.value.headers["Retry-After"]) >= 1
    assert held.count == 0
    with held.holding("a"):
        assert held.count == 1


async def test_one_pod_does_not_use_up_what_another_may_ask() -> None:
    buckets = Buckets(burst=3, rate=0.001)
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(Denied) as refused:
        buckets.take("a")
    assert refused.value.problem.status == 429
    assert 900 < int(refused.value.headers["Retry-After"]) <= 1000
    buckets.take("b")
