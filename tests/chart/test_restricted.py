"""The release's pods in a namespace whose Pod Security Standard is "restricted", as a real API server judges."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from tests.support.kube_api import ApiError

if TYPE_CHECKING:
    from tests.chart.conftest import Document, Helm
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.mark.parametrize("values", [{}, {"runAsUser": None}], ids=["default", "OpenShift"])
def test_every_pod_is_admitted(cluster: Cluster, helm: Helm, values: Document) -> None:
    with cluster.namespace("restricted", labels=RESTRICTED) as home:
        rendered = helm.template(values, home=home)
        cluster.api.create(rendered.one("ServiceAccount"))
        template = rendered.one("Deployment")["spec"]["template"]
        metadata = {**template["metadata"], "name": "operator", "namespace": home}
        operator = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        for pod in (operator, rendered.one("Pod")):
            cluster.api.create(pod)

        freer = copy.deepcopy(operator)
        freer["metadata"]["name"] = "freer"
        freer["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        with pytest.raises(ApiError, match='violates PodSecurity "restricted:latest"'):
            cluster.api.create(freer)
