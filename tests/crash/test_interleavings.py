"""Two brokers over one store in memory."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.crash.interleavings import Interleavings

Interleavings.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestInterleavings = Interleavings.TestCase
