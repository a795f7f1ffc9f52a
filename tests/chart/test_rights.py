"""Least rights: what the sources ask for is what the table says and the chart grants; tried on a real API server."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import keyferry_operator
from tests.chart.conftest import HOME
from tests.chart.rights import CALLS, KOPF, Call, Place, Right, calls_in, granted, needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chart.conftest import Helm, Rendered
    from tests.support.cluster import Cluster

SOURCES = Path(keyferry_operator.__file__).parent
EVERYTHING: dict[str, Any] = {"serviceAccountTokens": {"enabled": True}, "touchPods": {"enabled": True}}
TEAMS: dict[str, Any] = {"watch": {"namespaces": ["team-a", "team-b"]}}
CONTROLLER = "servicebinding.io/controller"
OF_ALL = {"ClusterRole", "ClusterRoleBinding", "MutatingWebhookConfiguration"}
DANGEROUS = {"kf-keyferry-service-account-tokens": Place.TOKENS, "kf-keyferry-touch-pods": Place.PODS}


def rules_of(document: dict[str, Any]) -> set[Right]:
    return granted(document["rules"])


def named(right: Right) -> str:
    """The one object of a kind that a right is for, where there is one."""
    return "keyferry-ca" if right == Right("", "configmaps", "patch") else ""


def people(rendered: Rendered) -> set[str]:
    """The names of the ClusterRoles that are added to others' roles, and bound to nobody by the chart."""
    return {
        role["metadata"]["name"]
        for role in rendered.of("ClusterRole")
        if any("aggregate-to-" in label or label == CONTROLLER for label in role["metadata"]["labels"])
    }


def test_the_table_names_every_call_of_the_operator() -> None:
    found: set[Call] = set()
    for module in (*SOURCES.glob("*.py"), *SOURCES.glob("api/*.py")):
        found |= calls_in(module)
    assert found == set(CALLS), "the operator asks the API server for something else: change the table and the chart"
    assert {"IDENTITIES", "PROVIDERS", "CLUSTER_PROVIDERS"} == set(KOPF)


@pytest.mark.cluster
class TestRendered:
    def test_cluster(self, helm: Helm) -> None:
        rendered = helm.template()
        role = rendered.one("ClusterRole", "kf-keyferry")
        named = needed(Place.ORIGIN) | needed(Place.WEBHOOK)
        assert rules_of(role) == needed(Place.WATCHED) | needed(Place.CLUSTER) | named
        names = {tuple(rule["resources"]): rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule}
        assert names == {
            ("configmaps",): ["keyferry-ca"],
            ("mutatingwebhookconfigurations",): ["kf-keyferry"],
            ("namespaces",): ["kube-system"],
        }
        namespaces = {tuple(rule["verbs"]): rule for rule in role["rules"] if "namespaces" in rule["resources"]}
        assert {verbs: rule.get("resourceNames") for verbs, rule in namespaces.items()} == {
            ("list", "watch"): None,
            ("get",): ["kube-system"],
        }
        private = rendered.one("Role")
        assert private["metadata"]["namespace"] == HOME
        assert rules_of(private) == needed(Place.PRIVATE)
        assert {role["metadata"]["name"] for role in rendered.of("ClusterRole")} - people(rendered) == {"kf-keyferry"}

    def test_every_binding_names_a_role_of_the_release_and_the_operator_alone(self, helm: Helm) -> None:
        for values in (EVERYTHING, EVERYTHING | TEAMS):
            rendered = helm.template(values)
            for kind in ("Role", "ClusterRole"):
                bindings = rendered.of(f"{kind}Binding")
                roles = rendered.of(kind)
                where = sorted((role["metadata"]["name"], role["metadata"].get("namespace", "")) for role in roles)
                bound = [(each["roleRef"]["name"], each["metadata"].get("namespace", "")) for each in bindings]
                assert sorted(bound) == [each for each in where if each[0] not in people(rendered)]
                for binding in bindings:
                    assert binding["roleRef"]["kind"] == kind
                    account = {"kind": "ServiceAccount", "name": "kf-keyferry", "namespace": HOME}
                    assert binding["subjects"] == [account]

    def test_namespaces(self, helm: Helm) -> None:
        rendered = helm.template(EVERYTHING | TEAMS)
        assert not rendered.of("ClusterRole")
        assert not rendered.of("ClusterRoleBinding")
        roles = {(role["metadata"]["namespace"], role["metadata"]["name"]): role for role in rendered.of("Role")}
        wanted = {
            **{
                (team, name): needed(place)
                for team in ("team-a", "team-b")
                for name, place in {"kf-keyferry": Place.WATCHED, **DANGEROUS}.items()
            },
            (HOME, "kf-keyferry-private"): needed(Place.PRIVATE) | needed(Place.HOME),
            ("kube-system", f"kf-keyferry-origin-{HOME}"): needed(Place.ORIGIN),
        }
        assert {key: rules_of(role) for key, role in roles.items()} == wanted
        assert [argument for argument in rendered.container["args"] if "namespace" in argument] == [
            "--watch-namespace=team-a",
            "--watch-namespace=team-b",
        ]

    def test_the_page_of_a_list_of_namespaces_can_be_known_by_its_token(self, helm: Helm) -> None:
        page = {"page": {"enabled": True, "url": "https://keyferry.example.org"}}
        private = helm.template(page | TEAMS).one("Role", "kf-keyferry-private")
        assert rules_of(private) == needed(Place.PRIVATE) | needed(Place.HOME) | needed(Place.PAGE)
        assert rules_of(helm.template(page).one("Role")) == needed(Place.PRIVATE)

    def test_a_dangerous_right_has_its_own_switch_and_role(self, helm: Helm) -> None:
        assert not DANGEROUS.keys() & {role["metadata"]["name"] for role in helm.template().of("ClusterRole")}
        rendered = helm.template(EVERYTHING)
        for name, place in DANGEROUS.items():
            assert rules_of(rendered.one("ClusterRole", name)) == needed(place)
        for flag in ("--service-account-tokens", "--touch-pods"):
            assert flag in rendered.container["args"]
            assert flag not in helm.template().container["args"]

    def test_counting_pods_is_a_right_of_its_own(self, helm: Helm) -> None:
        values = {"webhook": {"countPods": {"enabled": True}}}
        rendered = helm.template(values)
        assert rules_of(rendered.one("ClusterRole", "kf-keyferry-count-pods")) == needed(Place.COUNTS)
        assert "--count-pods" in rendered.container["args"]
        without = helm.template(values | TEAMS)
        assert "--count-pods" not in without.container["args"]
        assert not [role for role in without.of("Role") if role["metadata"]["name"].endswith("count-pods")]

    def test_without_a_webhook_or_the_broker_there_are_no_rights_for_it(self, helm: Helm) -> None:
        def rights(values: dict[str, Any]) -> set[Right]:
            return rules_of(helm.template(values).one("ClusterRole", "kf-keyferry"))

        everything = rights({})
        assert everything - rights({"webhook": {"enabled": False}}) == needed(Place.WEBHOOK)
        served = {
            Right("", "configmaps", "create"),
            Right("", "configmaps", "patch"),
            Right("", "pods", "get"),
            Right("", "serviceaccounts", "get"),
            Right("authentication.k8s.io", "tokenreviews", "create"),
        }
        assert everything - rights({"broker": {"enabled": False}}) == needed(Place.WEBHOOK) | served

    def test_replicas_that_share_may_delete_the_leases_of_those_that_are_gone(self, helm: Helm) -> None:
        (private,) = (role for role in helm.template({"shards": 4}).of("Role") if role["metadata"]["namespace"] == HOME)
        assert rules_of(private) == needed(Place.PRIVATE) | needed(Place.SHARES)

    def test_tokens_of_named_accounts_alone(self, helm: Helm) -> None:
        rendered = helm.template({"serviceAccountTokens": {"enabled": True, "names": ["ingest", "report"]}})
        role = rendered.one("ClusterRole", "kf-keyferry-service-account-tokens")
        assert {tuple(rule["resourceNames"]) for rule in role["rules"]} == {("ingest", "report")}

    def test_no_wildcard_anywhere(self, helm: Helm) -> None:
        for values in ({}, EVERYTHING, EVERYTHING | TEAMS, TEAMS | {"rbac": {"aggregatedRoles": "Always"}}):
            rendered = helm.template(values)
            for role in rendered.of("Role") + rendered.of("ClusterRole"):
                assert not [right for right in rules_of(role) if "*" in "".join(right)]
                assert not [rule for rule in role["rules"] if "nonResourceURLs" in rule]

    def test_people_get_rights_on_our_resources_and_on_nothing_else(self, helm: Helm) -> None:
        rendered = helm.template()
        view, edit = (rendered.one("ClusterRole", f"kf-keyferry-{name}") for name in ("view", "edit"))
        assert {right.group for right in rules_of(view) | rules_of(edit)} == {"keyferry.dev"}
        assert {right.verb for right in rules_of(view)} == {"get", "list", "watch"}
        assert {right.resource for right in rules_of(edit)} == {"serviceidentities", "tokenproviders"}
        for role, added in ((view, ("view", "edit", "admin")), (edit, ("edit", "admin"))):
            labels = {label for label in role["metadata"]["labels"] if "aggregate-to-" in label}
            assert labels == {f"rbac.authorization.k8s.io/aggregate-to-{name}" for name in added}
        binding = rendered.one("ClusterRole", "kf-keyferry-service-binding")
        assert binding["metadata"]["labels"][CONTROLLER] == "true"
        read = {Right("keyferry.dev", "serviceidentities", verb) for verb in ("get", "list", "watch")}
        assert rules_of(binding) == read
        assert people(helm.template({"rbac": {"aggregatedRoles": "Never"}})) == set()
        assert people(helm.template(TEAMS | {"rbac": {"aggregatedRoles": "Always"}})) != set()

    def test_none_where_somebody_else_grants_them(self, helm: Helm) -> None:
        rendered = helm.template({"rbac": {"create": False, "aggregatedRoles": "Never"}, **EVERYTHING})
        assert not [document for document in rendered if "Role" in document["kind"]]


@pytest.mark.cluster
class TestTried:
    """The rendered roles on a real API server, which is asked right by right."""

    ACCOUNT = "system:serviceaccount:{home}:kf-keyferry"

    @contextmanager
    def installed(self, cluster: Cluster, rendered: Rendered) -> Iterator[None]:
        """Apply the account and its rights; take those away again that no namespace takes with it."""
        documents = [each for each in rendered if "Role" in each["kind"] or each["kind"] == "ServiceAccount"]
        try:
            for document in documents:
                cluster.api.apply(document, manager="chart")
            yield
        finally:
            for document in documents:
                if document["metadata"].get("namespace") == "kube-system":
                    cluster.api.delete(document)

    def may(self, cluster: Cluster, home: str, right: Right, namespace: str = "", name: str = "") -> bool:
        resource, _, below = right.resource.partition("/")
        asked = {"group": right.group, "resource": resource, "subresource": below, "verb": right.verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": self.ACCOUNT.format(home=home),
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"],
                "resourceAttributes": {**asked, "namespace": namespace, "name": name},
            },
        }
        return bool(cluster.api.create(review)["status"]["allowed"])

    def test_namespaces(self, cluster: Cluster, helm: Helm) -> None:
        with cluster.namespace("team") as team, cluster.namespace("other") as other, cluster.namespace("home") as home:
            values = {"watch": {"namespaces": [team]}, "fullnameOverride": "kf-keyferry"}
            with self.installed(cluster, helm.template(values, home=home)):
                watched, private = needed(Place.WATCHED), needed(Place.PRIVATE) | needed(Place.HOME)
                assert {right for right in watched if self.may(cluster, home, right, team, named(right))} == watched
                assert {right for right in private if self.may(cluster, home, right, home, named(right))} == private
                assert not [right for right in watched | private if self.may(cluster, home, right, other)]
                assert not [right for right in watched - private if self.may(cluster, home, right, home)]
                dangerous = (needed(Place.TOKENS) | needed(Place.PODS)) - needed(Place.WATCHED)
                assert not [right for right in dangerous if self.may(cluster, home, right, team)]
                api = cluster.as_service_account(home, "kf-keyferry")
                assert api.get("v1", "Namespace", "kube-system")["metadata"]["uid"]
                assert not self.may(cluster, home, Right("", "namespaces", "get"), team, team)

    def test_cluster(self, start_cluster: Callable[[], Cluster], helm: Helm) -> None:
        cluster = start_cluster()
        with cluster.namespace("team") as team, cluster.namespace("home") as home:
            rendered = helm.template({"fullnameOverride": "kf-keyferry"}, home=home)
            with self.installed(cluster, rendered):
                wanted = needed(Place.WATCHED) | needed(Place.CLUSTER)
                assert {right for right in wanted if self.may(cluster, home, right, name=named(right))} == wanted
                assert not self.may(cluster, home, Right("", "configmaps", "patch"), team, "kube-root-ca.crt")
                webhook = needed(Place.WEBHOOK)
                cluster.api.apply(rendered.one("MutatingWebhookConfiguration"), manager="chart")
                assert {right for right in webhook if self.may(cluster, home, right, name="kf-keyferry")} == webhook
                assert not [right for right in webhook if self.may(cluster, home, right, name="other")]
                assert not self.may(cluster, home, Right("", "namespaces", "get"), team, team)
                assert not self.may(cluster, home, Right("", "namespaces", "patch"), team, team)
                dangerous = (needed(Place.TOKENS) | needed(Place.PODS)) - needed(Place.WATCHED)
                assert not [right for right in dangerous if self.may(cluster, home, right, team)]

    def test_every_document_is_valid(self, cluster: Cluster, helm: Helm, namespace: str) -> None:
        rendered = helm.template({"networkPolicy": {"enabled": True}, "dashboard": {"enabled": True}}, home=namespace)
        for document in rendered:
            if document["kind"] in OF_ALL:
                continue  # of the whole cluster, which other tests share
            applied = cluster.api.apply(document, manager="chart")
            assert applied["metadata"]["name"] == document["metadata"]["name"]
