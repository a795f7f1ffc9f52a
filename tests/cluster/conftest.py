from __future__ import annotations

# pytest finds fixtures by their names in a conftest.
from tests.support.kube_fixtures import cluster, controlled_cluster, namespace, node, node_namespace, start_cluster

__all__ = ["cluster", "controlled_cluster", "namespace", "node", "node_namespace", "start_cluster"]
