from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.doubt import SETTLE_MARGIN, DoubtPolicy, Judgement, Verdict, judge, replay_lead, settle_time
from keyferry.record import Claim

NOW = 1_800_000_000.0
CLAIM = Claim("digest", "attempt", 1, "holder", NOW - 30, 10.0)
POLICY = DoubtPolicy(deadline=10.0)
FAR = NOW + 3600.0


@pytest.mark.parametrize(
    ("claim", "policy", "expires_at", "settled", "verdict", "at"),
    [
        pytest.param(CLAIM, POLICY, FAR, False, Verdict.WAIT, NOW, id="somebody may still be sending"),
        pytest.param(CLAIM, POLICY, None, True, Verdict.REPLAY, NOW, id="nothing is served"),
        pytest.param(CLAIM, POLICY, NOW, True, Verdict.REPLAY, NOW, id="what is served has expired"),
        pytest.param(CLAIM, POLICY, FAR, True, Verdict.REPLAY, FAR - 30, id="served until shortly before its end"),
        pytest.param(CLAIM, POLICY, NOW + 10, True, Verdict.REPLAY, NOW, id="its end is near"),
        pytest.param(
            CLAIM, replace(POLICY, replay_once=False), FAR, True, Verdict.ASK, NOW, id="the resource says to ask"
        ),
        pytest.param(
            CLAIM, replace(POLICY, replay_once=False), None, False, Verdict.WAIT, NOW, id="to ask, but not yet settled"
        ),
        pytest.param(replace(CLAIM, attempt=2), POLICY, FAR, True, Verdict.ASK, NOW, id="replayed already"),
        pytest.param(
            replace(CLAIM, attempt=2),
            replace(POLICY, reuse_window=600.0),
            FAR,
            True,
            Verdict.ASK,
            NOW,
            id="replayed already, window or not",
        ),
        pytest.param(
            CLAIM, replace(POLICY, reuse_window=40.0), FAR, True, Verdict.REPLAY, NOW, id="it just fits the window"
        ),
        pytest.param(
            CLAIM,
            replace(POLICY, reuse_window=39.9),
            FAR,
            True,
            Verdict.REPLAY,
            FAR - 30,
            id="the window ends before the replay's deadline",
        ),
        pytest.param(
            CLAIM,
            replace(POLICY, reuse_window=60.0, replay_once=False),
            FAR,
            True,
            Verdict.REPLAY,
            NOW,
            id="inside the window nobody is asked",
        ),
        pytest.param(
            CLAIM, replace(POLICY, reuse_window=60.0), FAR, False, Verdict.WAIT, NOW, id="the window waits as well"
        ),
        pytest.param(
            replace(CLAIM, claimed_at=NOW + 3600),
            replace(POLICY, reuse_window=60.0, replay_once=False),
            FAR,
            True,
            Verdict.ASK,
            NOW,
            id="a clock that went back makes no window",
        ),
        pytest.param(CLAIM, replace(POLICY, can_login=True), FAR, True, Verdict.LOGIN, NOW, id="a login is at hand"),
        pytest.param(
            CLAIM, replace(POLICY, can_login=True), FAR, False, Verdict.WAIT, NOW, id="a login may be for nothing"
        ),
        pytest.param(
            replace(CLAIM, attempt=2), replace(POLICY, reusable=True), FAR, False, Verdict.REPLAY, NOW, id="reusable"
        ),
        pytest.param(
            CLAIM, replace(POLICY, reusable=True, can_login=True), FAR, True, Verdict.REPLAY, NOW, id="reusable login"
        ),
    ],
)
def test_an_open_claim_is_weighed(
    claim: Claim,
    policy: DoubtPolicy,
    expires_at: float | None,
    settled: bool,  # noqa: FBT001 - a column of the table
    verdict: Verdict,
    at: float,
) -> None:
    assert judge(claim, policy, expires_at=expires_at, settled=settled, now=NOW) == Judgement(verdict, at)


def test_a_dead_holder_is_waited_for_as_long_as_its_request_may_take() -> None:
    assert settle_time(CLAIM, holder_gone=True) == 10.0
    assert settle_time(CLAIM, holder_gone=False) == 10.0 + SETTLE_MARGIN


times = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.floats(0.1, 300), times, st.floats(0.1, 1e6), st.one_of(st.none(), times))
def test_a_replay_is_never_planned_for_the_past_nor_after_the_token_has_ended(
    deadline: float, claimed: float, window: float, expires: float | None
) -> None:
    claim = replace(CLAIM, claimed_at=NOW + claimed)
    expires_at = None if expires is None else NOW + expires
    policy = DoubtPolicy(deadline=deadline, reuse_window=window)
    judgement = judge(claim, policy, expires_at=expires_at, settled=True, now=NOW)
    assert judgement.verdict is Verdict.REPLAY
    assert judgement.at >= NOW
    assert judgement.at <= max(NOW, expires_at or NOW)


@given(st.floats(0.1, 300), st.floats(-10, 1e6))
def test_the_lead_leaves_most_of_what_is_left(deadline: float, remaining: float) -> None:
    assert 0 <= replay_lead(deadline, remaining) <= max(0.0, remaining) / 4
