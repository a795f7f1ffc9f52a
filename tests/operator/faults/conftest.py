"""The operator behind a proxy that fails on command, before a real API server with its controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.operator.faults.site import Site, define
from tests.support.issuer import FaultIssuer
from tests.support.kube_fixtures import cluster, controlled_cluster, start_cluster
from tests.support.kube_proxy import KubeProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.cluster import Cluster

__all__ = ["cluster", "controlled_cluster", "start_cluster"]


@pytest.fixture
async def site(controlled_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Site]:
    define(controlled_cluster)
    with (
        controlled_cluster.namespace("team") as team,
        controlled_cluster.namespace("keyferry") as home,
        KubeProxy(controlled_cluster.access, tmp_path) as proxy,
    ):
        async with FaultIssuer() as issuer:
            yield Site(controlled_cluster, team, home, issuer, tmp_path, proxy)
