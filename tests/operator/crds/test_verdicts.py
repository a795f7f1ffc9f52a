"""What the API server accepts, the operator understands; what people get wrong, both refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from keyferry.spec.resources import load_documents
from tests.operator.crds.verdicts import V1ALPHA1, Resource, understood
from tests.spec import samples, test_mistakes
from tests.spec.samples import REF, client, cluster_provider, identity, oauth, provider, resource
from tests.spec.test_mistakes import files, grant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.operator.crds.verdicts import Judge

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[3]


# --- what is right ---------------------------------------------------------------------------------------------------


def _documents() -> Iterator[Any]:
    texts = [("contract", samples.CONTRACT)]
    recipes = (REPOSITORY / "docs" / "recipes.md").read_text("utf-8")
    texts += [("recipes", text.encode()) for text in re.findall(r"```yaml\n(.*?)```", recipes, re.DOTALL)]
    texts += [(path.name, path.read_bytes()) for path in sorted((REPOSITORY / "examples").rglob("*.yaml"))]
    for label, text in texts:
        for document in yaml.safe_load_all(text):
            if document and document.get("apiVersion") == V1ALPHA1:
                document.pop("status", None)
                yield pytest.param(document, id=f"{label}-{document['kind']}-{document['metadata']['name']}")


@pytest.mark.parametrize("document", list(_documents()))
def test_what_the_documents_show_is_accepted(judge: Judge, document: Resource) -> None:
    verdict = judge(document)
    assert verdict.stored is not None, verdict.complaint
    assert verdict.stored["spec"] == document["spec"]
    assert understood(verdict.stored)


def subject(**chosen: Any) -> Resource:
    return grant("JwtBearer", jwtBearer={"assertion": chosen})


RIGHT: list[Resource] = [
    # what is written out at its default is not set
    grant("ClientCredentials", password=None),
    identity(target={"type": "None", "labels": {}, "annotations": {}, "touchPods": False}),
    files({"format": "Token", "name": "a", "variables": {}}),
    client(secretsFrom=[REF], algorithm="RS256", assertionAudience="Issuer"),
    client(authentication="None", secretsFrom=[]),
    grant(
        "TokenExchange",
        tokenExchange={"subject": REF, "actorTokenType": "urn:ietf:params:oauth:token-type:access_token"},
    ),
    # selectors
    cluster_provider(
        namespaceSelector={
            "matchLabels": {"kubernetes.io/metadata.name": "batch"},
            "matchExpressions": [
                {"key": "team", "operator": "NotIn", "values": ["a", ""]},
                {"key": "team", "operator": "Exists", "values": []},
            ],
        }
    ),
    # durations
    *(identity(renewal={"before": text}) for text in ("1s", "1d2h3m4s", "36500d", "0d1s", "000000001s", "999999999s")),
    identity(renewal={"before": "60m", "minimumRemaining": "1h"}),
    identity(renewal={"minimumRemaining": "0s"}),
    subject(serviceAccountToken={"name": "a", "audience": "b", "expiration": "10m"}),
    oauth(lifetime={"maximum": "5m"}),
    oauth(lifetime={"assumed": "1d"}),
    # addresses
    *(
        oauth(issuer=url)
        for url in (
            "https://a",
            "http://a:1/",
            "https://a:65535/b%20c",
            "https://[::1]:8443/x",
            "https://a_b.c-d.:443",
            "https://a:/",
            "https://a/[x]/%25",
            "https://A/B//..;p=1",
        )
    ),
    oauth(endpoints={"token": "https://a?b=c/?d"}),
    # texts
    identity(audiences=["ä ö", "\u00a0"]),
    identity(parameters={"a.b-c_D": "", "x": "\n\t"}),
    files({"format": "Template", "name": "a", "template": ""}),
    files({"format": "Template", "name": "a", "template": "$ $$ $${x} ${access_token} $"}),
    files({"format": "Tiled"}, {"format": "AIoD"}, {"format": "LabArchives"}, {"format": "Token", "name": "token"}),
    files({"format": "Token", "name": ".hidden"}, {"format": "Token", "name": "tiled.env"}),
    identity(target={"labels": {"a/b": "", "keyferry.dev": "x", "x.y/keyferry.dev": "z"}}),
    identity(consumers=[{"identityName": "a" * 63}, {"serviceAccountName": "a" * 253}]),
    # names
    resource("ServiceIdentity", identity()["spec"], name="a" * 63),
    resource("TokenProvider", provider()["spec"], name="a" * 253),
]


@pytest.mark.parametrize("value", RIGHT, ids=lambda value: json.dumps(value["spec"], ensure_ascii=True)[:80])
def test_what_is_right_at_the_edges_is_accepted(judge: Judge, value: Resource) -> None:
    judge.assert_agreed(value)
    assert judge(value).accepted


def test_the_largest_resources_stay_within_what_rules_may_cost(judge: Judge) -> None:
    names = [f"{index:03d}".rjust(250, "a") for index in range(32)]
    variables = {f"{'V' * 249}{index:02d}": "${access_token}" * 20 for index in range(64)}
    labels = {f"{'a' * 62}.{'b' * 62}/{'c' * 60}{index:02d}": "v" * 63 for index in range(64)}
    largest = identity(
        scopes=["s" * 256] * 128,
        audiences=["ä" * 1024] * 32,
        resources=["https://" + "r" * 2040] * 32,
        parameters={f"{'p' * 62}{index:02d}": "v" * 4096 for index in range(32)},
        consumers=[{"serviceAccountName": "a" * 253}] * 128,
        target={
            "labels": labels,
            "annotations": dict.fromkeys(labels, "x" * 1000),
            "files": [{"format": "Env", "name": name, "variables": variables} for name in names],
        },
    )
    verdict = judge(largest)
    assert verdict.stored is not None, verdict.complaint
    assert understood(verdict.stored)


# --- what is wrong ---------------------------------------------------------------------------------------------------

MISTAKES = test_mistakes.IDENTITY_MISTAKES + test_mistakes.PROVIDER_MISTAKES
MORE_MISTAKES = [
    resource("ServiceIdentity", identity()["spec"], name="a" * 64),
    identity(renewal={"before": "36501d"}),
    identity(renewal={"minimumRemaining": "36500d1s"}),
    identity(renewal={"before": "1m1h"}),
    identity(renewal={"before": ""}),
    oauth(lifetime={"assumed": "25h"}),
    oauth(lifetime={"maximum": "299s"}),
    oauth(issuer="https://a:65536"),
    oauth(issuer="https://a:b"),
    oauth(issuer="https://[1.2.3.4]"),
    oauth(issuer="https://[::g]"),
    oauth(issuer="https://a:1:2"),
    oauth(issuer="https://a]b"),
    oauth(issuer="https://:80"),
    files({"format": "Template", "name": "a", "template": "${access_token"}),
    files({"format": "Template", "name": "a", "template": "$${x} ${ access_token}"}),
    files({"format": "AIoD"}, {"format": "AIoD"}),
    files({"format": "LabArchives"}, {"format": "Token", "name": "labarchives.env"}),
    identity(target={"annotations": {"keyferry.dev/x": "y"}, "type": "Secret"}),
    identity(target={"type": "None", "labels": {"a": "b"}}),
    subject(serviceAccountToken={"name": "a", "audience": "b"}, identityRef={"name": "c"}),
]


@pytest.mark.parametrize(("value", "path"), [(value, path) for value, path, _ in MISTAKES])
def test_what_the_models_refuse_the_api_server_refuses(judge: Judge, value: Resource, path: str) -> None:
    verdict = judge(value)
    assert not verdict.accepted
    assert not verdict.fields or any(_holds(field, path) for field in verdict.fields), (verdict.complaint, path)
    pruned = judge(value, strict=False)
    assert pruned.stored is None or understood(pruned.stored)


def _holds(field: str, path: str) -> bool:
    """Tell whether a complaint names a field, or what is directly around it."""
    parent, _, _ = path.rpartition(".")
    return field.partition("[")[0] in {path, parent, path.partition("[")[0]} or field in {path, parent}


@pytest.mark.parametrize("value", MORE_MISTAKES, ids=lambda value: json.dumps(value["spec"])[:80])
def test_what_is_wrong_at_the_edges_is_refused(judge: Judge, value: Resource) -> None:
    judge.assert_agreed(value)
    assert not judge(value).accepted


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (grant("Password"), "spec.grant.password: Required value: is missing; type: Password needs it: The user name"),
        (
            grant("Password", password={"usernameFrom": REF, "passwordFrom": REF}, jwtBearer={"assertion": REF}),
            "spec.grant.jwtBearer: Forbidden: belongs to type: JwtBearer only",
        ),
        (subject(), "needs exactly one of serviceAccountToken, secretKeyRef, identityRef"),
        (client(), "spec.oauth.client.secretsFrom: Required value: is missing; authentication: ClientSecretBasic or"),
        (client(authentication="TlsClientAuth"), "spec.tls.clientCertificateFrom: Required value: is missing"),
        (provider(oauth={}), "spec.oauth.issuer: Required value: is missing; either issuer (discovered)"),
        (identity(renewal={"before": "0s"}), "must be longer than 0s"),
        (identity(renewal={"before": "36501d"}), "must be at most 36500d"),
        (identity(renewal={"before": "1m", "minimumRemaining": "2m"}), "is shorter than minimumRemaining"),
        (identity(parameters={"Scope": "a"}), "has a name that is set by the protocol itself"),
        (identity(parameters={"a b": "a"}), "has a key that is not valid: it must be a parameter name"),
        (files({"format": "Tiled"}, {"format": "Tiled"}), "spec.target.files: Invalid value: "),
        (files({"format": "Tiled"}, {"format": "Tiled"}), "two files of the same name"),
        (identity(target={"type": "None", "secretName": "a"}), "spec.target.secretName: Forbidden: does not belong to"),
        (resource("ServiceIdentity", identity()["spec"], name="a" * 64), "metadata.name must have at most 63"),
        (oauth(issuer="https://a:65536"), "must not hold a port above 65535"),
    ],
)
def test_complaints_are_clear_and_name_the_field(judge: Judge, value: Resource, complaint: str) -> None:
    assert complaint in judge(value).complaint


# Right for the models alone, and refused by the API server: a port of more than five digits, IPv6 that ends as IPv4,
# addresses of a future version of IP (RFC 3986 3.2.2), and a % that begins no escape (which is no URL: RFC 3986 2.1).
STRICTER = ["https://a:000080", "https://[::ffff:1.2.3.4]", "https://[v1.a]", "https://a/%"]


@pytest.mark.parametrize("url", STRICTER)
def test_where_the_api_server_is_stricter(judge: Judge, url: str) -> None:
    assert understood(oauth(issuer=url))
    assert not judge(oauth(issuer=url)).accepted


def test_yaml_and_the_api_servers_json_are_the_same_resource(judge: Judge) -> None:
    for document in yaml.safe_load_all(samples.CONTRACT):
        stored = judge(document).stored
        text = yaml.safe_dump(stored).encode()
        assert load_documents(text, "f").problems == ()
