"""Whose credential, for whom: what its owner did not allow is refused, with the line that would allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.state import User
from tests.support.issuer import FaultIssuer
from tests.support.kube_api import ApiError

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


def add_bot(issuer: FaultIssuer) -> None:
    issuer.clients.add(
        Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=tuple(Grant), scopes=("read", "write"))
    )
    issuer.service.add_user(User("ada", "pa55word", email="ada@example.org"))


def by_refresh_token(secret: str) -> dict[str, Any]:
    source = {"secretKeyRef": {"name": secret, "key": "token"}}
    return {"type": "RefreshToken", "refreshToken": {"from": source}}


def by_account(name: str, audience: str) -> dict[str, Any]:
    token = {"serviceAccountToken": {"name": name, "audience": audience}}
    return {"type": "JwtBearer", "jwtBearer": {"assertion": token}}


def account(name: str, hosts: str, *, label: bool = True) -> dict[str, Any]:
    labels = {"keyferry.dev/credential": "true"} if label else {}
    metadata = {"name": name, "labels": labels, "annotations": {"keyferry.dev/hosts": hosts}}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def posted(issuer: FaultIssuer) -> list[str]:
    """Return what was sent to an issuer beside the question what it is."""
    return [f"{request.path} {request.grant}" for request in issuer.requests if request.method != "GET"]


async def test_a_service_account_is_used_only_as_its_owner_said(field: Field) -> None:
    add_bot(field.issuer)
    host, issuer, namespace = field.host, field.issuer.issuer, field.namespace
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET),
        account("plain", host, label=False),
        account("elsewhere", "auth.example.org"),
        account("right", host),
        field.identity("unlabelled", grant=by_account("plain", issuer)),
        field.identity("other-host", grant=by_account("elsewhere", issuer)),
        field.identity("absent", grant=by_account("nobody", issuer)),
        # Both open the cluster: one is in the list that an installation gives, the other shows when it is tried.
        field.identity("well-known", grant=by_account("right", "https://kubernetes.default.svc")),
        field.identity("of-the-api", grant=by_account("right", field.cluster.issuer)),
    )
    async with field.operator(service_account_tokens=True):
        message = await field.until_refused("unlabelled", "SecretNotLabelled")
        assert f"kubectl -n {namespace} label serviceaccount plain keyferry.dev/credential=true" in message
        message = await field.until_refused("other-host", "HostNotAllowed")
        assert f"annotate --overwrite serviceaccount elsewhere keyferry.dev/hosts={host},auth.example.org" in message
        assert "Create it" in await field.until_refused("absent", "SecretNotFound")
        for name in ("well-known", "of-the-api"):
            assert "would open the cluster" in await field.until_refused(name, "HostNotAllowed")
            assert field.condition(name, "Stalled")["status"] == "True"
        assert not posted(field.issuer)


async def test_no_reference_leads_into_another_namespace(field: Field) -> None:
    add_bot(field.issuer)
    api = field.cluster.api
    with field.cluster.namespace("other") as other:
        field.apply(field.provider(), field.identity("nightly"))
        theirs = field.secret("bot", secret=SECRET)
        theirs["metadata"]["namespace"] = other
        api.apply(theirs, manager="user")
        for name in (f"{other}/bot", f"../{other}/bot", f"..%2f{other}"):
            document = field.provider("sly")
            document["spec"]["oauth"]["client"]["secretsFrom"][0]["secretKeyRef"]["name"] = name
            with pytest.raises(ApiError, match="secretKeyRef"):
                field.apply(document)
        for where in (("metadata", "namespace"), ("namespace",)):
            document = field.provider("sly")
            reference = document["spec"]["oauth"]["client"]["secretsFrom"][0]["secretKeyRef"]
            for key in where[:-1]:
                reference = reference.setdefault(key, {})
            reference[where[-1]] = other
            with pytest.raises(ApiError):  # server-side apply validates strictly
                field.apply(document)
        async with field.operator(watch_namespaces=(field.namespace, other)):
            assert "bot is not there" in await field.until_refused("nightly", "SecretNotFound")
        assert not posted(field.issuer)


async def test_what_keyferry_writes_is_no_credential(field: Field) -> None:
    add_bot(field.issuer)
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until_ready("nightly")
        target = field.target("nightly")
        assert target is not None
        change = {
            "labels": {"keyferry.dev/credential": "true"},
            "annotations": {"keyferry.dev/hosts": field.host},
        }
        field.cluster.api.patch(target, {"metadata": change})
        field.apply(
            field.identity(
                "second",
                grant={
                    "type": "TokenExchange",
                    "tokenExchange": {"subject": {"secretKeyRef": {"name": "nightly", "key": "token"}}},
                },
            )
        )
        assert "use identityRef" in await field.until_refused("second", "SecretNotLabelled")
        assert len(field.issuer.issued) == 1


async def test_a_live_refresh_token_stays_with_the_provider_that_issued_it(field: Field) -> None:
    add_bot(field.issuer)
    field.apply(
        field.provider(),
        field.secret("bot", "127.0.0.1", secret=SECRET),  # every port: the secret itself may go to both
        field.secret("seed", "127.0.0.1", token=field.issuer.seed_refresh_token("bot", "ada")),
        field.identity("person", grant=by_refresh_token("seed")),
    )
    async with FaultIssuer() as other, field.operator():
        add_bot(other)
        await field.until_ready("person")
        good = field.token("person")
        sent = len(posted(field.issuer))
        for change in (
            {"issuer": other.issuer},
            {"endpoints": {"token": f"{other.url}/token"}},
            {"endpoints": {"revocation": f"{other.url}/revoke"}},
        ):
            document = field.provider()
            document["spec"]["oauth"] |= change
            field.apply(document)
            message = await field.until_reason("person", "ProviderChanged")
            assert "Change the provider back" in message
            field.apply(field.provider())
            await field.until_reason("person", "Issued")
        assert not posted(other)
        assert field.token("person") == good
        assert len(posted(field.issuer)) == sent
    assert max(field.issuer.sent_refresh_tokens().values()) == 1


async def test_a_seed_is_spent_once_whoever_brings_it(field: Field) -> None:
    add_bot(field.issuer)
    seed = field.issuer.seed_refresh_token("bot", "ada")
    documents = (field.provider(), field.secret("bot", secret=SECRET), field.secret("seed", token=seed))
    with field.cluster.namespace("other") as other:
        field.apply(
            *documents, field.secret("copy", token=seed), field.identity("person", grant=by_refresh_token("seed"))
        )
        async with field.operator(watch_namespaces=(field.namespace, other)):
            await field.until_ready("person")
            field.apply(field.identity("second", grant=by_refresh_token("copy")))
            message = await field.until_refused("second", "SeedAlreadyUsed")
            assert "obtain a new one" in message
            elsewhere = field.within(other)
            elsewhere.apply(*documents, field.identity("third", grant=by_refresh_token("seed")))
            await elsewhere.until_refused("third", "SeedAlreadyUsed")
            # The name comes back, and with it neither the old private state nor the right to the old seed.
            identity = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "person", field.namespace)
            field.cluster.api.delete(identity)
            field.apply(field.identity("person", grant=by_refresh_token("seed")))
            await field.until_refused("person", "SeedAlreadyUsed")
            fresh = field.issuer.seed_refresh_token("bot", "ada")
            field.apply(field.secret("seed", token=fresh))
            await field.until_ready("person")
        assert field.issuer.sent_refresh_tokens()[seed] == 1
        assert max(field.issuer.sent_refresh_tokens().values()) == 1
