"""Who may use whose provider, on a real API server: each refusal says so and how to allow it, and nothing is sent.

The operator looks after every namespace here, so it has an API server of its own.
"""

from __future__ import annotations

import base64
import copy
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry_operator.crds import manifests
from tests.operator.live.conftest import GROUP, Field
from tests.support import cluster as clusters
from tests.support.issuer import FaultIssuer
from tests.support.kube_api import ApiError, eventually
from tests.support.tier import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"
SHARED = {"kind": "ClusterTokenProvider", "name": "shared"}
LABELLED = {"matchLabels": {"example.org/team": "ingest"}}


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require("cluster", clusters.problem())
    found = clusters.start_cluster(tmp_path_factory.mktemp("cluster"))
    try:
        for manifest in manifests():
            found.api.apply(manifest, manager="user")
        eventually(lambda: _served(found), "the definitions are served")
        yield found
    finally:
        found.stop()


def _served(cluster: Cluster) -> bool:
    cluster.api.forget_resources()
    try:
        for kind in ("ClusterTokenProvider", "TokenProvider", "ServiceIdentity"):
            cluster.api.items(GROUP, kind)
    except (ApiError, LookupError):
        return False
    return True


@pytest.fixture
async def whole(own_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Field]:
    """A namespace of a cluster that is looked after as a whole."""
    with own_cluster.namespace("team") as team, own_cluster.namespace("home") as home:
        async with FaultIssuer() as issuer:
            issuer.service.settings.access_lifetime = 3600.0
            methods, grants = (AuthMethod.BASIC,), (Grant.CLIENT_CREDENTIALS,)
            issuer.clients.add(Client("bot", secrets=(SECRET,), methods=methods, grants=grants, scopes=("read",)))
            field = Field(own_cluster, team, home, issuer, tmp_path)
            yield field
            for found in own_cluster.api.items(GROUP, "ClusterTokenProvider"):
                own_cluster.api.delete(found)


def _share(field: Field, **spec: Any) -> None:
    """Offer the issuer to the cluster; the credential lies in the operator's namespace."""
    credential = field.secret("bot", secret=SECRET)
    credential["metadata"]["namespace"] = field.home
    field.cluster.api.apply(credential, manager="admin")
    document = field.provider("shared")
    body = {**document["spec"], **spec}
    shared = {**document, "kind": "ClusterTokenProvider", "spec": body}
    field.cluster.api.apply(shared, manager="admin")


def _label(field: Field, value: str | None) -> None:
    body = field.cluster.api.get("v1", "Namespace", field.namespace)
    field.cluster.api.patch(body, {"metadata": {"labels": {"example.org/team": value}}})


def _exchanges(field: Field) -> int:
    return sum(1 for request in field.issuer.requests if request.grant)


def _token(field: Field) -> str:
    return base64.b64decode((field.target("nightly") or {}).get("data", {}).get("token", "")).decode()


async def test_a_provider_is_offered_to_the_namespaces_that_it_selects_as_their_labels_change(whole: Field) -> None:
    _share(whole, namespaceSelector=LABELLED)
    whole.apply(whole.identity("nightly", providerRef=SHARED))
    async with whole.operator(watch_namespaces=()):
        await whole.told("nightly", reason="ProviderNotAllowed")
        condition = whole.condition("nightly")
        assert condition["status"] == "False"
        assert whole.condition("nightly", "Stalled")["status"] == "True"
        assert f"kubectl label namespace {whole.namespace} example.org/team=ingest" in condition["message"]
        assert _exchanges(whole) == 0

        _label(whole, "ingest")
        await whole.told("nightly", status="True")
        token = _token(whole)

        _label(whole, None)
        await whole.told("nightly", reason="ProviderNotAllowed")
        spent = _exchanges(whole)
        identity = whole.cluster.api.get(GROUP, "ServiceIdentity", "nightly", whole.namespace)
        whole.cluster.api.patch(identity, {"metadata": {"annotations": {"keyferry.dev/renew": "1"}}})
        await whole.until(lambda: whole.status("nightly").get("lastHandledRenew") == "1")
        assert whole.condition("nightly")["status"] == "True", "the token is good until it expires"
        assert whole.condition("nightly", "Stalled")["status"] == "True"
        assert _token(whole) == token
        assert _exchanges(whole) == spent == 1

        _label(whole, "ingest")
        await whole.until(lambda: whole.status("nightly").get("revision") == 2)


async def test_a_token_that_may_not_be_renewed_is_ready_until_it_expires(whole: Field) -> None:
    whole.issuer.service.settings.access_lifetime = 20.0
    _share(whole, namespaceSelector=LABELLED)
    _label(whole, "ingest")
    whole.apply(whole.identity("nightly", providerRef=SHARED))
    async with whole.operator(watch_namespaces=()):
        await whole.told("nightly", status="True")
        _label(whole, None)
        await whole.told("nightly", reason="ProviderNotAllowed")
        token = _token(whole)
        await whole.told("nightly", status="False")
        assert whole.condition("nightly")["reason"] == "ProviderNotAllowed"
        assert _token(whole) == token


ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "grants": (
        {
            "grant": {
                "type": "Password",
                "password": {
                    "usernameFrom": {"secretKeyRef": {"name": "bot", "key": "user"}},
                    "passwordFrom": {"secretKeyRef": {"name": "bot", "key": "secret"}},
                },
            }
        },
        "spec.grant.type",
    ),
    "scopes": ({"scopes": ["read", "write"]}, "spec.scopes[1]"),
    "audiences": ({"audiences": ["api"]}, "spec.audiences[0]"),
    "resources": ({"resources": ["https://api.example.org/"]}, "spec.resources[0]"),
    "parameters": ({"parameters": {"acr_values": "2"}}, "spec.parameters.acr_values"),
}


async def test_whoever_asks_for_more_than_a_provider_allows_is_refused(whole: Field) -> None:
    _share(whole, namespaceSelector={}, allow={"scopes": ["read"]})
    whole.apply(*(whole.identity(name, providerRef=SHARED, **spec) for name, (spec, _) in ASKED.items()))
    whole.apply(whole.identity("modest", providerRef=SHARED, scopes=["read"]))
    async with whole.operator(watch_namespaces=()):
        await whole.told("modest", status="True")
        for name, (_, path) in ASKED.items():
            condition = await whole.told(name, status="False", reason="ProviderNotAllowed")
            assert path in condition["message"]
            assert f"not allowed by the ClusterTokenProvider's allow.{name}" in condition["message"]
        assert _exchanges(whole) == 1

        _share(whole, namespaceSelector={}, allow={"scopes": ["read", "write"], "audiences": ["api"]})
        await whole.told("audiences", status="True")


async def test_a_provider_without_a_selector_is_offered_to_nobody(whole: Field) -> None:
    _share(whole)
    whole.apply(whole.identity("nightly", providerRef=SHARED))
    async with whole.operator(watch_namespaces=()):
        await whole.told("nightly", reason="ProviderNotAllowed")
        assert "`namespaceSelector: {}`" in whole.condition("nightly")["message"]
        _share(whole, namespaceSelector={"matchExpressions": [{"key": "example.org/team", "operator": "DoesNotExist"}]})
        await whole.told("nightly", status="True")


async def test_where_named_namespaces_are_watched_there_are_no_cluster_providers(whole: Field) -> None:
    _share(whole, namespaceSelector={})
    whole.apply(whole.identity("nightly", providerRef=SHARED))
    async with whole.operator():
        await whole.told("nightly", reason="ProviderNotAllowed")
        message = whole.condition("nightly")["message"]
        assert f"watch.namespaces: {whole.namespace}" in message
        assert "Use a TokenProvider in the identity's own namespace" in message
    assert not whole.issuer.requests


async def test_a_providers_status_is_written_once_and_nothing_is_asked_after_a_restart(whole: Field) -> None:
    _share(whole)

    def shared() -> dict[str, Any]:
        return whole.cluster.api.get(GROUP, "ClusterTokenProvider", "shared")

    async with whole.operator(watch_namespaces=()):
        ready = await whole.provider_told("shared", "ClusterTokenProvider", status="True")
        found = shared()
        assert found["status"]["issuer"] == whole.issuer.issuer
        assert "client_credentials" in found["status"]["grantTypes"]
        assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
        assert ready["reason"] == "Discovered"
    asked = len(whole.issuer.requests)
    whole.apply(whole.identity("refused", providerRef=SHARED))
    async with whole.operator(watch_namespaces=()):
        await whole.told("refused", reason="ProviderNotAllowed")
        assert len(whole.issuer.requests) == asked
        assert shared()["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]


async def test_a_provider_that_is_not_valid_says_so_and_so_do_its_identities(whole: Field) -> None:
    """Definitions of another version may let through what the operator does not understand."""
    lenient = copy.deepcopy(next(each for each in manifests() if each["spec"]["names"]["kind"] == "TokenProvider"))
    schema = lenient["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    schema["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    whole.cluster.api.apply(lenient, manager="user")
    try:
        wrong = whole.provider()
        wrong["spec"]["oauth"]["isuer"] = wrong["spec"]["oauth"].pop("issuer")
        whole.apply(whole.secret("bot", secret=SECRET), whole.identity("nightly"))
        await whole.until(lambda: _accepted(whole, wrong))
        async with whole.operator():
            await whole.told("nightly", reason="InvalidSpec")
            await whole.provider_told("issuer", reason="InvalidSpec")
            for told in (whole.condition("nightly"), whole.provider_condition("issuer")):
                assert told["status"] == "False"
                assert "spec.oauth.isuer: is not a known field; did you mean issuer?" in told["message"]
            whole.apply(whole.provider())
            await whole.told("nightly", status="True")
            await whole.provider_told("issuer", status="True")

            whole.apply(wrong)
            await whole.provider_told("issuer", reason="InvalidSpec")
            assert whole.condition("nightly")["status"] == "True", "its last good version goes on"
    finally:
        for manifest in manifests():
            whole.cluster.api.apply(manifest, manager="user")
        await whole.until(lambda: _served(whole.cluster))


def _accepted(field: Field, document: dict[str, Any]) -> bool:
    """Apply as soon as the API server has taken over the definition."""
    try:
        field.apply(document)
    except ApiError:
        return False
    found = field.cluster.api.get(GROUP, "TokenProvider", "issuer", field.namespace)
    return "isuer" in found["spec"]["oauth"]
