from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry_operator.crds import KINDS, manifests
from tests.operator.crds.verdicts import CRD_VERSION, Judge, conditions
from tests.support.kube_api import eventually
from tests.support.kube_fixtures import cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster
    from tests.support.kube_api import Api

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """Return the API with the CRDs in it."""
    for manifest in manifests():
        cluster.api.apply(manifest)
    eventually(lambda: all(_established(cluster.api, kind.full_name) for kind in KINDS), "the CRDs are established")
    cluster.api.forget_resources()
    return cluster.api


def _established(api: Api, name: str) -> bool:
    found = conditions(api.get(CRD_VERSION, "CustomResourceDefinition", name))
    return found.get("Established") == "True" and found.get("NamesAccepted") == "True"


@pytest.fixture(scope="session")
def home(cluster: Cluster) -> Iterator[str]:
    """Return a namespace of all these tests."""
    with cluster.namespace("crds") as name:
        yield name


@pytest.fixture(scope="session")
def judge(cluster: Cluster, api: Api, home: str) -> Iterator[Judge]:
    assert api.resources("keyferry.dev/v1alpha1")
    judge = Judge(cluster, home)
    yield judge
    judge.close()
