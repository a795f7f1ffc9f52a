from __future__ import annotations

import pytest

from bench.sidecar import figures, measure


@pytest.mark.slow
async def test_the_bench_measures_what_it_says() -> None:
    results = await measure(renewals=3, starts=1, idle=0.5)
    shown = {row.name: row.value for row in figures(results)}
    assert len(results.deliveries) == 3
    assert 5 < shown["resident memory, files alone"] < shown["resident memory with loopback endpoints"] < 500
    assert 0 < shown["the same, processor time"] <= shown["start to first file"] * 2
    assert 0 < shown["renewed to written, p50"] <= shown["renewed to written, p99"]
