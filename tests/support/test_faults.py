from __future__ import annotations

import json

import pytest

from tests.support.faults import Fault, FaultKind, FaultPlan, Target


def test_faults_can_wait_for_their_turn_and_end() -> None:
    plan = FaultPlan()
    number = plan.add(Fault(FaultKind.ERROR, times=2, skip=1, client="bot"))
    target, other = Target("/token", "bot", "password"), Target("/token", "other", "password")
    assert plan.take(other) == []
    assert [len(plan.take(target)) for _ in range(5)] == [0, 1, 1, 0, 0]
    assert (plan.used(number), len(plan)) == (2, 0)


def test_faults_choose_by_path_and_grant() -> None:
    plan = FaultPlan()
    plan.add(Fault(FaultKind.ERROR, path="/revoke"))
    plan.add(Fault(FaultKind.HTML, path=None, grant="password"))
    assert [fault.kind for fault in plan.take(Target("/revoke", None, None))] == [FaultKind.ERROR]
    assert [fault.kind for fault in plan.take(Target("/token", None, "password"))] == [FaultKind.HTML]
    assert plan.take(Target("/token", None, "refresh_token")) == []


def test_faults_with_a_probability_repeat_by_their_seed() -> None:
    def run(seed: int) -> list[bool]:
        plan = FaultPlan()
        plan.add(Fault(FaultKind.ERROR, probability=0.3, seed=seed))
        return [bool(plan.take(Target("/token", None, None))) for _ in range(200)]

    assert run(1) == run(1) != run(2)
    assert 30 < sum(run(1)) < 90


def test_latency_adds_to_another_fault() -> None:
    plan = FaultPlan()
    plan.add(Fault(FaultKind.LATENCY, delay=0.1))
    plan.add(Fault(FaultKind.ERROR))
    plan.add(Fault(FaultKind.HTML))
    taken = plan.take(Target("/token", None, None))
    assert [fault.kind for fault in taken] == [FaultKind.LATENCY, FaultKind.ERROR]


def test_removed_faults_are_gone_and_impossible_ones_refused() -> None:
    plan = FaultPlan()
    plan.remove(plan.add(Fault(FaultKind.ERROR)))
    plan.add(Fault(FaultKind.ERROR))
    plan.clear()
    assert plan.take(Target("/token", None, None)) == []
    with pytest.raises(ValueError, match="before the grant is spent"):
        Fault(FaultKind.RESET_BEFORE, spend=True)
    with pytest.raises(ValueError, match="has to be spent"):
        Fault(FaultKind.DROP_FIELD, spend=False)


def test_faults_travel_as_json() -> None:
    fault = Fault(FaultKind.SET_FIELD, name="expires_in", value=[1, "x", None], times=3, client="bot")
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault
    with pytest.raises(TypeError):
        Fault.from_json({"kind": "error", "unknown": 1})
