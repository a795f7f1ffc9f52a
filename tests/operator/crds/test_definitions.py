"""The definitions in a real API server, in the chart, and in front of people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from keyferry_operator.crds import KINDS, Kind, manifests
from tests.operator.crds.verdicts import CRD_VERSION, V1ALPHA1, Resource, conditions, understood
from tests.spec.samples import identity
from tests.support.kube_api import eventually

if TYPE_CHECKING:
    from tests.support.cluster import Cluster
    from tests.support.kube_api import Api

pytestmark = pytest.mark.cluster

CHART = Path(__file__).parents[3] / "charts" / "keyferry"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_the_api_server_finds_no_fault_with_the_definition(api: Api, kind: Kind) -> None:
    found = conditions(api.get(CRD_VERSION, "CustomResourceDefinition", kind.full_name))
    assert found["Established"] == "True"
    assert found["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in found


@pytest.mark.parametrize("keep", [True, False])
def test_the_chart_renders_the_same_definitions(cluster: Cluster, keep: bool) -> None:  # noqa: FBT001 - a parameter
    expected = {manifest["metadata"]["name"]: manifest for manifest in manifests()}
    for kind in KINDS:
        text = _rendered(cluster, kind.plural, f"crds.keep={str(keep).lower()}")
        (found,) = [document for document in yaml.safe_load_all(text) if document]
        annotations = found["metadata"].pop("annotations", {})
        assert annotations == ({"helm.sh/resource-policy": "keep"} if keep else {})
        assert found == expected[kind.full_name]


def test_the_chart_leaves_the_definitions_out_where_they_are_not_wanted(cluster: Cluster) -> None:
    arguments = ("template", "keyferry", CHART, "--set", "crds.enabled=false")
    found = cluster.try_run("helm", *arguments, "--show-only", "templates/crds/serviceidentities.yaml")
    assert found.returncode != 0
    assert "could not find template" in found.stderr


def _rendered(cluster: Cluster, plural: str, setting: str) -> str:
    path = f"templates/crds/{plural}.yaml"
    return cluster.helm("template", "keyferry", CHART, "--set", setting, "--show-only", path)


def test_people_see_the_columns_of_the_contract(cluster: Cluster, api: Api, home: str) -> None:
    document = identity()
    document["metadata"] = {"name": "seen", "namespace": home}
    api.create(document)
    ready = {"type": "Ready", "status": "True", "reason": "Issued", "message": "all is well"}
    status = {
        "expirationTime": "2100-01-01T00:00:00Z",
        "failureCount": 0,
        "binding": {"name": "seen-token"},
        "conditions": [ready | {"lastTransitionTime": "2026-11-22T00:00:00Z"}],
    }
    api.patch(document, {"status": status}, subresource="status")
    narrow = cluster.kubectl("get", "si", "--namespace", home).split()
    assert narrow[:8] == ["NAME", "READY", "REASON", "GRANT", "EXPIRES", "RENEWS", "SECRET", "AGE"]
    assert narrow[8:13] == ["seen", "True", "Issued", "ClientCredentials", "2100-01-01T00:00:00Z"]
    wide = cluster.kubectl("get", "keyferry", "--namespace", home, "--output", "wide").split()
    assert wide[8:11] == ["PROVIDER", "FAILURES", "MESSAGE"]


def test_kubectl_explains_every_field(cluster: Cluster, api: Api) -> None:
    assert api.find(CRD_VERSION, "CustomResourceDefinition", "serviceidentities.keyferry.dev")
    shown = eventually(
        lambda: cluster.try_run("kubectl", "explain", "si.spec.grant.password.usernameFrom").stdout, "explained"
    )
    assert "Where the user name is kept." in shown


FULL_STATUS: Resource = {
    "observedGeneration": 3,
    "revision": 17,
    "issueTime": "2026-11-22T08:00:00Z",
    "expirationTime": "2026-11-22T09:00:00.5Z",
    "renewalTime": "2026-11-22T08:40:00+00:00",
    "nextAttemptTime": "2026-11-22T08:41:00Z",
    "reauthorizeByTime": "2026-11-23T08:00:00Z",
    "failureCount": 2,
    "lastError": {"code": "invalid_grant", "message": "the provider refused"},
    "lastHandledRenew": "now",
    "lastHandledLogin": "then",
    "authorizedAs": {"subject": "abc", "email": "a@example.org"},
    "binding": {"name": "nightly-token"},
    "approval": {
        "verificationURI": "https://auth.example.org/device",
        "verificationURIComplete": "https://auth.example.org/device?code=A",
        "userCode": "A",
        "expirationTime": "2026-11-22T08:10:00Z",
        "page": "https://keyferry.example.org/a",
    },
    "conditions": [
        {
            "type": kind,
            "status": "False",
            "observedGeneration": 3,
            "lastTransitionTime": "2026-11-22T08:00:00Z",
            "reason": "ApprovalRequired",
            "message": "a person must approve",
        }
        for kind in ("Ready", "Reconciling", "Stalled")
    ],
}


def test_a_status_is_kept_as_it_is_written_and_nothing_else_is(api: Api, home: str) -> None:
    document = identity()
    document["metadata"] = {"name": "stated", "namespace": home}
    created = api.create(document | {"status": FULL_STATUS})
    assert "status" not in created
    api.patch(document, {"status": FULL_STATUS | {"unknown": 1}}, subresource="status")
    found = api.get(V1ALPHA1, "ServiceIdentity", "stated", home)
    assert found["status"] == FULL_STATUS
    (owned,) = (each for each in found["metadata"]["managedFields"] if each.get("subresource") == "status")
    assert owned["fieldsV1"] == {"f:status": {}}  # a line for each field would be longer than the status
    assert found["metadata"]["generation"] == 1
    assert understood(found)
