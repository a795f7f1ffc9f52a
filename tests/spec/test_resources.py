from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from keyferry.model import ObjectKey
from keyferry.spec.core import SecretData
from keyferry.spec.frozen import FrozenMap
from keyferry.spec.grant import GrantType
from keyferry.spec.identity import ProviderKind
from keyferry.spec.provider import ClientAuthentication, ClusterTokenProviderSpec, ProviderType
from keyferry.spec.resources import (
    Sharing,
    load_documents,
    load_object,
    merge_loaded,
    provider_key,
)
from keyferry.spec.target import FileFormat
from tests.spec.samples import CONTRACT, cluster_provider, identity, load, provider, resource

if TYPE_CHECKING:
    from collections.abc import Callable


def messages(loaded: Any) -> list[str]:
    return [str(problem) for problem in loaded.problems]


def test_the_contract_is_read() -> None:
    loaded = load_documents(CONTRACT, "c.yaml")

    assert messages(loaded) == []
    oauth, shared = loaded.providers
    assert oauth.key == ObjectKey("batch", "aiod")
    assert oauth.kind is ProviderKind.TOKEN_PROVIDER
    assert oauth.spec.oauth is not None
    assert oauth.spec.oauth.refresh_tokens.idle == 1800
    assert oauth.spec.oauth.lifetime.maximum == 86400
    assert oauth.spec.oauth.client is not None
    assert oauth.spec.oauth.client.authentication is ClientAuthentication.CLIENT_SECRET_BASIC
    assert (shared.key, shared.kind) == (ObjectKey("keyferry", "shared"), ProviderKind.CLUSTER_TOKEN_PROVIDER)
    assert isinstance(shared.spec, ClusterTokenProviderSpec)
    assert shared.spec.type is ProviderType.TILED
    assert shared.spec.namespace_selector is not None
    assert shared.spec.namespace_selector.matches({})
    (found,) = loaded.identities
    assert found.key == ObjectKey("batch", "nightly-ingest")
    assert (found.uid, found.generation, found.source, found.line) == ("u-1", 3, "c.yaml", 35)
    assert found.annotations == {"keyferry.dev/renew": "now"}
    assert found.spec.grant.type is GrantType.TOKEN_EXCHANGE
    assert [file.format for file in found.spec.target.files] == [
        FileFormat.TOKEN,
        FileFormat.JSON,
        FileFormat.ENV,
        FileFormat.TEMPLATE,
    ]
    assert found.spec.parameters == {"acr_values": "2"}


def test_defaults_are_the_contracts() -> None:
    (found,) = load(identity()).identities
    spec = found.spec
    assert [(file.format, file.name) for file in spec.target.files] == [("Token", "token"), ("Json", "token.json")]
    assert spec.deletion_policy == "Revoke"
    assert spec.provider_ref.kind == "TokenProvider"
    assert (spec.renewal.before, spec.renewal.minimum_remaining) == (None, 0)
    (source,) = load(provider()).providers
    assert source.spec.oauth is not None
    policy, limits = source.spec.oauth.refresh_tokens, source.spec.limits
    assert (policy.rotation, policy.reuse_window, policy.in_doubt) == ("Auto", 0, "ReplayOnce")
    assert (policy.idle, policy.maximum) == (None, None)
    assert (source.spec.oauth.lifetime.assumed, source.spec.oauth.lifetime.maximum) == (300, 86400)
    assert (limits.requests_per_second, limits.burst, limits.concurrency, limits.timeout) == (10, 20, 8, 10)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "Tiled", "tiled": {"url": "http://127.0.0.1:8000/api/v1"}},
        {"type": "OAuth", "oauth": {"endpoints": {"token": "https://a/t?x=y"}}},
        {"type": "OAuth", "oauth": {"issuer": "https://[::1]:8443/a"}},
        {
            "type": "OAuth",
            "oauth": {"issuer": "https://a", "client": {"id": "b", "authentication": "TlsClientAuth"}},
            "tls": {"clientCertificateFrom": {"secretRef": {"name": "c"}}},
        },
    ],
)
def test_providers_may_be_plain(spec: Any) -> None:
    assert messages(load(resource("TokenProvider", spec))) == []


def test_references_resolve_where_the_object_is() -> None:
    own, shared = load(
        identity(), identity(providerRef={"kind": "ClusterTokenProvider", "name": "s"}) | {"metadata": {"name": "y"}}
    ).identities
    assert provider_key(own) == ("TokenProvider", ObjectKey("batch", "p"))
    assert provider_key(shared) == ("ClusterTokenProvider", ObjectKey("keyferry", "s"))
    assert provider_key(shared, "other")[1] == ObjectKey("other", "s")


def test_namespaces_have_defaults() -> None:
    text = yaml.safe_dump_all([resource("ServiceIdentity", identity()["spec"], namespace=None), cluster_provider()])
    loaded = load_documents(text.encode(), "f", default_namespace="mine", cluster_namespace="ops")
    assert loaded.identities[0].key.namespace == "mine"
    assert loaded.providers[0].key == ObjectKey("ops", "shared")


@pytest.mark.parametrize("kind", ["List", "ServiceIdentityList"])
def test_lists_are_opened(kind: str) -> None:
    version = "v1" if kind == "List" else "keyferry.dev/v1alpha1"
    wrong = identity(suspend="no") | {"metadata": {"name": "b"}}
    loaded = load({"apiVersion": version, "kind": kind, "items": [identity(), wrong]})
    assert [found.key.name for found in loaded.identities] == ["x"]
    (problem,) = loaded.problems
    assert (problem.path, problem.resource) == ("spec.suspend", "ServiceIdentity default/b")
    assert load({"apiVersion": "v1", "kind": "List"}).problems == ()
    assert "must be a list" in messages(load({"apiVersion": "v1", "kind": "List", "items": {}}))[0]


def test_json_is_read() -> None:
    loaded = load_documents(json.dumps(identity(scopes=5), indent=1).encode(), "f.json")
    assert messages(loaded) == [
        "f.json:15: ServiceIdentity batch/x: spec.scopes: must be a list, such as [a, b]",
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"anything": "goes"}},
        {"apiVersion": "v1", "kind": "Pod"},
        {"apiVersion": "other.example/v1", "kind": "TokenProvider"},
    ],
)
def test_foreign_resources_are_left_alone(value: Any) -> None:
    assert load(value).problems == ()


def test_the_notation_of_foreign_resources_is_not_judged() -> None:
    foreign = b"apiVersion: example.org/v1\nkind: Template\na: !Ref b\na: 2\n"
    assert load_documents(foreign, "f").problems == ()
    assert len(load_documents(foreign.replace(b"example.org/v1", b"keyferry.dev/v1alpha1"), "f").problems) == 3


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ({"a": 1}, "apiVersion", "is missing"),
        ({"kind": "ServiceIdentity", "metadata": {"name": "x"}}, "apiVersion", "keyferry.dev/v1alpha1"),
        (
            {"apiVersion": "keyferry.dev/v1alpha1"},
            "kind",
            "one of ServiceIdentity, TokenProvider, ClusterTokenProvider",
        ),
        ({"apiVersion": 1, "kind": "x"}, "apiVersion", "must be text"),
        (identity() | {"apiVersion": "keyferry.dev/v1"}, "apiVersion", "reads keyferry.dev/v1alpha1"),
        (identity() | {"apiVersion": "keyfery.dev/v1alpha1"}, "apiVersion", "reads keyferry.dev/v1alpha1"),
        (identity() | {"kind": "ServiceIdentiy"}, "kind", "did you mean ServiceIdentity?"),
        (identity() | {"kind": "Other"}, "kind", "known: ServiceIdentity"),
        (identity() | {"metadata": "x"}, "metadata", "must be a mapping"),
        (identity() | {"metadata": {}}, "metadata.name", "every resource has a name"),
        (identity() | {"metadata": {"name": 5}}, "metadata.name", "put it in quotes"),
        (identity() | {"metadata": {"name": "A"}}, "metadata.name", "DNS-1123 name"),
        (identity() | {"metadata": {"name": "a" * 64}}, "metadata.name", "at most 63"),
        (identity() | {"metadata": {"name": "a", "namespace": "b.c"}}, "metadata.namespace", "DNS-1123 label"),
        (identity() | {"spce": {}}, "spce", "did you mean spec?"),
        (identity() | {"grant": {}}, "grant", "belong to spec"),
        ({k: v for k, v in identity().items() if k != "spec"}, "spec", "its fields are providerRef, grant"),
    ],
)
def test_what_a_resource_is_must_be_right(value: Any, path: str, words: str) -> None:
    loaded = load(value)
    (problem,) = [problem for problem in loaded.problems if problem.path == path]
    assert words in problem.message
    assert loaded.identities == ()


def test_documents_that_are_no_resources_are_problems() -> None:
    assert "is not a resource" in messages(load_documents(b"just text\n", "f"))[0]
    assert "is not a resource" in messages(load_documents(b"- a\n", "f"))[0]


def test_a_name_that_is_used_twice_is_a_problem_and_the_first_counts() -> None:
    loaded = load(identity(scopes=["first"]), identity(), provider(), cluster_provider())
    assert [str(problem) for problem in loaded.problems] == [
        "f.yaml:17: ServiceIdentity batch/x: metadata.name: is already used in line 1 of this file"
    ]
    assert loaded.identities[0].spec.scopes == ("first",)

    other = load_documents(yaml.safe_dump(identity()).encode(), "g.yaml")
    merged = merge_loaded([loaded, other])
    assert [found.source for found in merged.identities] == ["f.yaml"]
    assert len(merged.providers) == 2
    assert str(merged.problems[-1]) == "g.yaml:1: ServiceIdentity batch/x: metadata.name: is already used in f.yaml"


def test_a_broken_file_is_told_apart_from_deleted_resources() -> None:
    loaded = load_documents(yaml.safe_dump(identity()).encode() + b"---\na: [", "f")
    assert len(loaded.identities) == 1
    assert not loaded.complete
    assert not merge_loaded([load(provider()), loaded]).complete
    assert load(identity(suspend=5)).complete
    assert load(identity(suspend=5)).invalid == {("ServiceIdentity", ObjectKey("batch", "x"))}


def test_a_resource_with_a_fault_of_notation_is_not_used() -> None:
    text = yaml.safe_dump(identity()) + "  suspend: true\n  suspend: false\n"
    loaded = load_documents(text.encode(), "f.yaml")
    assert messages(loaded) == ["f.yaml:12: ServiceIdentity batch/x: the field suspend is written twice"]
    assert loaded.identities == ()
    assert loaded.invalid


def test_secrets_and_config_maps_are_read() -> None:
    metadata = {"name": "s", "labels": {"keyferry.dev/credential": "true", "a": "b"}}
    loaded = load(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "data": {"a": "aHVudGVyMg==\n", "b": "AP8="},
            "stringData": {"a": "ünter2", "c": ""},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"a": "b"},
            "binaryData": {"c": "AP8="},
        },
    )
    assert messages(loaded) == []
    (secret,) = loaded.secrets
    assert dict(secret.data) == {"a": "ünter2".encode(), "b": b"\x00\xff", "c": b""}
    assert secret.labels == {"keyferry.dev/credential": "true"}
    assert loaded.config_maps[0].data == {"a": b"b", "c": b"\x00\xff"}


@pytest.mark.parametrize(
    ("member", "path", "words"),
    [
        ({"data": {"a": "hunter2!"}}, "data.a", "plain text belongs in stringData"),
        ({"data": {"a": "YQ"}}, "data.a", "is not Base64"),
        ({"data": {"a": "ä"}}, "data.a", "is not Base64"),
        ({"stringData": {"a": 5}}, "stringData.a", "put it in quotes"),
        ({"stringData": {"a/b": "c"}}, "stringData", "a key that is not valid"),
        ({"stringData": []}, "stringData", "must be a mapping"),
        ({"stringdata": {"a": "b"}}, "stringdata", "did you mean stringData?"),
        ({"metadata": {}}, "metadata.name", "every resource has a name"),
    ],
)
def test_mistakes_in_secrets(member: Any, path: str, words: str) -> None:
    value = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}} | member
    loaded = load(value)
    (problem,) = loaded.problems
    assert problem.path == path
    assert words in problem.message
    assert loaded.secrets == ()


def test_secrets_print_their_keys_only() -> None:
    data = SecretData({"a": b"hunter2"})
    assert repr(data) == str(data) == "SecretData({'a': '***'})"
    loaded = load({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "hunter2"}})
    assert "hunter2" not in repr(loaded)
    with pytest.raises(TypeError):
        pickle.dumps(data)


def test_objects_of_the_api_server_are_read() -> None:
    value = identity(client=None, target={"secretName": None})
    value["metadata"] |= {"uid": "u", "generation": 2, "managedFields": [{"a": None}]}
    (found,) = load_object(value).identities
    assert (found.uid, found.generation, found.line) == ("u", 2, None)
    assert messages(load_object(identity(suspend="x"), source="api"))[0].startswith(
        "api: ServiceIdentity batch/x: spec."
    )

    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "nested more than" in messages(load_object(deep))[0]


def test_equal_parts_are_shared() -> None:
    sharing = Sharing()
    first, second = (
        load_object(
            resource("ServiceIdentity", identity(scopes=[name])["spec"], name=name), sharing=sharing
        ).identities[0]
        for name in ("a", "b")
    )
    assert first.spec.grant is second.spec.grant
    assert first.spec.provider_ref is second.spec.provider_ref
    assert first.spec.scopes != second.spec.scopes


def test_shared_parts_do_not_hide_differences() -> None:
    def files(secret: str) -> dict[str, Any]:
        target = {"secretName": secret, "files": [{"format": "Token", "name": "t"}]}
        return {"providerRef": {"name": "p"}, "grant": {"type": "ClientCredentials"}, "target": target}

    sharing = Sharing()
    found = [
        load_object(resource("ServiceIdentity", spec, name="a"), sharing=sharing).identities[0].spec
        for spec in (files("a"), files("b"), files("a"), identity(grant={"type": "DeviceCode"})["spec"])
    ]
    assert [spec.target.secret_name for spec in found] == ["a", "b", "a", None]
    assert found[0].target is found[2].target
    assert found[0].target.files[0] is found[1].target.files[0]
    assert [spec.grant.type for spec in found[2:]] == ["ClientCredentials", "DeviceCode"]


def test_models_are_frozen_and_hashable() -> None:
    (found,) = load_documents(CONTRACT, "c").identities
    (again,) = load_documents(CONTRACT, "c").identities
    assert found.spec == again.spec
    assert hash(found.spec) == hash(again.spec)
    with pytest.raises(ValueError, match="frozen"):
        found.spec.suspend = True  # type: ignore[misc]
    with pytest.raises(TypeError, match="cannot be changed"):
        found.spec.parameters["a"] = "b"  # type: ignore[index]


def test_frozen_maps_are_copied_as_themselves() -> None:
    values = FrozenMap({"a": "b"})
    assert copy.copy(values) is copy.deepcopy(values) is values
    assert pickle.loads(pickle.dumps(values)) == values  # noqa: S301 - our own bytes
    changes: list[Callable[[], object]] = [values.clear, values.popitem, lambda: values.update(a="c")]
    for change in changes:
        with pytest.raises(TypeError):
            change()


def test_of_very_many_mistakes_the_first_are_told() -> None:
    loaded = load(identity(**{f"unknown{number}": 1 for number in range(150)}))
    assert len(loaded.problems) == 101
    assert loaded.problems[-1].message == "has 50 more mistakes"
