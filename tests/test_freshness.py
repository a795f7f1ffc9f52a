import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.freshness import (
    SHORT_LIFETIME,
    Freshness,
    RenewalPolicy,
    freshness,
    keepalive_time,
    lifetime_too_short,
    outpaces_readers,
    renewal_time,
)

DEFAULT = RenewalPolicy()


@pytest.mark.parametrize(
    ("lifetime", "policy", "after"),
    [
        (3600, DEFAULT, 2400),
        (SHORT_LIFETIME, DEFAULT, 160),
        (SHORT_LIFETIME - 1, DEFAULT, 119.5),
        (6, DEFAULT, 3),
        (1, DEFAULT, 0.5),
        (0, DEFAULT, 0),
        (3600, RenewalPolicy(before=1800), 1800),
        (3600, RenewalPolicy(before=60), 2400),
        (3600, RenewalPolicy(before=3600), 1800),
        (3600, RenewalPolicy(before=7200), 1800),
        (3600, RenewalPolicy(minimum_remaining=3000), 600),
        (3600, RenewalPolicy(before=1500, minimum_remaining=1400), 2100),
        (3600, RenewalPolicy(reading_delay=120), 2400),
        (300, RenewalPolicy(reading_delay=120), 180),
        (300, RenewalPolicy(before=200, reading_delay=120), 100),
        (240, RenewalPolicy(reading_delay=120), 120),
        (239, RenewalPolicy(reading_delay=120), 119.5),
        (60, RenewalPolicy(reading_delay=120), 30),
    ],
)
def test_without_jitter_a_token_is_renewed_at_its_share_of_life(
    lifetime: float, policy: RenewalPolicy, after: float
) -> None:
    assert renewal_time(1000.0, 1000.0 + lifetime, policy, 0.0) == 1000.0 + after


def test_jitter_moves_a_renewal_ahead_by_a_tenth_and_five_minutes_at_most() -> None:
    almost = math.nextafter(1.0, 0.0)
    assert renewal_time(0.0, 900.0, DEFAULT, almost) == pytest.approx(540.0, abs=0.002)
    assert renewal_time(0.0, 86400.0, DEFAULT, almost) == pytest.approx(57300.0, abs=0.002)


@given(
    lifetime=st.floats(0, 1e7),
    before=st.none() | st.floats(0, 1e8),
    minimum=st.floats(0, 1e8),
    delay=st.floats(0, 1e4),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_renewal_always_lies_within_the_life_and_is_stored_exactly(
    lifetime: float, before: float | None, minimum: float, delay: float, draw: float
) -> None:
    issued = 1_800_000_000.0
    at = renewal_time(issued, issued + lifetime, RenewalPolicy(before, minimum, delay), draw)
    assert issued - 0.001 <= at <= issued + lifetime
    assert at == int(at * 1000) / 1000 or abs(at * 1000 - round(at * 1000)) < 0.01


@given(lifetime=st.floats(2, 1e6), before=st.floats(0, 1e7))
def test_no_leeway_makes_a_token_renew_without_end(lifetime: float, before: float) -> None:
    at = renewal_time(0.0, lifetime, RenewalPolicy(before), 0.5)
    assert at > 0 or before >= lifetime - 0.01


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0, Freshness.FRESH),
        (9.999, Freshness.FRESH),
        (10, Freshness.STALE),
        (19.999, Freshness.STALE),
        (20, Freshness.INVALID),
        (21, Freshness.INVALID),
    ],
)
def test_a_token_is_fresh_then_stale_then_invalid(now: float, expected: Freshness) -> None:
    assert freshness(10, 20, now) is expected


def test_a_refresh_token_is_used_after_a_third_of_its_idle_life() -> None:
    assert keepalive_time(100.0, 30.0) == 110.0
    assert keepalive_time(100.0, None) is None
    assert keepalive_time(100.0, 0.0) is None


def test_a_life_shorter_than_what_consumers_need_is_told() -> None:
    assert lifetime_too_short(0, 299, 300)
    assert not lifetime_too_short(0, 300, 300)
    assert not lifetime_too_short(0, 1, 0)


@pytest.mark.parametrize(
    ("lifetime", "delay", "too_short"),
    [(239.0, 120.0, True), (240.0, 120.0, False), (60.0, 120.0, True), (1.0, 0.0, False), (0.0, 0.0, False)],
)
def test_readers_who_see_a_token_late_need_one_that_lives_twice_as_long(
    lifetime: float, delay: float, *, too_short: bool
) -> None:
    assert outpaces_readers(1000.0, 1000.0 + lifetime, delay) is too_short
