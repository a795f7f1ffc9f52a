"""A changed CA wakes exactly those who use it, wherever it is kept; a provider's status follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from tests.operator.live.conftest import Field
from tests.support.issuer import FaultIssuer
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.cluster import Cluster

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"
PLACES = ("config", "secret")


@pytest.fixture
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
async def behind_tls(definitions: Cluster, authority: Authority, tmp_path: Path) -> AsyncIterator[Field]:
    """A field whose issuer shows a certificate of the authority."""
    with definitions.namespace("team") as team, definitions.namespace("keyferry") as home:
        async with FaultIssuer(tls=server_context(authority.server(), tmp_path)) as issuer:
            methods, grants = (AuthMethod.BASIC,), (Grant.CLIENT_CREDENTIALS,)
            issuer.clients.add(Client("bot", secrets=(SECRET,), methods=methods, grants=grants))
            issuer.service.settings.access_lifetime = 3600.0
            yield Field(definitions, team, home, issuer, tmp_path)


def _declare(field: Field) -> None:
    """Declare a provider for each place of the CA, and an identity of each."""
    host = field.issuer.url.removeprefix("https://")
    field.apply(field.secret("bot", host, secret=SECRET))
    for place, source in zip(PLACES, ("configMapKeyRef", "secretKeyRef"), strict=True):
        document = field.provider(place)
        # Both of one name: what is told of the one does not concern the users of the other.
        document["spec"]["tls"] = {"caFrom": {source: {"name": "ca", "key": "ca.crt"}}}
        field.apply(document, field.identity(place, providerRef={"name": place}))


def _put(field: Field, place: str, authority: Authority) -> None:
    data = {"ca.crt": authority.certificate}
    if place == "secret":
        document = field.secret("ca", field.issuer.url.removeprefix("https://"))
        field.apply({**document, "stringData": data})
    else:
        field.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": data})


@pytest.mark.parametrize("place", PLACES)
async def test_a_ca_that_appears_or_changes_wakes_those_who_use_it(
    behind_tls: Field, authority: Authority, place: str
) -> None:
    field, right, wrong = behind_tls, authority, Authority.create()
    (other,) = set(PLACES) - {place}
    _declare(field)
    async with field.operator():
        for name in PLACES:
            await field.told(name, "Stalled", status="True")
            await field.provider_told(name, reason="SecretNotFound")
            assert field.condition(name)["reason"] == "SecretNotFound"
            what = "Secret" if name == "secret" else "ConfigMap"
            assert f"{what} {field.namespace}/ca" in field.provider_condition(name)["message"]
        before = field.status(other)

        _put(field, place, wrong)
        await field.told(place, message="certificate")
        await field.provider_told(place, message="certificate")
        assert field.condition(place)["reason"] == "Retrying"

        _put(field, place, right)
        await field.told(place, status="True")
        await field.provider_told(place, status="True")
        assert field.status(other) == before
        assert field.provider_condition(other)["reason"] == "SecretNotFound"


async def test_an_issuer_that_says_another_name_is_told_on_the_provider(field: Field) -> None:
    document = field.provider()
    document["spec"]["oauth"]["issuer"] = f"{field.issuer.issuer}/"
    field.apply(document)
    async with field.operator():
        await field.provider_told(
            "issuer", status="False", reason="InvalidSpec", message="Write it exactly as the server does"
        )
        field.apply(field.provider())
        await field.provider_told("issuer", status="True")
        field.issuer.stop()
        gone = field.provider()
        gone["spec"]["limits"] = {"burst": 5}
        field.apply(gone)
        await field.provider_told("issuer", status="False", reason="Retrying", message="connection refused")
        await field.issuer.start()
        await field.provider_told("issuer", status="True")


async def test_a_service_account_that_is_labelled_wakes_who_asks_for_its_token(field: Field) -> None:
    field.issuer.clients.add(Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=(Grant.JWT_BEARER,)))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ingest"}}
    token = {"name": "ingest", "audience": field.issuer.issuer}
    grant = {"type": "JwtBearer", "jwtBearer": {"assertion": {"serviceAccountToken": token}}}
    field.apply(field.provider(), field.secret("bot", secret=SECRET), account, field.identity("nightly", grant=grant))
    async with field.operator(service_account_tokens=True):
        condition = await field.told("nightly", reason="SecretNotLabelled", status="False")
        assert f"kubectl -n {field.namespace} label serviceaccount ingest" in condition["message"]
        hosts = {"keyferry.dev/hosts": field.issuer.url.removeprefix("http://")}
        metadata = {"name": "ingest", "labels": {"keyferry.dev/credential": "true"}, "annotations": hosts}
        field.apply({**account, "metadata": metadata})
        # It was asked for and presented; the issuer does not know this cluster's keys.
        await field.told("nightly", reason="GrantRejected", message="the assertion is not valid here")
