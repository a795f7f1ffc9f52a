from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry_operator.crds import manifests
from tests.crash.zygote import Zygote
from tests.support.kube_fixtures import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def definitions(cluster: Cluster) -> Cluster:
    """Return the run's cluster, which knows our resources."""
    for manifest in manifests():
        cluster.api.apply(manifest, manager="user")
    return cluster


@pytest.fixture(scope="session")
def replicas() -> Iterator[Zygote]:
    """Return the process that forks replicas of the operator."""
    with Zygote("tests.crash.cluster.worker") as zygote:
        yield zygote
