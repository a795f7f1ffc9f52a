"""Fixtures of the tiers ``cluster`` and ``node``, for the conftest of tests that need them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyferry import __version__
from tests.support import cluster as clusters
from tests.support import kube_node
from tests.support.tier import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.cluster import Cluster
    from tests.support.kube_node import Node
    from tests.support.kube_servers import Options
    from tests.support.servers import SharedRun

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster(shared_run: SharedRun) -> Cluster:
    """Return the run's Kubernetes API; the tier ``cluster`` is skipped, or fails, where none can be had."""
    require("cluster", clusters.problem())
    return clusters.shared_cluster(shared_run)


@pytest.fixture(scope="session")
def controlled_cluster(cluster: Cluster, shared_run: SharedRun) -> Cluster:
    """Return the run's cluster with a controller manager: namespaces end, garbage is collected."""
    require("cluster", clusters.controllers_problem())
    assert cluster.url
    return clusters.shared_controllers(shared_run)


@pytest.fixture(scope="session")
def node(shared_run: SharedRun) -> Node:
    """Return the run's node, a cluster of its own that runs pods; the tier ``node`` is skipped, or fails, where not."""
    require("node", kube_node.problem())
    return kube_node.shared_node(shared_run)


@pytest.fixture
def node_namespace(node: Node) -> Iterator[str]:
    """Return a new namespace of the node's cluster, deleted after the test."""
    with node.cluster.namespace() as name:
        yield name


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Return a new namespace of the run's cluster, deleted after the test."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Return a function that starts a cluster of the test's own (with ``Options``), whose API server can be stopped."""
    require("cluster", clusters.problem())
    started: list[Cluster] = []

    def start(options: Options | None = None) -> Cluster:
        directory = tmp_path / f"cluster-{len(started)}"
        directory.mkdir(mode=0o700)
        started.append(clusters.start_cluster(directory, options))
        return started[-1]

    yield start
    for cluster in started:
        cluster.stop()


@pytest.fixture(scope="session")
def keyferry_image(node: Node, shared_run: SharedRun) -> str:
    """Return the image that the repository's Dockerfile makes, in the node's containerd; it is built once for a run."""

    def build() -> dict[str, str]:
        given = {name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ}
        return {"image": node.build_image(f"localhost/keyferry:{__version__}", REPOSITORY, arguments=given)}

    return str(shared_run.shared("keyferry-image", build)["image"])
