from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.operator.kubectl.conftest import EDITOR, GROUP, VIEWER, identity
from tests.support.kube_api import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.operator.kubectl.conftest import Ran
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

CANARY = "canary-in-a-secret"


def provider(namespace: str, name: str = "issuer") -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": "TokenProvider",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "OAuth",
            "oauth": {
                "issuer": "https://auth.example.org",
                "client": {"id": "bot", "secretsFrom": [{"secretKeyRef": {"name": "bot", "key": "secret"}}]},
            },
        },
    }


def secret(namespace: str, *, label: bool = True, hosts: str = "auth.example.org") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "bot",
            "namespace": namespace,
            "labels": {"keyferry.dev/credential": "true"} if label else {},
            "annotations": {"keyferry.dev/hosts": hosts},
        },
        "stringData": {"secret": CANARY},
    }


def write(path: Path, *documents: dict[str, Any]) -> Path:
    for document in documents:
        document["metadata"].pop("namespace", None)
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_what_is_right_is_right_in_the_cluster_too_and_nothing_is_stored(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    path = write(tmp_path / "r.yaml", provider(people), identity("nightly", people))
    cluster.api.apply(secret(people))
    ran = kubectl_keyferry("lint", path, "-n", people, "--as", EDITOR)
    assert (ran.code, ran.out, ran.err) == (0, "1 identity, 1 provider: no mistakes\n", "")
    assert cluster.api.items(GROUP, "ServiceIdentity", people) == []


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (None, 0, "Secret {namespace}/bot is neither in the cluster nor among the files"),
        ({"label": False}, 2, "is not labelled as a credential; if it is meant to be: kubectl -n {namespace} label"),
        ({"hosts": "other.example.org"}, 2, "is not for auth.example.org; if it is meant to be: kubectl"),
    ],
)
def test_the_secrets_of_the_cluster_are_looked_at_and_never_into(
    cluster: Cluster,
    people: str,
    kubectl_keyferry: Callable[..., Ran],
    tmp_path: Path,
    given: dict[str, Any] | None,
    code: int,
    words: str,
) -> None:
    if given is not None:
        cluster.api.apply(secret(people, **given))
    path = write(tmp_path / "r.yaml", provider(people), identity("nightly", people))
    ran = kubectl_keyferry("lint", path, "-n", people, "--as", EDITOR)
    assert ran.code == code, ran.err
    assert words.format(namespace=people) in ran.out
    assert CANARY not in ran.out + ran.err


def test_a_secret_among_the_files_counts_as_it_is_there(
    people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    path = write(tmp_path / "r.yaml", provider(people), secret(people, label=False))
    ran = kubectl_keyferry("lint", path, "-n", people)
    assert ran.code == 2
    assert "is not labelled" in ran.out


def test_what_may_not_be_read_is_said_and_not_guessed(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    cluster.api.apply(secret(people, label=False))
    path = write(tmp_path / "r.yaml", provider(people), identity("nightly", people))
    ran = kubectl_keyferry("lint", path, "-n", people, "--as", VIEWER)
    assert ran.code == 0
    assert f"vera may not get secrets in namespace {people}" in ran.err
    assert f"vera may not patch serviceidentities.keyferry.dev in namespace {people}" in ran.err
    assert "was not asked what it makes of them" in ran.err


def test_providers_and_identities_of_the_cluster_count(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    chained = {"type": "JwtBearer", "jwtBearer": {"assertion": {"identityRef": {"name": "first"}}}}
    path = write(tmp_path / "r.yaml", identity("second", people, grant=chained))
    ran = kubectl_keyferry("lint", path, "-n", people)
    assert ran.code == 2
    assert "there is no TokenProvider issuer" in ran.out
    assert f"refers to ServiceIdentity {people}/first, which is not there" in ran.out
    cluster.api.apply(provider(people))
    cluster.api.apply(identity("first", people))
    cluster.api.apply(secret(people))
    ran = kubectl_keyferry("lint", path, "-n", people)
    assert "spec.consumers: needs a consumer {identityName: second}" in ran.out
    cluster.api.apply(identity("first", people, consumers=[{"identityName": "second"}]))
    assert kubectl_keyferry("lint", path, "-n", people).code == 0


def test_what_the_api_server_alone_refuses_is_told_at_the_place(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": people},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": people}},
                "resourceRules": [
                    {
                        "apiGroups": ["keyferry.dev"],
                        "apiVersions": ["*"],
                        "resources": ["serviceidentities"],
                        "operations": ["CREATE"],
                    }
                ],
            },
            "validations": [{"expression": "has(object.spec.scopes)", "message": "the site wants scopes"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": people},
        "spec": {"policyName": people, "validationActions": ["Deny"]},
    }
    cluster.api.apply(provider(people))
    cluster.api.apply(secret(people))
    path = write(tmp_path / "r.yaml", identity("nightly", people))

    def refused() -> Ran | None:
        ran = kubectl_keyferry("lint", path, "-n", people, "-o", "json")
        return ran if ran.code else None

    for document in (policy, binding):
        cluster.api.apply(document)
    try:
        ran = eventually(refused, "the API server has noticed the policy")
    finally:
        for document in (binding, policy):
            cluster.api.delete(document)
    (problem,) = json.loads(ran.out)["problems"]
    assert ran.code == 2
    assert "the site wants scopes" in problem["message"]
    assert problem["line"] == 1


def test_a_namespace_that_is_not_there_is_a_mistake(
    people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    path = write(tmp_path / "r.yaml", provider(people))
    ran = kubectl_keyferry("lint", path, "-n", "no-such-namespace")
    assert ran.code == 2
    assert 'namespaces "no-such-namespace" not found' in ran.out


def test_no_cluster_is_no_obstacle(people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path) -> None:
    tiled = identity("nightly", people, target={"files": [{"format": "LabArchives"}]})
    path = write(tmp_path / "r.yaml", provider(people), tiled)
    ran = kubectl_keyferry("lint", path, "--offline")
    assert (ran.code, ran.err) == (2, "")
    assert "LabArchives cannot be kept in a Secret" in ran.out
    ran = kubectl_keyferry("lint", path, "--kubeconfig", tmp_path / "nowhere")
    assert ran.code == 2
    assert "no cluster is asked: there is no kubeconfig" in ran.err
