from __future__ import annotations

from typing import Any

import pytest

from keyferry.errors import Reason
from keyferry.spec.check import check_loaded, check_pair, check_secret_formats
from keyferry.spec.resources import load_documents
from tests.spec.samples import CLIENT, CONTRACT, ISSUER, REF, cluster_provider, identity, load, provider, resource

TILED = resource("TokenProvider", {"type": "Tiled", "tiled": {"url": "https://tiled.example.org/api/v1"}})
LABARCHIVES = resource(
    "TokenProvider",
    {
        "type": "LabArchives",
        "labarchives": {"url": "https://api.example.org", "accessKeyIdFrom": REF, "accessPasswordFrom": REF},
    },
)
PASSWORD = {"type": "Password", "password": {"usernameFrom": REF, "passwordFrom": REF}}
REFRESH = {"type": "RefreshToken", "refreshToken": {"from": REF}}
BEARER = {"type": "JwtBearer", "jwtBearer": {"assertion": REF}}
EXCHANGE = {"type": "TokenExchange", "tokenExchange": {"subject": REF}}
CODE = {"type": "LabArchivesCode", "labArchivesCode": {"emailFrom": REF, "codeFrom": REF}}
PLAIN = {"type": "ClientCredentials"}
DEVICE = {"type": "DeviceCode"}
BROWSER = {"type": "AuthorizationCode"}
LOGIN = {"type": "LabArchivesLogin"}


def pair(one: Any, other: Any) -> tuple[Any, Any]:
    loaded = load(one, other)
    assert loaded.problems == ()
    return loaded.identities[0].spec, loaded.providers[0].spec


def found(one: Any, other: Any) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in check_pair(*pair(one, other))]


@pytest.mark.parametrize(
    ("source", "grants"),
    [
        (provider(), [PLAIN, REFRESH, PASSWORD, DEVICE, BROWSER, BEARER, EXCHANGE]),
        (TILED, [REFRESH, PASSWORD, DEVICE]),
        (LABARCHIVES, [LOGIN, CODE]),
    ],
)
def test_grants_go_with_their_type_of_provider(source: Any, grants: list[Any]) -> None:
    for grant in (PLAIN, REFRESH, PASSWORD, DEVICE, BROWSER, BEARER, EXCHANGE, LOGIN, CODE):
        problems = [problem for problem in found(identity(grant=grant), source) if problem[0] != "spec.target.files"]
        assert (problems == []) == (grant in grants)
        assert all(path == "spec.grant.type" and "which takes" in message for path, message in problems)


@pytest.mark.parametrize(
    ("one", "other", "path", "words"),
    [
        (identity(apiKey={}), provider(), "spec.apiKey", "needs a provider of type Tiled"),
        (identity(), provider(oauth={"issuer": ISSUER}), "spec.client", "neither the identity nor its provider"),
        (
            identity(client={"id": "a", "authentication": "None"}),
            provider(),
            "spec.grant.type",
            "RFC 6749 4.4",
        ),
        (
            identity(client={"id": "a", "authentication": "TlsClientAuth"}),
            provider(),
            "spec.client.authentication",
            "tls.clientCertificateFrom",
        ),
        (
            identity(client={"id": "a", "authentication": "PrivateKeyJwt", "privateKeyFrom": REF}),
            provider(oauth={"endpoints": {"token": "https://a"}, "client": CLIENT}),
            "spec.client.assertionAudience",
            "TokenEndpoint",
        ),
        (identity(grant=PASSWORD, scopes=["a"]), TILED, "spec.scopes", "apiKey.scopes"),
        (identity(grant=PASSWORD, audiences=["a"]), TILED, "spec.audiences", "type Tiled"),
        (identity(grant=PASSWORD, client=CLIENT), TILED, "spec.client", "type Tiled"),
        (identity(grant=PASSWORD, parameters={"a": "b"}), TILED, "spec.parameters", "type Tiled"),
        *(
            (
                identity(target={"files": [{"format": name}]}),
                provider(),
                "spec.target.files[0].format",
                "needs a provider",
            )
            for name in ("Tiled", "LabArchives")
        ),
        (
            identity(grant=PASSWORD, target={"files": [{"format": "AIoD"}]}),
            TILED,
            "spec.target.files[0].format",
            "OAuth",
        ),
    ],
)
def test_disagreements_name_the_identitys_field(one: Any, other: Any, path: str, words: str) -> None:
    ((where, message),) = found(one, other)
    assert where == path
    assert words in message


def test_a_tiled_identity_may_have_its_key_and_files() -> None:
    assert found(identity(grant=PASSWORD, apiKey={}, target={"files": [{"format": "Tiled"}]}), TILED) == []


@pytest.mark.parametrize(
    ("allow", "asked", "paths"),
    [
        ({}, {}, []),
        ({}, {"grant": PASSWORD}, ["spec.grant.type"]),
        ({"grants": ["Password"]}, {"grant": PASSWORD}, []),
        ({"grants": ["Password"]}, {}, ["spec.grant.type"]),
        ({}, {"scopes": ["a", "b"]}, ["spec.scopes[0]", "spec.scopes[1]"]),
        ({"scopes": ["b"]}, {"scopes": ["a", "b"]}, ["spec.scopes[0]"]),
        ({"audiences": ["a"]}, {"audiences": ["a"]}, []),
        ({"audiences": ["a"]}, {"audiences": ["A"]}, ["spec.audiences[0]"]),
        ({}, {"resources": ["https://a/"]}, ["spec.resources[0]"]),
        ({"resources": ["https://a/"]}, {"resources": ["https://a/"]}, []),
        ({}, {"parameters": {"acr_values": "2"}}, ["spec.parameters.acr_values"]),
        ({"parameters": ["acr_values"]}, {"parameters": {"acr_values": "2"}}, []),
    ],
)
def test_a_cluster_provider_allows_only_what_it_lists(allow: Any, asked: Any, paths: list[str]) -> None:
    problems = check_pair(*pair(identity(**asked), cluster_provider(allow=allow)))
    assert [problem.path for problem in problems] == paths
    assert all(problem.reason is Reason.PROVIDER_NOT_ALLOWED for problem in problems)


def test_namespaces_are_selected_by_labels() -> None:
    labels = {"team": "a", "tier": "b"}
    _, spec = pair(identity(), cluster_provider(namespaceSelector={"matchLabels": {"team": "a"}}))
    assert spec.namespace_selector.matches(labels)
    assert not spec.namespace_selector.matches({"team": "b"})
    _, closed = pair(identity(), cluster_provider())
    assert closed.namespace_selector is None


@pytest.mark.parametrize(
    ("operator", "values", "selected"),
    [
        ("In", ["a", "b"], ["a"]),
        ("NotIn", ["a"], ["", "none"]),
        ("Exists", [], ["a", ""]),
        ("DoesNotExist", [], ["none"]),
    ],
)
def test_namespaces_are_selected_by_expressions(operator: str, values: list[str], selected: list[str]) -> None:
    """As the API server reads a label selector: a namespace without the label is NotIn."""
    namespaces: dict[str, dict[str, str]] = {"a": {"team": "a"}, "": {"team": ""}, "none": {"tier": "b"}}
    expression = {"key": "team", "operator": operator} | ({"values": values} if values else {})
    _, spec = pair(identity(), cluster_provider(namespaceSelector={"matchExpressions": [expression]}))
    found = [name for name, labels in namespaces.items() if spec.namespace_selector.matches(labels)]
    assert found == selected
    assert not spec.namespace_selector.selects_all
    wanted = {"matchLabels": {"tier": "b"}, "matchExpressions": [expression]}
    _, both = pair(identity(), cluster_provider(namespaceSelector=wanted))
    assert not both.namespace_selector.matches({"team": "a"})


def test_what_stands_for_a_labarchives_login_is_never_published() -> None:
    private = {"type": "None", "files": [{"format": "LabArchives"}]}
    assert found(identity(grant=CODE, target=private), LABARCHIVES) == []
    for target in ({}, {"files": [{"format": "Token", "name": "t"}]}, {"type": "None"}):
        ((path, words),) = found(identity(grant=CODE, target=target), LABARCHIVES)
        assert path == "spec.target.files"
        assert "never published" in words


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ({"target": {"files": [{"format": "Tiled"}]}}, True),
        ({"target": {"files": [{"format": "Tiled"}]}, "apiKey": {}}, False),
        ({"target": {"type": "None", "files": [{"format": "Tiled"}]}}, False),
        ({"target": {"files": [{"format": "LabArchives"}]}}, True),
        ({}, False),
    ],
)
def test_formats_that_a_secret_cannot_hold_need_the_sidecar(spec: Any, refused: bool) -> None:  # noqa: FBT001
    problem = check_secret_formats(pair(identity(**spec), provider())[0])
    assert (problem is not None) == refused
    assert problem is None or problem.reason is Reason.FORMAT_NEEDS_SIDECAR


def test_a_whole_directory_is_checked() -> None:
    loaded = load(
        identity(providerRef={"name": "aio"}),
        resource("TokenProvider", provider()["spec"], name="aiod"),
        resource("TokenProvider", {"type": "Tiled"}, name="broken"),
        resource("ServiceIdentity", identity(providerRef={"name": "broken"})["spec"], name="b"),
        resource("ServiceIdentity", identity(providerRef={"name": "aiod"}, grant=LOGIN)["spec"], name="c"),
        resource(
            "ServiceIdentity", identity(providerRef={"kind": "ClusterTokenProvider", "name": "z"})["spec"], name="d"
        ),
    )
    missing, unfit, cluster = check_loaded(loaded)
    assert str(missing) == (
        "f.yaml:1: ServiceIdentity batch/x: spec.providerRef: there is no TokenProvider aio in namespace batch; "
        "did you mean aiod?"
    )
    assert missing.reason is cluster.reason is Reason.PROVIDER_NOT_FOUND
    assert (unfit.resource, unfit.reason) == ("ServiceIdentity batch/c", Reason.INVALID_SPEC)
    assert cluster.message == "there is no ClusterTokenProvider z"


def test_the_contract_fits_itself() -> None:
    assert check_loaded(load_documents(CONTRACT, "c")) == []
