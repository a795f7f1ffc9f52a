"""Through a whole run in a cluster, with everything at its most talkative, no secret is where it does not belong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.signing import TrustedIssuer
from keyferry.demo.state import User
from keyferry_operator.crds import manifests
from tests.engine.surfaces import leaks, secrets_of
from tests.operator.live.conftest import GROUP, Field
from tests.operator.live.test_credentials import account, by_refresh_token
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer
from tests.support.kube_servers import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CANARY = "c4nary"
CLIENT_SECRET = f"{CANARY}-client/secret+of&the=bot"
POSTED_SECRET = f"{CANARY}-posted:secret%20"
PERSON = f"{CANARY}-password \"with' marks"
WRONG = f"{CANARY}-wrong-password"
CONTROL = f"{CANARY}-two\nlines-of-secret"
UNUSED = f"{CANARY}-unlabelled"
# The command, with what it keeps quiet made to speak: every library's logger, and the loop's own debugging.
PROGRAM = """
import logging, sys
from keyferry_operator.command import app
talk = logging.StreamHandler(sys.stderr)
talk.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s %(args)r"))
for name in ("kopf", "aiohttp", "asyncio", "httpx", "httpcore", "urllib3", "concurrent.futures", "keyferry"):
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(talk)
app(args=sys.argv[1:])
"""
# Bodies of everything but those that are secret by their kind.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "rules": [
        {"level": "Metadata", "resources": [{"group": "", "resources": ["secrets", "serviceaccounts/token"]}]},
        {"level": "RequestResponse"},
    ],
}
PLAIN = ("plain", "posted", "signed", "person", "seeded", "link", "bearer", "worker")
FAULTS = (
    Fault(FaultKind.STATUS, times=4, status=503, body=f"Traceback: {POSTED_SECRET} {CLIENT_SECRET}"),
    Fault(FaultKind.HTML, times=4, status=403, body=f"<p>{CLIENT_SECRET} {PERSON}</p>"),
    Fault(
        FaultKind.ERROR, times=4, status=400, error="invalid_request", description=f"{CLIENT_SECRET} {POSTED_SECRET}"
    ),
    Fault(FaultKind.BODY, times=4, body=f'{{"access_token": "{CANARY}-cut off'),
    Fault(FaultKind.BODY, times=4, body=json.dumps({"access_token": f"{CANARY}\nline", "refresh_token": 7})),
    Fault(FaultKind.REDIRECT, times=2, location=f"/?leak={CANARY}-client"),
)


def populate(field: Field) -> set[str]:
    """Declare one identity of every grant and client authentication; return the secrets they begin with."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    issuer, everything = field.issuer, {"grants": tuple(Grant), "scopes": ("read",)}
    issuer.service.trust(TrustedIssuer("https://else.example.org", (public,)))
    issuer.service.add_user(User("ada", PERSON))
    issuer.clients.add(Client("bot", secrets=(CLIENT_SECRET,), **everything))  # type: ignore[arg-type] # plain names
    issuer.clients.add(Client("posted", secrets=(POSTED_SECRET,), methods=(AuthMethod.POST,)))
    issuer.clients.add(Client("signed", public_keys=(public,), methods=(AuthMethod.PRIVATE_KEY_JWT,)))
    now = int(time.time())
    claims = {"iss": "https://else.example.org", "sub": "ada", "aud": issuer.issuer, "iat": now, "exp": now + 9_000}
    assertion = jwt.encode(claims, key, algorithm="ES256")
    seed = issuer.seed_refresh_token("bot", "ada")
    field.apply(
        field.provider(),
        *_secrets(field, private, seed, assertion),
        account("worker", field.host),
        *_identities(field),
    )
    body = "".join(private.splitlines()[1:-1])
    return {CLIENT_SECRET, POSTED_SECRET, PERSON, WRONG, CONTROL, UNUSED, seed, assertion, body[:40], body[-40:]}


def _secrets(field: Field, private: str, seed: str, assertion: str) -> Iterator[dict[str, Any]]:
    yield field.secret("bot", secret=CLIENT_SECRET)
    yield field.secret("posted-client", secret=POSTED_SECRET)
    yield field.secret("signed-client", secret=private)
    yield field.secret("seed", token=seed)
    yield field.secret("assertion", token=assertion)
    yield field.secret("torn-client", secret=CONTROL)
    yield field.secret("unused-client", label=False, secret=UNUSED)
    for name, password in (("ada", PERSON), ("wrong", WRONG)):
        document = field.secret(name)
        document["stringData"] = {"name": "ada", "password": password}
        yield document


def _identities(field: Field) -> Iterator[dict[str, Any]]:
    def client(name: str, **fields: Any) -> dict[str, Any]:
        return {"id": name, "secretsFrom": [_from(f"{name}-client", "secret")], **fields}

    def password(name: str) -> dict[str, Any]:
        login = {"usernameFrom": _from(name, "name"), "passwordFrom": _from(name, "password")}
        return {"type": "Password", "password": login}

    key = {"authentication": "PrivateKeyJwt", "algorithm": "ES256", "privateKeyFrom": _from("signed-client", "secret")}
    token = {"serviceAccountToken": {"name": "worker", "audience": field.issuer.issuer}}
    chain = {"type": "TokenExchange", "tokenExchange": {"subject": {"identityRef": {"name": "plain"}}}}
    yield field.identity("plain", consumers=[{"identityName": "link"}])
    yield field.identity("posted", client=client("posted", authentication="ClientSecretPost"))
    yield field.identity("signed", client={"id": "signed", **key})
    yield field.identity("person", grant=password("ada"))
    yield field.identity("seeded", grant=by_refresh_token("seed"))
    yield field.identity("link", grant=chain)
    yield field.identity("bearer", grant={"type": "JwtBearer", "jwtBearer": {"assertion": _from("assertion", "token")}})
    yield field.identity("worker", client={"authentication": "ClientAssertion", "assertionFrom": token})
    yield field.identity("refused", grant=password("wrong"))
    yield field.identity("torn", client=client("torn"))
    yield field.identity("stranger", client=client("unused"))


def _from(name: str, key: str) -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key}}


@contextlib.asynccontextmanager
async def talkative(field: Field, log: Path) -> AsyncIterator[None]:
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-c", PROGRAM),
            *("--namespace", field.home, "--instance", "one", "--watch-namespace", field.namespace),
            *("--allow-host", "127.0.0.1", "--escrow", str(field.escrow), "--service-account-tokens"),
            *("--metrics", "127.0.0.1:0", "--log-level", "debug"),
            stdout=output,
            stderr=output,
            env={**os.environ, "KUBECONFIG": str(field.cluster.kubeconfig), "PYTHONASYNCIODEBUG": "1"},
        )
    try:
        yield
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 90) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def metrics(log: Path) -> str:
    """Return what the operator that was started last measures."""
    told = [json.loads(line) for line in lines_of(log) if line.startswith('{"')]
    url = [line["message"] for line in told if "metrics are at" in line["message"]][-1].rsplit(" ", 1)[-1]
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return (await client.get(url)).text


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines()


async def suffer(field: Field) -> None:
    """Let faults befall renewals, each of which is asked for by a new life of the operator's."""
    for fault in FAULTS:
        field.issuer.faults.clear()
        field.issuer.faults.add(fault)
        before = len(field.issuer.requests)
        for name in PLAIN:
            found = field.cluster.api.get(GROUP, "ServiceIdentity", name, field.namespace)
            change = {"spec": {"parameters": {"round": str(before)}}}
            field.cluster.api.patch(found, change)  # another token is wanted, whenever the last was issued
        await field.until(lambda: len(field.issuer.requests) >= before + (fault.times or 1))  # noqa: B023 - awaited here
    field.issuer.faults.clear()


def shown(field: Field) -> Iterator[str]:
    """Yield all that the cluster holds but what Secrets hold: of those what describes them, managedFields included."""
    api = field.cluster.api
    for namespace in (field.namespace, field.home):
        for secret in api.items("v1", "Secret", namespace):
            applied = secret["metadata"].get("annotations", {})
            assert "kubectl.kubernetes.io/last-applied-configuration" not in applied
            yield json.dumps({**secret, "data": sorted(secret.get("data", {}))})
        for version, kind in (
            (GROUP, "ServiceIdentity"),
            (GROUP, "TokenProvider"),
            ("events.k8s.io/v1", "Event"),
            ("v1", "ConfigMap"),
            ("v1", "ServiceAccount"),
            ("coordination.k8s.io/v1", "Lease"),
        ):
            yield from (json.dumps(found) for found in api.items(version, kind, namespace))


def published(field: Field) -> Iterator[str]:
    """Yield the content of the Secrets that workloads mount."""
    for secret in field.cluster.api.items("v1", "Secret", field.namespace, labelSelector="keyferry.dev/managed"):
        yield from (base64.b64decode(value).decode() for value in secret["data"].values())


@pytest.fixture
async def talked_about(start_cluster: Callable[..., Cluster], tmp_path: Path) -> AsyncIterator[Field]:
    """A field on a cluster whose audit log tells everything but what is secret by its kind."""
    policy = tmp_path / "audit-policy.yaml"
    policy.write_text(yaml.safe_dump(AUDIT))
    cluster = start_cluster(Options(api_server_flags=(f"--audit-policy-file={policy}",)))
    for manifest in manifests():
        cluster.api.apply(manifest, manager="user")
    with cluster.namespace("team") as team, cluster.namespace("keyferry") as home:
        async with FaultIssuer() as issuer:
            yield Field(cluster, team, home, issuer, tmp_path / "escrow")


async def test_no_secret_is_found_anywhere_it_does_not_belong(talked_about: Field, tmp_path: Path) -> None:
    field, first, second = talked_about, tmp_path / "first.log", tmp_path / "second.log"
    field.trust_account("worker")
    secrets = populate(field)
    texts: list[str] = []
    async with talkative(field, first):
        await field.until_ready(*PLAIN)
        for name in ("refused", "torn", "stranger"):
            await field.until(lambda: field.condition(name, "Stalled").get("status") == "True")  # noqa: B023 - awaited here
        outside = list(published(field))
        await suffer(field)
        texts += [await metrics(first), *shown(field)]
    async with talkative(field, second):  # what a restart reads and says
        await field.until(lambda: "Starting the watch-stream for serviceidentities" in second.read_text())
        for name in ("seeded", "plain"):
            field.cluster.api.delete(field.cluster.api.get(GROUP, "ServiceIdentity", name, field.namespace))
            await field.until(lambda: f"/{name} is gone" in second.read_text())  # noqa: B023 - awaited here
        texts += [await metrics(second), *shown(field)]
    secrets |= secrets_of(field.issuer)
    said = first.read_text() + second.read_text()
    for library in ("DEBUG kopf", "DEBUG asyncio", '"level":"debug"'):
        assert library in said.replace('": "', '":"'), f"{library} was listened to"
    audit = field.cluster.audit.path.read_text()
    assert '"requestObject"' in audit, "the audit log tells bodies"
    assert len(secrets) > 20
    assert not leaks(iter(texts), secrets | {CANARY})
    assert not leaks(iter(said.splitlines()), secrets | {CANARY})
    assert not leaks(iter(audit.splitlines()), secrets | {CANARY})

    # What workloads mount are access tokens, and nothing that begets them.
    access = {token.value for token in field.issuer.issued}
    assert len(outside) >= len(PLAIN)
    assert not leaks(iter(outside), secrets - access)
