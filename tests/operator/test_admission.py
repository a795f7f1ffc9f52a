"""Who may use which provider, and what a published Secret may carry, as the installation says it."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry.spec.resources import IdentityResource, ProviderResource, load_object
from keyferry_operator.admission import Admission
from keyferry_operator.installation import TargetSettings


def _resource(kind: str, **spec: Any) -> Any:
    body = {"apiVersion": "keyferry.dev/v1alpha1", "kind": kind, "metadata": {"name": "one", "namespace": "batch"}}
    loaded = load_object(body | {"spec": spec})
    assert not loaded.problems
    return (*loaded.providers, *loaded.identities)[0]


def provider(kind: str = "ClusterTokenProvider", **spec: Any) -> ProviderResource:
    client = {"id": "bot", "authentication": "None"}
    found = _resource(kind, type="OAuth", oauth={"issuer": "https://auth.example.org", "client": client}, **spec)
    assert isinstance(found, ProviderResource)
    return found


def identity(**target: Any) -> IdentityResource:
    found = _resource("ServiceIdentity", providerRef={"name": "a"}, grant={"type": "ClientCredentials"}, target=target)
    assert isinstance(found, IdentityResource)
    return found


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels} if labels else {"name": name}}


def admission(**targets: Any) -> Admission:
    return Admission(TargetSettings.model_validate(targets))


def test_a_namespaced_provider_is_its_namespaces_own() -> None:
    assert admission().admits("batch", provider("TokenProvider")) == ""


def test_a_cluster_provider_is_offered_to_no_namespace_unless_it_says_so() -> None:
    gate = admission()
    gate.see(namespace("batch"))
    said = gate.admits("batch", provider())
    assert "ClusterTokenProvider one has no namespaceSelector, so it is not offered to namespace batch" in said
    assert "`namespaceSelector: {}`" in said
    assert gate.admits("batch", provider(namespaceSelector={})) == ""
    assert gate.admits("not-seen-yet", provider(namespaceSelector={})) == ""


def test_a_selector_looks_at_the_labels_as_they_are() -> None:
    gate, selecting = admission(), provider(namespaceSelector={"matchLabels": {"team": "a", "tier": "b"}})
    refusal = "An administrator can offer it: kubectl label namespace batch team=a tier=b"
    assert refusal in gate.admits("batch", selecting), "not seen yet"
    assert gate.see(namespace("batch", team="a"))
    assert refusal in gate.admits("batch", selecting)
    assert not gate.see(namespace("batch", team="a")), "nothing changed"
    assert gate.see(namespace("batch", team="a", tier="b"))
    assert gate.admits("batch", selecting) == ""
    assert refusal.replace("batch", "other") in gate.admits("other", selecting)
    assert gate.see(namespace("batch"), deleted=True)
    assert refusal in gate.admits("batch", selecting)


def test_what_an_expression_selects_is_said_as_kubectl_writes_it() -> None:
    gate = admission()
    gate.see(namespace("batch"))
    expressions = [
        {"key": "team", "operator": "In", "values": ["a", "b"]},
        {"key": "tier", "operator": "NotIn", "values": ["c"]},
        {"key": "kept", "operator": "Exists"},
        {"key": "old", "operator": "DoesNotExist"},
    ]
    selecting = provider(namespaceSelector={"matchLabels": {"x": "y"}, "matchExpressions": expressions})
    said = gate.admits("batch", selecting)
    assert "`x=y,team in (a,b),tier notin (c),kept,!old`" in said
    assert "kubectl" not in said
    gate.see(namespace("batch", x="y", team="b", kept=""))
    assert gate.admits("batch", selecting) == ""


@pytest.mark.parametrize(
    ("allowed", "key", "permitted"),
    [
        ([], "team", False),
        (["team"], "team", True),
        (["team"], "Team", False),
        (["example.org/*"], "example.org/team", True),
        (["example.org/*"], "sub.example.org/team", False),
        (["example.org/*"], "example.org", False),
        (["example.org/team"], "example.org/teams", False),
        (["*"], "anything.example.org/at-all", True),
    ],
)
@pytest.mark.parametrize("name", ["labels", "annotations"])
def test_only_allowed_keys_are_published(name: str, allowed: list[str], key: str, *, permitted: bool) -> None:
    said = admission(**{name: allowed}).permits(identity(**{name: {key: "x"}}))
    if permitted:
        assert said == ""
    else:
        assert f"spec.target.{name}: this installation does not allow the key {key}" in said
        assert f"add it to the chart value targets.{name}" in said
        other = "annotations" if name == "labels" else "labels"
        assert admission(**{other: ["*"]}).permits(identity(**{name: {key: "x"}}))
    assert admission().permits(identity()) == ""
