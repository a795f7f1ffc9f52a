"""The rights that the broker API uses when a pod asks, each taken away by itself: named, and given back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import kopf
import pytest
from aiohttp.test_utils import make_mocked_request

from keyferry_operator.api.answers import Denied
from keyferry_operator.api.callers import Callers
from keyferry_operator.api.jwks import ClusterKeys
from keyferry_operator.api.pods import LivePods
from keyferry_operator.client import KubeClient
from tests.chart.rights import Place, Right, needed
from tests.operator.live.conftest import Field
from tests.operator.live.pods import Pod, prepare, serving
from tests.operator.live.test_rights import ACCOUNT, installation

if TYPE_CHECKING:
    from tests.operator.live.test_rights import Installation

__all__ = ["installation"]

pytestmark = pytest.mark.cluster

CONSUMERS = [{"serviceAccountName": "ingest"}]
REVIEWS = Right("authentication.k8s.io", "tokenreviews", "create")
FOR_PODS = sorted(needed(Place.WATCHED) - needed(Place.WATCHED, broker=False))


@dataclass
class Limited(Field):
    """The same field, in which the operator is the chart's ServiceAccount and has its rights alone."""

    def login(self) -> kopf.ConnectionInfo:
        access = self.cluster.access
        token = self.cluster.api.service_account_token(self.home, ACCOUNT)
        return kopf.ConnectionInfo(server=access.url, ca_data=access.ca, token=token)


def limited(installation: Installation) -> Limited:
    return Limited(**vars(installation.field))


def test_they_are_all_here() -> None:
    of_cluster = needed(Place.CLUSTER) - needed(Place.CLUSTER, broker=False)
    assert {right.resource for right in FOR_PODS} == {"configmaps", "pods", "serviceaccounts"}
    assert of_cluster == {REVIEWS}


@pytest.mark.parametrize("right", FOR_PODS, ids=lambda right: f"{right.verb}-{right.resource}")
async def test_a_right_that_pods_need_is_named_and_their_token_comes_once_it_is_there(
    installation: Installation, right: Right, caplog: pytest.LogCaptureFixture
) -> None:
    field, api = limited(installation), installation.field.cluster.api
    installation.grant(without=right, place="team")
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    pod = Pod.create(field, "ingest-1")
    missing = f"may not {right.verb} {right.resource}"
    async with serving(field) as site:
        await field.until_ready("nightly")
        if right.resource == "configmaps":
            await field.until(lambda: f"{field.namespace}/keyferry-ca cannot be written yet" in caplog.text)
            assert f"{missing} (keyferry-ca) in namespace {field.namespace}" in caplog.text
            assert api.find("v1", "ConfigMap", "keyferry-ca", field.namespace) is None
            assert (await site.get(pod.token())).status_code == 200, "who trusts the broker otherwise is served"
            return
        for _ in range(2):
            refused = await site.get(pod.token())
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 2
            assert right.resource not in refused.text, "what the operator may is nothing for pods"
        assert caplog.text.count(missing) == 1, "it is said, and not each time"
        assert "cannot be written yet" not in caplog.text
        installation.grant()
        assert (await site.get(pod.token())).status_code == 200


async def test_without_the_right_to_ask_whose_a_token_is_nobody_is_believed(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    """As in an installation for a list of namespaces, where there is no such right; the cluster's keys do without."""
    field, api = limited(installation), installation.field.cluster.api
    installation.grant()
    pod = Pod.create(field, "ingest-1")
    token = pod.token()

    async def status() -> int:
        request = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {token}"})
        try:
            assert (await callers.identify(request)).pod == "ingest-1"
        except Denied as denied:
            return denied.problem.status
        return 200

    async with (
        KubeClient(field.login()) as client,
        KubeClient(replace(field.login(), server="https://127.0.0.1:1")) as away,
    ):
        callers = Callers(client, ClusterKeys(away), LivePods(client))
        assert await status() == 503
        assert "may not create tokenreviews in the cluster" in caplog.text
        name = {"name": f"reviews-{field.home}"}
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": name,
            "rules": [{"apiGroups": [REVIEWS.group], "resources": [REVIEWS.resource], "verbs": [REVIEWS.verb]}],
        }
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": name,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", **name},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": field.home}],
        }
        try:
            for document in (role, binding):
                api.apply(document, manager="chart")
            await field.until(lambda: _may_review(field))
            assert await status() == 200
        finally:
            for document in (binding, role):
                api.delete(document)


def _may_review(field: Field) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": {
            "user": f"system:serviceaccount:{field.home}:{ACCOUNT}",
            "resourceAttributes": {"group": REVIEWS.group, "resource": REVIEWS.resource, "verb": REVIEWS.verb},
        },
    }
    return bool(field.cluster.api.create(review)["status"]["allowed"])
