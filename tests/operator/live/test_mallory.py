"""Somebody who may write TokenProviders and ServiceIdentities, and nothing else, learns no Secret.

Mallory has the chart's rights for people who edit, a server of her own, and all the ways in which a resource can refer
to a Secret. Whatever she declares: her server is shown nothing, and nothing is told in what she can read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keyferry.demo.clients import AuthMethod, Client, Grant
from tests.engine.surfaces import leaks
from tests.operator.live.conftest import GROUP
from tests.operator.live.test_credentials import SECRET, account, add_bot, by_account, posted
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer
from tests.support.kube_api import Api, ApiError
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.chart.conftest import Helm
    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PRECIOUS = "pr3cious: nobody labelled this"
SHORT = "hunt&r 2"
USER, GROUPS = "mallory", ("system:authenticated",)


@dataclass
class Scene:
    """A namespace with Secrets of others in it, and what Mallory has."""

    field: Field
    api: Api
    """The cluster as she sees it."""
    thief: FaultIssuer
    """Her server."""
    secrets: set[str]

    def declare(self, *documents: dict[str, Any]) -> None:
        for document in documents:
            document["metadata"]["namespace"] = self.field.namespace
            self.api.apply(document, manager="mallory")

    def may_declare(self, document: dict[str, Any]) -> bool:
        """Declare something that may not be valid; tell whether it was."""
        try:
            self.declare(document)
        except ApiError as error:
            if error.code != 422:
                raise
            return False
        return True

    def provider(self, name: str, **oauth: Any) -> dict[str, Any]:
        """Return a provider at her server."""
        found = {"issuer": self.thief.issuer, **oauth}
        return {
            "apiVersion": GROUP,
            "kind": "TokenProvider",
            "metadata": {"name": name},
            "spec": {"type": "OAuth", "oauth": {key: value for key, value in found.items() if value is not None}},
        }

    def identity(self, name: str, provider: str = "thief", **spec: Any) -> dict[str, Any]:
        return self.field.identity(name, **{"providerRef": {"name": provider}, **spec})

    def readable(self) -> Iterator[str]:
        """Yield all that she can read: her resources with their statuses, and the Events."""
        for kind in ("TokenProvider", "ServiceIdentity"):
            yield from (json.dumps(found) for found in self.api.items(GROUP, kind, self.field.namespace))
        admin = self.field.cluster.api
        yield from (json.dumps(found) for found in admin.items("events.k8s.io/v1", "Event", self.field.namespace))

    def assert_nothing_is_learnt(self) -> None:
        issued = {token.value for token in self.field.issuer.issued}
        seen = [repr(request) for request in self.thief.requests]
        assert not leaks(iter(seen), self.secrets | issued)
        assert not leaks(self.readable(), self.secrets | issued)


@pytest.fixture
async def scene(field: Field, helm: Helm) -> AsyncIterator[Scene]:
    add_bot(field.issuer)
    admin, namespace = field.cluster.api, field.namespace
    rendered = helm.template()
    rules = [rule for name in ("view", "edit") for rule in rendered.one("ClusterRole", f"kf-keyferry-{name}")["rules"]]
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": USER, "namespace": namespace}}
    admin.create(
        {**rbac, "kind": "Role", "rules": [rule for rule in rules if "serviceidentities" in rule["resources"]]}
    )
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": USER}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}
    admin.create({**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [subject]})
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    certificate = Authority.create().client("bot")
    tls = field.secret("tls")
    tls["stringData"] = {"tls.crt": certificate.certificate, "tls.key": certificate.private_key}
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET, short=SHORT),
        field.secret("key", pem=pem),
        tls,
        field.secret("precious", "", label=False, value=PRECIOUS),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {"text": PRECIOUS}},
        account("worker", field.host),
        field.identity("nightly"),
    )
    bodies = ["".join(text.splitlines()[1:-1])[:40] for text in (pem, certificate.private_key)]
    async with FaultIssuer() as thief:
        thief.clients.add(Client("bot", methods=(AuthMethod.NONE,), grants=tuple(Grant)))
        yield Scene(field, admin.impersonate(USER, *GROUPS), thief, {SECRET, PRECIOUS, *bodies})


def source(name: str, key: str) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key}}


def references(name: str, key: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return a client and a grant for each place where a resource may refer to a value in a Secret."""
    public: dict[str, Any] = {"id": "bot", "authentication": "None"}
    machine: dict[str, Any] = {"type": "ClientCredentials"}
    ref = source(name, key)
    return {
        "basic": ({"id": "bot", "secretsFrom": [ref]}, machine),
        "post": ({"id": "bot", "authentication": "ClientSecretPost", "secretsFrom": [ref]}, machine),
        "id": ({"idFrom": ref, "secretsFrom": [ref]}, machine),
        "signed": ({"id": "bot", "authentication": "PrivateKeyJwt", "privateKeyFrom": ref}, machine),
        "assertion": ({"authentication": "ClientAssertion", "assertionFrom": ref}, machine),
        "username": (public, {"type": "Password", "password": {"usernameFrom": ref, "passwordFrom": ref}}),
        "refresh": (public, {"type": "RefreshToken", "refreshToken": {"from": ref}}),
        "bearer": (public, {"type": "JwtBearer", "jwtBearer": {"assertion": ref}}),
        "subject": (public, {"type": "TokenExchange", "tokenExchange": {"subject": ref}}),
    }


async def test_no_reference_brings_a_secret_to_her_server(scene: Scene) -> None:
    wanted = {}
    for holder, key, reason in (("bot", "secret", "HostNotAllowed"), ("precious", "value", "SecretNotLabelled")):
        for way, (client, grant) in references(holder, key).items():
            name = f"{holder}-{way}"
            wanted[name] = reason
            scene.declare(scene.identity(name, client=client, grant=grant))
            of_provider = f"{name}-provider"
            if way in {"basic", "post", "id", "signed", "assertion"}:  # the provider's own client, too
                wanted[of_provider] = reason
                scene.declare(scene.provider(of_provider, client=client), scene.identity(of_provider, of_provider))
    for way, tls in {
        "ca": {"caFrom": source("precious", "value")},
        "certificate": {"clientCertificateFrom": {"secretRef": {"name": "tls"}}},
    }.items():
        document = scene.provider(way, client={"id": "bot", "secretsFrom": [source("bot", "secret")]})
        document["spec"]["tls"] = tls
        wanted[way] = "SecretNotLabelled" if way == "ca" else "HostNotAllowed"
        scene.declare(document, scene.identity(way, way))
    scene.declare(scene.provider("thief", client={"id": "bot", "authentication": "None"}))
    scene.declare(scene.identity("account", grant=by_account("worker", scene.thief.issuer)))
    wanted["account"] = "HostNotAllowed"
    async with scene.field.operator(service_account_tokens=True):
        for name, reason in wanted.items():
            assert "kubectl -n" in await scene.field.until_refused(name, reason), name
    assert not posted(scene.thief)
    scene.assert_nothing_is_learnt()


async def test_no_address_passes_for_the_one_that_was_allowed(scene: Scene) -> None:
    allowed, hers = scene.field.host, scene.thief.url.removeprefix("http://")
    port = hers.rpartition(":")[2]
    client = {"id": "bot", "secretsFrom": [source("bot", "secret")]}
    refused = []
    for number, url in enumerate(
        (
            f"http://{allowed}@{hers}",
            f"http://{allowed}#@{hers}",
            f"http://{allowed}\\@{hers}",
            f"http://{allowed}%2f@{hers}",
            f"http://127.0.0.1:{port}",
            f"http://localhost:{port}",
            f"HTTP://LOCALHOST:{port}",
            f"http://127.0.0.1.:{port}",
            f"http://127.1:{port}",
            f"http://2130706433:{port}",
            f"http://0x7f.0.0.1:{port}",
            f"http://[::ffff:127.0.0.1]:{port}",
            f"http://①②⑦.0.0.1:{port}",
            f"http://127.0.0.1:0{port}",
            f"http://127.0.0.1:{port}/{allowed}",
            f"http://127.0.0.1:{port}?{allowed}",
        )
    ):
        name = f"address-{number}"
        token = {"endpoints": {"token": url}, "issuer": None}
        if scene.may_declare(scene.provider(name, client=client, **token)):  # else there can be no such URL at all
            scene.declare(scene.identity(name, name))
            refused.append(name)
    assert len(refused) > 5
    async with scene.field.operator():
        for name in refused:
            await scene.field.until(lambda: scene.field.condition(name, "Stalled").get("status") == "True")  # noqa: B023 - awaited here
            assert scene.field.condition(name)["reason"] in {"HostNotAllowed", "InvalidSpec"}
    assert not posted(scene.thief)
    scene.assert_nothing_is_learnt()


async def test_the_allowed_server_cannot_be_made_to_pass_it_on(scene: Scene) -> None:
    field, thief = scene.field, scene.thief
    issuer, client = field.issuer.issuer, {"id": "bot", "secretsFrom": [source("bot", "secret")]}
    shown = {"id": "bot", "authentication": "TlsClientAuth"}
    hers = {"revocation": f"{thief.url}/revoke"}
    by_certificate = scene.provider("by-certificate", issuer=issuer, client=shown, endpoints=hers)
    by_certificate["spec"]["tls"] = {"clientCertificateFrom": {"secretRef": {"name": "tls"}}}
    scene.declare(
        scene.provider("beside", issuer=issuer, client=client, endpoints=hers),
        scene.identity("beside", "beside"),
        scene.provider("instead", issuer=issuer, client=client, endpoints={"token": f"{thief.url}/token"}),
        scene.identity("instead", "instead"),
        by_certificate,
        scene.identity("by-certificate", "by-certificate"),
    )
    async with field.operator():
        for name in ("beside", "instead", "by-certificate"):
            await field.until_refused(name, "HostNotAllowed")
        # A document of the allowed server that names an endpoint elsewhere, and a redirect.
        well_known = "/.well-known/openid-configuration"
        elsewhere = f"{thief.url}/token"
        field.issuer.faults.add(
            Fault(FaultKind.SET_FIELD, path=well_known, name="token_endpoint", value=elsewhere, times=1)
        )
        scene.declare(scene.provider("named", issuer=issuer, client=client), scene.identity("named", "named"))
        await field.until_refused("named", "HostNotAllowed")
        field.issuer.faults.add(Fault(FaultKind.REDIRECT, location=elsewhere, status=307))
        scene.declare(scene.provider("redirected", issuer=issuer, client=client))
        scene.declare(scene.identity("redirected", "redirected"))
        assert "does not follow" in await field.until_refused("redirected", "Retrying")
    assert not posted(thief)
    scene.assert_nothing_is_learnt()


async def test_what_another_identity_holds_does_not_come_to_her_server(scene: Scene) -> None:
    """She may write identities, so she can give the consent; where tokens go is still not hers to say."""
    field = scene.field
    public = {"id": "bot", "authentication": "None"}
    chain = {"type": "TokenExchange", "tokenExchange": {"subject": {"identityRef": {"name": "nightly"}}}}
    async with field.operator():
        await field.until_ready("nightly")
        scene.declare(
            field.identity("nightly", consumers=[{"identityName": "chained"}, {"identityName": "fair"}]),
            scene.provider("thief", client=public),
            scene.identity("chained", grant=chain),
            field.identity("fair", grant=chain),
        )
        message = await field.until_refused("chained", "HostNotAllowed")
        both = ",".join(sorted((field.host, scene.thief.url.removeprefix("http://"))))
        assert f"annotate --overwrite secret bot keyferry.dev/hosts={both}" in message
        await field.until_ready("fair")  # to the server that issued it, consent is enough
        # To name others in place of the credentials that it was obtained with changes nothing.
        consent = [{"identityName": "chained"}]
        other = by_account("worker", field.issuer.issuer)
        scene.declare(field.identity("nightly", client=public, grant=other, consumers=consent))
        await field.until_reason("nightly", "ProviderNotAllowed")
        scene.declare(scene.identity("chained", grant=chain, scopes=["read"]))
        assert "waits for the token" in await field.until_reason("chained", "Retrying")
        # Its deletion revokes at the server that issued it, not where she says now.
        scene.declare(field.identity("nightly"))
        await field.until_reason("nightly", "Issued")
        document = field.provider()
        document["spec"]["oauth"]["endpoints"] = {"revocation": f"{scene.thief.url}/revoke"}
        scene.declare(document)
        await field.until_reason("nightly", "HostNotAllowed")
        identity = scene.api.get(GROUP, "ServiceIdentity", "nightly", field.namespace)
        scene.api.delete(identity)
        await field.until(lambda: "/revoke None" in posted(field.issuer))
    assert not posted(scene.thief)
    scene.assert_nothing_is_learnt()


async def test_no_message_echoes_what_a_secret_holds(scene: Scene) -> None:
    field = scene.field
    # A careless server, which repeats what it was sent: to Mallory a password, sent as if it were a public name.
    echo: dict[str, Any] = {
        "status": 400,
        "error": "invalid_request",
        "description": f"who is {SHORT}, or {quote(SHORT, safe='')}?",
    }
    field.issuer.faults.add(Fault(FaultKind.ERROR, client=SHORT, **echo))
    field.issuer.faults.add(Fault(FaultKind.ERROR, client="bot", grant="password", **echo))
    client = {"id": "x", "secretsFrom": [source("bot", "secret")]}
    authorities = scene.provider("authorities", issuer=field.issuer.issuer, client=client)
    authorities["spec"]["tls"] = {"caFrom": {"configMapKeyRef": {"name": "notes", "key": "text"}}}
    scene.declare(
        scene.identity(
            "as-id", "issuer", client={"idFrom": source("bot", "short"), "secretsFrom": client["secretsFrom"]}
        ),
        scene.identity(
            "as-name",
            "issuer",
            grant={
                "type": "Password",
                "password": {"usernameFrom": source("bot", "short"), "passwordFrom": source("bot", "short")},
            },
        ),
        authorities,
        scene.identity("authorities", "authorities"),
    )
    async with field.operator():
        for name in ("as-id", "as-name"):
            message = await field.until_refused(name, "GrantRejected")
            assert "who is" in message
        assert "no PEM certificate" in await field.until_refused("authorities", "SecretNotFound")
    assert not [text for text in scene.readable() if SHORT in text or quote(SHORT, safe="") in text]
    scene.assert_nothing_is_learnt()


async def test_targets_take_nothing_over_and_carry_no_labels_of_ours(scene: Scene) -> None:
    field, admin = scene.field, scene.field.cluster.api
    before = {name: field.target(name) for name in ("bot", "precious", "tls")}
    for name in before:
        scene.declare(scene.identity(f"over-{name}", "issuer", target={"secretName": name}))
    for forbidden in (
        {"labels": {"keyferry.dev/credential": "true"}},
        {"labels": {"keyferry.dev/state": "private"}},
        {"labels": {"sub.keyferry.dev/x": "y"}},
        {"annotations": {"keyferry.dev/hosts": "everywhere"}},
        {"files": [{"format": "Template", "name": "a", "template": "${client_secret}"}]},
        {"files": [{"format": "Template", "name": "a", "template": "${access_token.__class__}"}]},
        {"files": [{"format": "Env", "name": "a", "variables": {"A": "${refresh_token}"}}]},
        {"files": [{"format": "Token", "name": "../token"}]},
    ):
        assert not scene.may_declare(scene.identity("forbidden", "issuer", target=forbidden)), forbidden
    with pytest.raises(ApiError):
        scene.declare(scene.identity("sly", "issuer", parameters={"client_secret": "x"}))
    async with field.operator():
        for name, was in before.items():
            assert "was not touched" in await field.until_refused(f"over-{name}", "SecretNotOwned")
            assert field.target(name) == was
    managed = admin.items("v1", "Secret", field.namespace, labelSelector="keyferry.dev/managed")
    assert {found["metadata"]["name"] for found in managed} <= {"nightly"}


async def test_the_rights_themselves_show_nothing(scene: Scene) -> None:
    field = scene.field
    async with field.operator():
        await field.until_ready("nightly")
    for kind in ("Secret", "ConfigMap", "ServiceAccount"):
        with pytest.raises(ApiError) as refusal:
            scene.api.items("v1", kind, field.namespace)
        assert refusal.value.code == 403
    nightly = field.cluster.api.get(GROUP, "ServiceIdentity", "nightly", field.namespace)
    for attempt in (
        lambda: scene.api.get("v1", "Secret", "nightly", field.namespace),
        lambda: scene.api.get("v1", "Secret", "keyferry-keys", field.home),
        lambda: scene.api.service_account_token(field.namespace, "worker"),
        lambda: scene.api.patch(nightly, {"status": {"revision": 99}}, subresource="status"),
        lambda: scene.api.create({**field.identity("x"), "metadata": {"name": "x", "namespace": field.home}}),
        lambda: scene.api.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "kf-x", "namespace": field.home, "labels": {"keyferry.dev/state": "private"}},
            }
        ),
    ):
        with pytest.raises(ApiError) as refusal:
            attempt()
        assert refusal.value.code == 403
    scene.assert_nothing_is_learnt()
