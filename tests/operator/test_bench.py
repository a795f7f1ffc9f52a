"""The benchmark of the operator, at a small size: nothing is timed, but what must never happen is looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.operator_figures import figures
from bench.operator_run import Run, Sizes
from bench.world import start_issuer
from tests.support.kube_fixtures import start_cluster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.cluster import Cluster

__all__ = ["start_cluster"]

SMALL = Sizes(count=50, few=10, created=5, renewed=5, rotated=3, idle=1.0)


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_restart_of_healthy_identities_exchanges_nothing_and_writes_nothing(
    start_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    with start_issuer() as issuer:
        results = await Run(start_cluster(), issuer, tmp_path, SMALL).measure()
    assert (results.restart.exchanges, results.restart.writes) == (0, 0)
    assert len(results.latencies) == SMALL.created
    assert results.renewal_writes <= 2
    assert results.rotation_writes <= 4
    shown = {row.name: row.value for row in figures(results)}
    assert shown["writes for a first issue"] >= 2
    assert shown["restart: writes"] == 0
