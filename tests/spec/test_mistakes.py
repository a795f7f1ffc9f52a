"""Every mistake: the field that the problem names, and words that must be in its message."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry.errors import Reason
from tests.spec.samples import (
    CLIENT,
    ISSUER,
    REF,
    client,
    cluster_provider,
    identity,
    load,
    oauth,
    provider,
    resource,
)


def files(*items: Any) -> dict[str, Any]:
    return identity(target={"files": list(items)})


def grant(kind: str, **members: Any) -> dict[str, Any]:
    return identity(grant={"type": kind} | members)


def endpoint(url: str) -> dict[str, Any]:
    return oauth(endpoints={"token": url})


KEY_JWT = {"authentication": "PrivateKeyJwt", "privateKeyFrom": REF}
TOKEN = {"format": "Token", "name": "token"}

IDENTITY_MISTAKES = [
    # the shape of the whole
    (resource("ServiceIdentity", []), "spec", "must be a mapping"),
    (resource("ServiceIdentity", {}), "spec.grant", "is missing: How the token is obtained"),
    (resource("ServiceIdentity", {}), "spec.providerRef", "is missing"),
    (identity(providerRef="p"), "spec.providerRef", "must be a mapping with the fields kind, name"),
    (identity(provider_ref={}), "spec.provider_ref", "did you mean providerRef?"),
    (identity(secretName="x"), "spec.secretName", "it belongs to target"),
    (identity(wholly="other"), "spec.wholly", "known here: providerRef, grant"),
    (identity(providerRef={"name": "P"}), "spec.providerRef.name", "DNS-1123"),
    (identity(providerRef={"name": "p", "kind": "Secret"}), "spec.providerRef.kind", "must be one of TokenProvider"),
    # grants
    (grant("ClientCredential"), "spec.grant.type", "not ClientCredential; did you mean ClientCredentials?"),
    (grant("client_credentials"), "spec.grant.type", "did you mean ClientCredentials?"),
    (identity(grant={}), "spec.grant.type", "is missing"),
    (identity(grant={"type": 5}), "spec.grant.type", "must be one of ClientCredentials"),
    (grant("Password"), "spec.grant.password", "is missing; type: Password needs it"),
    (
        grant("Password", password={"usernameFrom": REF}),
        "spec.grant.password.passwordFrom",
        "is missing: Where the pas",
    ),
    (grant("RefreshToken"), "spec.grant.refreshToken", "is missing; type: RefreshToken needs it"),
    (grant("RefreshToken", refreshToken={"from": {}}), "spec.grant.refreshToken.from.secretKeyRef", "is missing"),
    (grant("JwtBearer"), "spec.grant.jwtBearer", "is missing"),
    (grant("JwtBearer", jwtBearer={"assertion": {}}), "spec.grant.jwtBearer.assertion", "exactly one of serviceAcc"),
    (
        grant("JwtBearer", jwtBearer={"assertion": REF | {"identityRef": {"name": "a"}}}),
        "spec.grant.jwtBearer.assertion.identityRef",
        "must not stand beside secretKeyRef",
    ),
    (grant("TokenExchange"), "spec.grant.tokenExchange", "is missing"),
    (
        grant("TokenExchange", tokenExchange={"subject": REF, "actorTokenType": "urn:a:b"}),
        "spec.grant.tokenExchange.actorTokenType",
        "has no actor",
    ),
    (
        grant("TokenExchange", tokenExchange={"subject": REF, "requestedTokenType": "jwt"}),
        "spec.grant.tokenExchange.requestedTokenType",
        "absolute URI",
    ),
    (
        grant("JwtBearer", jwtBearer={"assertion": {"serviceAccountToken": {"name": "a"}}}),
        "spec.grant.jwtBearer.assertion.serviceAccountToken.audience",
        "is missing",
    ),
    (
        grant(
            "JwtBearer",
            jwtBearer={"assertion": {"serviceAccountToken": {"name": "a", "audience": "b", "expiration": "5m"}}},
        ),
        "spec.grant.jwtBearer.assertion.serviceAccountToken.expiration",
        "at least 10m",
    ),
    (grant("LabArchivesCode"), "spec.grant.labArchivesCode", "is missing"),
    (
        grant("ClientCredentials", password={"usernameFrom": REF, "passwordFrom": REF}),
        "spec.grant.password",
        "does not belong to type: ClientCredentials; it belongs to Password",
    ),
    # the request
    (identity(scopes="openid"), "spec.scopes", "must be a list"),
    (identity(scopes=["a b"]), "spec.scopes[0]", "one scope"),
    (identity(scopes=["ok", 'a"b']), "spec.scopes[1]", "RFC 6749 3.3"),
    (identity(scopes=[1]), "spec.scopes[0]", "put it in quotes"),
    (identity(scopes=[None]), "spec.scopes[0]", "not null"),
    (identity(scopes=["a"] * 129), "spec.scopes", "at most 128 items"),
    (identity(audiences=[""]), "spec.audiences[0]", "must not be empty"),
    (identity(audiences=["a\nb"]), "spec.audiences[0]", "control characters"),
    (identity(resources=["https://a/#b"]), "spec.resources[0]", "without a fragment"),
    (identity(resources=["api"]), "spec.resources[0]", "absolute URI"),
    (identity(parameters=["a"]), "spec.parameters", "must be a mapping of names to values"),
    (identity(parameters={"a b": "c"}), "spec.parameters[…]", "parameter name"),
    (identity(parameters={"n": 2}), "spec.parameters.n", "put it in quotes"),
    *(
        (identity(parameters={name: "x"}), f"spec.parameters.{name}", "set by the protocol itself")
        for name in [
            "grant_type",
            "client_id",
            "client_secret",
            "client_assertion",
            "client_assertion_type",
            "scope",
            "refresh_token",
            "username",
            "password",
            "assertion",
            "subject_token",
            "subject_token_type",
            "actor_token",
            "actor_token_type",
            "requested_token_type",
            "audience",
            "resource",
            "code",
            "code_verifier",
            "redirect_uri",
            "device_code",
            "Client_ID",
        ]
    ),
    (identity(expectedSubject={}), "spec.expectedSubject", "exactly one of subject, email"),
    (identity(expectedSubject={"subject": "a", "email": "b"}), "spec.expectedSubject.email", "beside subject"),
    (identity(client={"id": "x"}), "spec.client.secretsFrom", "authentication: ClientSecretBasic needs it"),
    # renewal and the rest
    (identity(renewal={"before": 600}), "spec.renewal.before", "with its unit"),
    (identity(renewal={"before": "10"}), "spec.renewal.before", "must be a duration"),
    (identity(renewal={"before": "0s"}), "spec.renewal.before", "longer than 0s"),
    (identity(renewal={"before": "1m", "minimumRemaining": "2m"}), "spec.renewal.before", "shorter than minimumRem"),
    (identity(suspend="yes"), "spec.suspend", "must be true or false"),
    (identity(suspend=1), "spec.suspend", "must be true or false"),
    (identity(deletionPolicy="Keep"), "spec.deletionPolicy", "must be one of Revoke, Delete, Retain, not Keep"),
    (identity(consumers=[{}]), "spec.consumers[0]", "exactly one of serviceAccountName, identityName"),
    (identity(consumers={"serviceAccountName": "a"}), "spec.consumers", "must be a list"),
    (identity(consumers=["ingest"]), "spec.consumers[0]", "with the fields serviceAccountName, identityName"),
    (identity(consumers=[{"identityName": "a" * 64}]), "spec.consumers[0].identityName", "at most 63 characters"),
    (identity(apiKey={"scopes": []}), "spec.apiKey.scopes", "must not be empty"),
    (identity(apiKey={"expiresIn": "0s"}), "spec.apiKey.expiresIn", "longer than 0s"),
    (identity(apiKey={"note": "a" * 256}), "spec.apiKey.note", "at most 255"),
    # the target
    (identity(target={"type": "secret"}), "spec.target.type", "did you mean Secret?"),
    (identity(target={"secretName": "A"}), "spec.target.secretName", "DNS-1123"),
    (identity(target={"type": "None", "secretName": "a"}), "spec.target.secretName", "publishes no Secret"),
    (identity(target={"type": "None", "touchPods": True}), "spec.target.touchPods", "publishes no Secret"),
    (identity(target={"labels": {"-": "a"}}), "spec.target.labels[-]", "label key"),
    (identity(target={"labels": {"a": "b c"}}), "spec.target.labels.a", "label value"),
    (identity(target={"labels": {"keyferry.dev/a": "b"}}), "spec.target.labels[keyferry.dev/a]", "keeps for itself"),
    (identity(target={"annotations": {"a.keyferry.dev/a": "b"}}), "spec.target.annotations[a.keyferry.dev/a]", "keeps"),
    (files(), "spec.target.files", "must not be empty"),
    (files({"name": "x"}), "spec.target.files[0].format", "is missing"),
    (files({"format": "token", "name": "x"}), "spec.target.files[0].format", "did you mean Token?"),
    (files({"format": "Token"}), "spec.target.files[0].name", "format: Token needs it"),
    (files({"format": "Tiled", "name": "x"}), "spec.target.files[0].name", "does not belong to format: Tiled"),
    (files({"format": "Env", "name": "x"}), "spec.target.files[0].variables", "format: Env needs it"),
    (files(TOKEN | {"variables": {"A": "b"}}), "spec.target.files[0].variables", "it belongs to Env"),
    (files({"format": "Template", "name": "x"}), "spec.target.files[0].template", "format: Template needs it"),
    (files(TOKEN | {"apiServer": "https://a"}), "spec.target.files[0].apiServer", "it belongs to AIoD"),
    (
        files({"format": "Env", "name": "x", "variables": {"1A": "b"}}),
        "spec.target.files[0].variables[1A]",
        "variable n",
    ),
    (
        files({"format": "Env", "name": "x", "variables": {"A": "${tokn}"}}),
        "spec.target.files[0].variables.A",
        "line 1 uses ${tokn}, which is not known",
    ),
    (files({"format": "Template", "name": "x", "template": "${"}), "spec.target.files[0].template", "never closed"),
    *(
        (files({"format": "Token", "name": name}), "spec.target.files[0].name", words)
        for name, words in (
            ("", "may hold letters"),
            (".", "must not be '.'"),
            ("..", "begin with '..'"),
            ("..data", "begin with '..'"),
            ("a/b", "may hold letters"),
            ("a b", "may hold letters"),
            ("token\n", "may hold letters"),
            (".keyferry", "keeps for itself"),
            (".Keyferry-tmp", "keeps for itself"),
            (".tiled", "keeps for itself"),
            (".aiod", "keeps for itself"),
            ("a" * 254, "at most 253"),
        )
    ),
    (files(TOKEN, {"format": "Json", "name": "token"}), "spec.target.files[1].name", "same name as files[0]"),
    (files({"format": "Tiled"}, {"format": "Tiled"}), "spec.target.files[1].format", "same name as files[0]"),
    (files({"format": "Tiled"}, {"format": "Token", "name": "tiled.env"}), "spec.target.files[1].name", "same name"),
    (files({"format": "Token", "name": "config.toml"}, {"format": "AIoD"}), "spec.target.files[1].format", "same name"),
    (
        files({"format": "Token", "name": "labarchives.env"}, {"format": "LabArchives"}),
        "spec.target.files[1].format",
        "",
    ),
]

PROVIDER_MISTAKES = [
    (resource("TokenProvider", {}), "spec.type", "is missing"),
    (resource("TokenProvider", {"type": "OAuth"}), "spec.oauth", "type: OAuth needs it"),
    (resource("TokenProvider", {"type": "Tiled"}), "spec.tiled", "type: Tiled needs it"),
    (resource("TokenProvider", {"type": "LabArchives"}), "spec.labarchives", "type: LabArchives needs it"),
    (provider(type="Oauth"), "spec.type", "did you mean OAuth?"),
    (provider(tiled={"url": "https://a"}), "spec.tiled", "does not belong to type: OAuth; it belongs to Tiled"),
    (provider(allow={}), "spec.allow", "is not a known field"),
    (provider(oauth={"client": CLIENT}), "spec.oauth.issuer", "either issuer (discovered) or endpoints.token"),
    (oauth(issuer="auth.example.org"), "spec.oauth.issuer", "must be an absolute URL"),
    (oauth(issuer="ftp://a"), "spec.oauth.issuer", "https://"),
    (oauth(issuer="https:///a"), "spec.oauth.issuer", "must be an absolute URL"),
    (oauth(issuer="https://u:p@a"), "spec.oauth.issuer", "must not hold a user name or password"),
    (oauth(issuer="https://a?b"), "spec.oauth.issuer", "must not hold a query"),
    (oauth(issuer="https://a#b"), "spec.oauth.issuer", "must not hold a fragment"),
    (oauth(issuer="https://a:99999"), "spec.oauth.issuer", "not a valid URL"),
    (oauth(issuer="https://a/b c"), "spec.oauth.issuer", "printable ASCII"),
    (oauth(issuer="https://a/ä"), "spec.oauth.issuer", "printable ASCII"),
    (oauth(issuer="https://a/\n"), "spec.oauth.issuer", "printable ASCII"),
    (oauth(issuer=5), "spec.oauth.issuer", "put it in quotes"),
    (endpoint("https://a#b"), "spec.oauth.endpoints.token", "must not hold a fragment"),
    (endpoint("https://[::1"), "spec.oauth.endpoints.token", "not a valid URL"),
    (oauth(endpoints={"tokn": "https://a"}), "spec.oauth.endpoints.tokn", "did you mean token?"),
    # clients
    (client(id=None, secretsFrom=[REF]), "spec.oauth.client.id", "needs id or idFrom"),
    (client(idFrom=REF, secretsFrom=[REF]), "spec.oauth.client.idFrom", "must not stand beside id"),
    (client(), "spec.oauth.client.secretsFrom", "authentication: ClientSecretBasic needs it"),
    (client(authentication="ClientSecretPost"), "spec.oauth.client.secretsFrom", "ClientSecretPost needs it"),
    (client(authentication="PrivateKeyJwt"), "spec.oauth.client.privateKeyFrom", "PrivateKeyJwt needs it"),
    (client(authentication="ClientAssertion"), "spec.oauth.client.assertionFrom", "ClientAssertion needs it"),
    (client(authentication="TlsClientAuth"), "spec.tls.clientCertificateFrom", "presents a certificate"),
    (client(authentication="Basic"), "spec.oauth.client.authentication", "must be one of ClientSecretBasic"),
    (client(authentication="None", secretsFrom=[REF]), "spec.oauth.client.secretsFrom", "does not belong"),
    (client(**KEY_JWT, secretsFrom=[REF]), "spec.oauth.client.secretsFrom", "or ClientSecretPost"),
    (client(secretsFrom=[REF], privateKeyFrom=REF), "spec.oauth.client.privateKeyFrom", "belongs to PrivateKeyJwt"),
    (client(secretsFrom=[REF], algorithm="ES256"), "spec.oauth.client.algorithm", "belongs to PrivateKeyJwt"),
    (client(secretsFrom=[REF], keyId="a"), "spec.oauth.client.keyId", "belongs to PrivateKeyJwt"),
    (client(secretsFrom=[REF], assertionFrom=REF), "spec.oauth.client.assertionFrom", "belongs to ClientAssertion"),
    (
        client(secretsFrom=[REF], assertionAudience="TokenEndpoint"),
        "spec.oauth.client.assertionAudience",
        "belongs to PrivateKeyJwt",
    ),
    (client(**KEY_JWT, algorithm="HS256"), "spec.oauth.client.algorithm", "must be one of RS256, ES256, EdDSA"),
    (
        provider(oauth={"endpoints": {"token": "https://a"}, "client": {"id": "b"} | KEY_JWT}),
        "spec.oauth.client.assertionAudience",
        "issuer, which is not set",
    ),
    (client(secretsFrom=REF), "spec.oauth.client.secretsFrom", "must be a list"),
    (client(secretsFrom=[{"name": "a"}]), "spec.oauth.client.secretsFrom[0].name", "is not a known field"),
    (
        client(secretsFrom=[{"secretKeyRef": {"name": "a", "key": "../b"}}]),
        "spec.oauth.client.secretsFrom[0].secretKeyRef.key",
        "may hold letters",
    ),
    # policies and limits
    (oauth(refreshTokens={"rotation": "Always"}), "spec.oauth.refreshTokens.rotation", "Auto, Rotating, Reusable"),
    (oauth(refreshTokens={"inDoubt": "Ask"}), "spec.oauth.refreshTokens.inDoubt", "ReplayOnce, AskPerson"),
    (oauth(refreshTokens={"idle": "0s"}), "spec.oauth.refreshTokens.idle", "longer than 0s"),
    (oauth(lifetime={"assumed": "2h", "maximum": "1h"}), "spec.oauth.lifetime.assumed", "longer than maximum"),
    (provider(limits={"requestsPerSecond": 0}), "spec.limits.requestsPerSecond", "greater than 0"),
    (provider(limits={"requestsPerSecond": "5"}), "spec.limits.requestsPerSecond", "must be a number"),
    (provider(limits={"requestsPerSecond": float("inf")}), "spec.limits.requestsPerSecond", "must be"),
    (provider(limits={"burst": 0}), "spec.limits.burst", "at least 1"),
    (provider(limits={"burst": True}), "spec.limits.burst", "whole number"),
    (provider(limits={"concurrency": 1001}), "spec.limits.concurrency", "at most 1000"),
    (provider(limits={"timeout": "0s"}), "spec.limits.timeout", "longer than 0s"),
    (provider(tls={"caFrom": {}}), "spec.tls.caFrom", "exactly one of secretKeyRef, configMapKeyRef"),
    (provider(tls={"clientCertificateFrom": REF}), "spec.tls.clientCertificateFrom.secretKeyRef", "did you mean"),
    (
        resource("TokenProvider", {"type": "LabArchives", "labarchives": {"url": "https://a", "methods": ["A"]}}),
        "spec.labarchives.methods[0]",
        "method name",
    ),
    (cluster_provider(allow={"grants": ["password"]}), "spec.allow.grants[0]", "did you mean Password?"),
    (cluster_provider(allow={"parameters": ["scope"]}), "spec.allow.parameters[0]", "set by the protocol"),
    (cluster_provider(namespaceSelector={"team": "a"}), "spec.namespaceSelector.team", "known here: matchLabels"),
    (
        cluster_provider(namespaceSelector={"matchExpressions": [{"key": "team", "operator": "In"}]}),
        "spec.namespaceSelector.matchExpressions[0].values",
        "is missing; operator: In needs it",
    ),
    (
        cluster_provider(
            namespaceSelector={"matchExpressions": [{"key": "team", "operator": "Exists", "values": ["a"]}]}
        ),
        "spec.namespaceSelector.matchExpressions[0].values",
        "it belongs to In or NotIn",
    ),
]


@pytest.mark.parametrize(("value", "path", "words"), IDENTITY_MISTAKES + PROVIDER_MISTAKES)
def test_the_problem_names_the_field_and_says_what_is_wrong(value: Any, path: str, words: str) -> None:
    loaded = load(value)

    matching = [problem for problem in loaded.problems if problem.path == path]
    assert matching, [str(problem) for problem in loaded.problems]
    assert any(words in problem.message for problem in matching), [str(problem) for problem in matching]
    assert all(problem.reason is Reason.INVALID_SPEC for problem in loaded.problems)
    assert not loaded.identities + loaded.providers
    assert len(loaded.invalid) == 1
    for problem in loaded.problems:
        assert problem.line is not None
        assert "\n" not in str(problem)


def test_all_mistakes_of_a_resource_come_at_once() -> None:
    loaded = load(
        identity(scopes="a", suspend="no", renewal={"before": 5}, target={"type": "x", "files": [{"format": "Token"}]})
    )
    assert {problem.path for problem in loaded.problems} == {
        "spec.scopes",
        "spec.suspend",
        "spec.renewal.before",
        "spec.target.type",
        "spec.target.files[0].name",
    }


@pytest.mark.parametrize(
    "value",
    [
        identity(scopes=["hunter2 hunter2"]),
        identity(grant={"type": "hunter2 hunter2"}),
        identity(expectedSubject={"subject": "hunter2\n"}),
        identity(parameters={"x": ["hunter2"]}),
        identity(renewal={"before": "hunter2"}),
        identity(hunter="hunter2", grant="hunter2", client="hunter2", target={"files": "hunter2"}),
        client(secretsFrom=["hunter2"]),
        client(secretsFrom=[{"secretKeyRef": {"name": "hunter2!", "key": "hunter2/"}}]),
        client(id=["hunter2"]),
        oauth(issuer="https://user:hunter2@host"),
        oauth(issuer="hunter2"),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "hunter2!"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": ["hunter2"]}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": "hunter2"},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hunter2!"}},
    ],
)
def test_values_are_never_repeated(value: Any) -> None:
    loaded = load(value)
    assert loaded.problems
    assert "hunter2" not in repr(loaded.problems)


def test_a_problem_is_one_line_with_its_place() -> None:
    (problem,) = load(oauth(issuer=ISSUER, lifetime=5)).problems
    assert str(problem) == (
        "f.yaml:15: TokenProvider batch/x: spec.oauth.lifetime: must be a mapping with the fields assumed, maximum"
    )
