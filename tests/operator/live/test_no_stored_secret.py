"""No stored secret: a real Keycloak reads a real API server's keys, and takes ServiceAccounts for clients and users."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jwt
import pytest
import yaml

from tests.support.keycloak_realm import RealmOptions

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field
    from tests.support.keycloak import Keycloak, Realm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.keycloak,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EXAMPLES = Path(__file__).parents[3] / "examples" / "kubernetes"
CLUSTER = "https://kubernetes.example.org"
PLACEHOLDER = "https://keycloak.example.org/realms/keyferry"
CLIENTS = {"ingest": "ingest", "ingest-user": "ingest", "ingest-reports": "reports"}
"""The identities of the example, and the clients whose tokens they must be."""
LIFETIME = 20
"""Seconds; so that renewals are seen."""
RENEWALS = 2


@dataclass
class Town:
    """A namespace with the example in it, and the realm that trusts its ServiceAccounts."""

    field: Field
    keycloak: Keycloak
    realm: Realm

    def trust(self) -> None:
        """Let the realm trust the cluster's ServiceAccounts, as docs/keycloak.md tells."""
        text = (EXAMPLES / "keycloak-import.json").read_text()
        for old, new in ((CLUSTER, self.field.cluster.issuer), (":batch:", f":{self.field.namespace}:")):
            assert old in text
            text = text.replace(old, new)
        self.keycloak.admin.request("POST", f"{self.realm.name}/partialImport", json.loads(text))

    def apply_example(self) -> None:
        issuer = self.realm.issuer()
        text = (EXAMPLES / "no-stored-secret.yaml").read_text()
        assert PLACEHOLDER in text
        text = text.replace(PLACEHOLDER, issuer).replace("keycloak.example.org", issuer.split("/")[2])
        self.field.apply(*yaml.safe_load_all(text))

    async def is_active(self, token: str) -> bool:
        return bool((await asyncio.to_thread(self.keycloak.introspect, token, self.realm.name))["active"])

    def stored(self) -> set[str]:
        """Name the Secrets of the namespace, and those of private state."""
        api, home = self.field.cluster.api, self.field.home
        return {found["metadata"]["name"] for found in api.items("v1", "Secret", self.field.namespace)} | {
            found["metadata"]["name"] for found in api.items("v1", "Secret", home)
        }


@pytest.fixture
def town(field: Field, keycloak: Keycloak) -> Town:
    realm = keycloak.provision_realm(field.namespace, RealmOptions(access_token_lifespan=LIFETIME))
    return Town(field, keycloak, realm)


async def test_service_accounts_are_clients_and_users_and_nothing_is_stored(town: Town) -> None:
    field = town.field
    await asyncio.to_thread(town.trust)
    town.apply_example()
    async with field.operator(service_account_tokens=True):
        await field.until_ready(*CLIENTS)
        # Nothing but what is published: no credential, and no private state, for there is nothing to keep.
        assert town.stored() == {*CLIENTS, "keyferry-keys"}
        for name, client in CLIENTS.items():
            await field.until_ready(name, revision=1 + RENEWALS)
            token = field.token(name)
            assert await town.is_active(token)
            claims = jwt.decode(token, options={"verify_signature": False})
            assert (claims["azp"], claims["iss"]) == (client, town.realm.issuer())
            assert field.status(name).get("failureCount", 0) == 0
        person = jwt.decode(field.token("ingest-user"), options={"verify_signature": False})
        assert person["preferred_username"] == "ingest-robot"
        reports = jwt.decode(field.token("ingest-reports"), options={"verify_signature": False})
        machine = jwt.decode(field.token("ingest"), options={"verify_signature": False})
        assert reports["aud"] == town.realm.material.exchange_audience
        assert reports["sub"] == machine["sub"]


async def test_the_condition_says_which_switch_is_off(town: Town) -> None:
    field = town.field
    town.apply_example()
    async with field.operator():
        for name in ("ingest", "ingest-user"):
            assert "serviceAccountTokens.enabled" in await field.until_refused(name, "ProviderNotAllowed")
    assert not [each for each in field.cluster.audit.events(namespace=field.namespace) if each.subresource == "token"]
