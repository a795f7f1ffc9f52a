"""How much good news the API server is told at once."""

from __future__ import annotations

from keyferry_operator.report import LeakyCount


def test_only_so_many_come_at_once_and_then_at_a_steady_rate() -> None:
    count = LeakyCount(most=3, rate=2.0)
    assert [count.admits(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [count.admits(101.0) for _ in range(3)] == [True, True, False]
    assert [count.admits(1000.0) for _ in range(4)] == [True, True, True, False]
