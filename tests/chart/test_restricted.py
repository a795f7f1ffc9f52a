"""The release's pods in a namespace whose Pod Security Standard is "restricted", as a real API server judges."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from tests.operator.injection import samples
from tests.operator.injection.samples import asking, pod
from tests.support.kube_api import ApiError

if TYPE_CHECKING:
    from tests.chart.conftest import Document, Helm
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def pod_of(deployment: Document, home: str) -> Document:
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": deployment["metadata"]["name"], "namespace": home}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def injected(home: str) -> Document:
    """A restricted pod, after the webhook was asked about it: no less restricted."""
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": "app",
        "image": "app:1",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    body = pod(asking(clients="tiled,labarchives"), securityContext=security, containers=[container])
    body["metadata"] |= {"name": "app", "namespace": home}
    return samples.injected(body)


@pytest.mark.parametrize("values", [{}, {"runAsUser": None}], ids=["default", "OpenShift"])
def test_every_pod_is_admitted(cluster: Cluster, helm: Helm, values: Document) -> None:
    with cluster.namespace("restricted", labels=RESTRICTED) as home:
        page = {"page": {"enabled": True, "url": "https://keyferry.example.org"}}
        rendered = helm.template(values | page, home=home)
        for account in rendered.of("ServiceAccount"):
            cluster.api.create(account)
        operator, page = (pod_of(each, home) for each in rendered.of("Deployment"))
        for pod in (operator, page, rendered.one("Pod"), injected(home)):
            cluster.api.create(pod)

        freer = copy.deepcopy(operator)
        freer["metadata"]["name"] = "freer"
        freer["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        with pytest.raises(ApiError, match='violates PodSecurity "restricted:latest"'):
            cluster.api.create(freer)
