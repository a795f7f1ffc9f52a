"""That the real cluster is one: what the operator's tests rely on."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest

from tests.support import cluster as clusters
from tests.support import kubernetes_binaries
from tests.support.cluster import Cluster, NotOursError
from tests.support.kube_api import Api, ApiError, eventually
from tests.support.servers import is_locked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.servers import SharedRun

RBAC = "rbac.authorization.k8s.io"


def config_map(namespace: str, name: str = "settings", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data or {"a": "1"},
    }


def grant(api: Api, namespace: str, account: str, resource: str, *verbs: str) -> None:
    """Give a service account rights on a resource of its namespace."""
    metadata = {"name": f"{account}-{resource}", "namespace": namespace}
    rule = {"apiGroups": [""], "resources": [resource], "verbs": list(verbs)}
    api.apply({"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]})
    api.apply(
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }
    )


@pytest.mark.cluster
class TestApi:
    def test_apply_tells_of_a_conflict(self, cluster: Cluster, namespace: str) -> None:
        cluster.api.apply(config_map(namespace, a="1"), manager="one")
        with pytest.raises(ApiError) as refused:
            cluster.api.apply(config_map(namespace, a="2"), manager="two", force=False)
        assert (refused.value.code, refused.value.reason) == (409, "Conflict")
        cluster.api.apply(config_map(namespace, a="2"), manager="two")
        assert cluster.api.get("v1", "ConfigMap", "settings", namespace)["data"] == {"a": "2"}

    def test_stale_replace_is_a_conflict(self, cluster: Cluster, namespace: str) -> None:
        first = cluster.api.create(config_map(namespace))
        cluster.api.patch(first, {"data": {"a": "2"}})
        with pytest.raises(ApiError) as refused:
            cluster.api.replace(first)
        assert refused.value.code == 409

    def test_delete_and_find(self, cluster: Cluster, namespace: str) -> None:
        made = cluster.api.create(config_map(namespace))
        # Controllers, where the run has some, put the CA into every namespace.
        found = {item["metadata"]["name"] for item in cluster.api.items("v1", "ConfigMap", namespace)}
        assert found - {"kube-root-ca.crt"} == {"settings"}
        cluster.api.delete(made)
        cluster.api.delete(made)
        assert cluster.api.find("v1", "ConfigMap", "settings", namespace) is None

    def test_custom_resources(self, cluster: Cluster, namespace: str) -> None:
        kind = {"plural": "kites", "singular": "kite", "kind": "Kite"}
        group = f"{namespace}.example.test"
        schema = {"type": "object", "properties": {"spec": {"type": "object", "required": ["wind"]}}}
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
        definition = cluster.api.apply(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"kites.{group}"},
                "spec": {"group": group, "scope": "Namespaced", "names": kind, "versions": [version]},
            }
        )
        eventually(lambda: cluster.api.resources(f"{group}/v1"), "the new kind is served")
        kite = {"apiVersion": f"{group}/v1", "kind": "Kite", "metadata": {"name": "red", "namespace": namespace}}
        with pytest.raises(ApiError, match=r"spec\.wind: Required value"):
            cluster.api.create({**kite, "spec": {}})
        cluster.api.delete(definition)

    def test_unknown_kind(self, cluster: Cluster) -> None:
        with pytest.raises(LookupError, match="no Kite in v1"):
            cluster.api.get("v1", "Kite", "red", "default")


@pytest.mark.cluster
class TestRights:
    def test_service_account_has_what_a_role_gives(self, cluster: Cluster, namespace: str) -> None:
        user = f"system:serviceaccount:{namespace}:default"
        mine = cluster.as_service_account(namespace, "default")
        cluster.api.create(config_map(namespace))
        assert not cluster.api.may(user, "get", "configmaps", namespace)
        with pytest.raises(ApiError, match="cannot get resource") as refused:
            mine.get("v1", "ConfigMap", "settings", namespace)
        assert refused.value.code == 403

        grant(cluster.api, namespace, "default", "configmaps", "get")
        eventually(lambda: cluster.api.may(user, "get", "configmaps", namespace), "the role is in force")
        assert mine.get("v1", "ConfigMap", "settings", namespace)["data"] == {"a": "1"}
        assert not cluster.api.may(user, "get", "configmaps", "kube-system")
        assert not cluster.api.may(user, "get", "secrets", namespace)

    def test_impersonation(self, cluster: Cluster, namespace: str) -> None:
        ada = cluster.api.impersonate("ada", "people", "readers")
        with pytest.raises(ApiError) as refused:
            ada.items("v1", "Secret", namespace)
        assert refused.value.code == 403
        answer = ada.create({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
        assert answer["status"]["userInfo"]["username"] == "ada"
        assert set(answer["status"]["userInfo"]["groups"]) == {"people", "readers", "system:authenticated"}

    def test_wrong_token_is_refused(self, cluster: Cluster) -> None:
        with pytest.raises(ApiError) as refused:
            cluster.api.with_token("nobody").items("v1", "Namespace")
        assert refused.value.code == 401


@pytest.mark.cluster
class TestServiceAccountTokens:
    def test_anyone_can_verify_them(self, cluster: Cluster, namespace: str) -> None:
        token = cluster.api.service_account_token(namespace, "default", ["https://issuer.example.test"], 700)
        trust = ssl.create_default_context(cadata=cluster.ca)
        found = httpx.get(
            f"{cluster.issuer}/.well-known/openid-configuration", verify=trust, trust_env=False, timeout=60
        )
        assert found.json()["issuer"] == cluster.issuer
        keys = jwt.PyJWKSet.from_json(cluster.jwks())
        key = keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(
            token, key, algorithms=["RS256"], audience="https://issuer.example.test", issuer=cluster.issuer
        )
        assert claims["sub"] == f"system:serviceaccount:{namespace}:default"
        assert claims["exp"] - claims["iat"] == 700

        served = httpx.get(found.json()["jwks_uri"], verify=trust, trust_env=False, timeout=60)
        assert served.json() == json.loads(cluster.jwks())

    def test_other_audience_is_no_login(self, cluster: Cluster, namespace: str) -> None:
        token = cluster.api.service_account_token(namespace, "default", ["elsewhere"])
        with pytest.raises(ApiError) as refused:
            cluster.api.with_token(token).request("GET", "/api/v1/namespaces")
        assert refused.value.code == 401


@pytest.mark.cluster
class TestAudit:
    def test_writes_are_counted(self, cluster: Cluster, namespace: str) -> None:
        mark = cluster.audit.mark()
        cluster.api.apply(config_map(namespace))
        cluster.api.apply(config_map(namespace, a="2"))
        cluster.api.get("v1", "ConfigMap", "settings", namespace)
        with pytest.raises(ApiError):
            cluster.api.create(config_map(namespace))
        wanted = {"namespace": namespace, "resource": "configmaps"}
        eventually(lambda: len(cluster.audit.events(mark, **wanted)) >= 4, "four requests are in the audit log")
        assert [event.verb for event in cluster.audit.events(mark, **wanted)] == ["patch", "patch", "get", "create"]
        written = cluster.audit.writes(mark, **wanted)
        assert [event.code for event in written] == [201, 200, 409]
        assert {event.user for event in written} == {"keyferry-tests"}


@pytest.mark.cluster
class TestNamespaces:
    def test_each_is_new_and_emptied(self, cluster: Cluster) -> None:
        with cluster.namespace("mine", labels={"team": "blue"}) as one, cluster.namespace("mine") as other:
            assert one != other
            cluster.api.create(config_map(one))
            cluster.api.create(config_map(other))
            assert cluster.api.get("v1", "Namespace", one)["metadata"]["labels"]["team"] == "blue"
        eventually(lambda: not cluster.api.find("v1", "Namespace", one), f"{one} is gone")
        eventually(lambda: not cluster.api.find("v1", "ConfigMap", "settings", other), f"{other} is empty")

    def test_controllers_collect_what_an_owner_leaves(self, controlled_cluster: Cluster) -> None:
        api = controlled_cluster.api
        with controlled_cluster.namespace() as name:
            owner = api.create(config_map(name, "owner"))
            child = config_map(name, "child")
            reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
            child["metadata"]["ownerReferences"] = [reference]
            api.create(child)
            api.delete(owner)
            eventually(lambda: not api.find("v1", "ConfigMap", "child", name), "the child is collected")
            # The certificates of a new namespace come from a controller of their own, in its own time.
            eventually(lambda: api.find("v1", "ConfigMap", "kube-root-ca.crt", name), "the namespace has the CA")
            assert api.get("v1", "ConfigMap", "kube-root-ca.crt", name)["data"]["ca.crt"] == controlled_cluster.ca
        eventually(lambda: not api.find("v1", "Namespace", name), f"{name} is gone")


CHART = {
    "Chart.yaml": "apiVersion: v2\nname: kite\nversion: 1.0.0\n",
    "values.yaml": "wind: north\n",
    "templates/settings.yaml": """
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}-settings}
data: {wind: {{ .Values.wind }}}
""",
}


@pytest.mark.cluster
class TestPrograms:
    def test_kubectl(self, cluster: Cluster, namespace: str, tmp_path: Path) -> None:
        cluster.kubectl("apply", "--filename=-", text=json.dumps(config_map(namespace)))
        asked = ["--namespace", namespace, "get", "configmap", "settings", "--output=jsonpath={.data.a}"]
        assert cluster.kubectl(*asked) == "1"

        token = cluster.api.service_account_token(namespace, "default")
        mine = cluster.kubeconfig_for(token, tmp_path / "kubeconfig")
        assert mine.stat().st_mode & 0o077 == 0
        refused = cluster.try_run("kubectl", *asked, kubeconfig=mine)
        assert refused.returncode == 1
        assert "Forbidden" in refused.stderr

    def test_helm(self, cluster: Cluster, namespace: str, tmp_path: Path) -> None:
        for name, text in CHART.items():
            file = tmp_path / "kite" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        chart = str(tmp_path / "kite")
        cluster.helm("install", "red", chart, "--namespace", namespace, "--set", "wind=south", "--wait")
        assert cluster.api.get("v1", "ConfigMap", "red-settings", namespace)["data"] == {"wind": "south"}
        cluster.helm("uninstall", "red", "--namespace", namespace)
        assert cluster.api.find("v1", "ConfigMap", "red-settings", namespace) is None


@pytest.mark.cluster
@pytest.mark.slow
def test_own_cluster_outlives_its_api_server(start_cluster: Callable[..., Cluster], cluster: Cluster) -> None:
    mine = start_cluster()
    assert mine.url != cluster.url
    with mine.namespace() as name:
        uid = mine.api.create(config_map(name))["metadata"]["uid"]
        token = mine.api.service_account_token(name, "default")
        mine.stop_apiserver()
        with pytest.raises(httpx.ConnectError):
            mine.api.get("v1", "ConfigMap", "settings", name)
        mine.start_apiserver()
        assert mine.api.get("v1", "ConfigMap", "settings", name)["metadata"]["uid"] == uid
        with pytest.raises(ApiError) as refused:
            mine.api.with_token(token).items("v1", "Secret", name)
        assert refused.value.code == 403, "a token of before is still known"
    control = mine.control
    assert control is not None
    mine.stop()
    assert not is_locked(control.directory / "own-etcd.alive")
    assert not control.files.exists()


@pytest.mark.cluster
class TestGivenCluster:
    def test_kubeconfig_of_a_person(
        self, cluster: Cluster, shared_run: SharedRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(clusters.KUBECONFIG_VARIABLE, str(cluster.kubeconfig))
        given = clusters.shared_cluster(shared_run)
        assert given.control is None
        assert given.api.get("v1", "Namespace", "default")["metadata"]["name"] == "default"
        assert given.kubectl("get", "namespace", "default", "--output=name") == "namespace/default\n"
        with pytest.raises(NotOursError, match="not the tests' own"):
            given.start_apiserver()

    def test_shared_api_server_is_not_stopped(self, cluster: Cluster) -> None:
        with pytest.raises(NotOursError, match="whole test run"):
            cluster.stop_apiserver()


@pytest.mark.parametrize("text", ["", "clusters: []", "current-context: here\ncontexts: []\n"])
def test_bad_kubeconfig_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    monkeypatch.setenv(clusters.KUBECONFIG_VARIABLE, str(path))
    assert str(clusters.problem()).startswith(f"{path} is no kubeconfig that can be used")


def test_incomplete_assets_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clusters.KUBECONFIG_VARIABLE, raising=False)
    monkeypatch.setenv(kubernetes_binaries.ASSETS_VARIABLE, str(tmp_path))
    (tmp_path / "etcd").touch()
    assert clusters.problem() == f"KUBEBUILDER_ASSETS is {tmp_path}, which has no kube-apiserver"


def test_go_mod_replaces_staging_modules() -> None:
    own = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.1.0\n)\n"
    derived = kubernetes_binaries.derived_go_mod(own)
    assert "require k8s.io/kubernetes v1.36.3\n" in derived
    assert "k8s.io/api => k8s.io/api v0.36.3\n" in derived
    assert "klog" not in derived
    assert "\ngo 1.26.0\n" in derived
