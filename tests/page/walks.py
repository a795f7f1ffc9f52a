"""What a walk on Keycloak's own pages needs: a realm with people and clients, and what somebody does there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.support.browser import WAIT
from tests.support.keycloak_realm import Person

if TYPE_CHECKING:
    from playwright.async_api import Page

    from tests.support.keycloak import Keycloak, Realm

BOB: Final = Person("bob", "bobs-secret", "bob@example.test")
SECRET: Final = "approval-client-secret"
LOGIN, CONSENT, HURRIED = "approval-login", "approval-consent", "approval-hurried"
"""Clients: an ordinary one, one at which people must consent, and one whose device codes live for seconds."""
HURRY: Final = 60
"""Seconds."""


@dataclass(frozen=True)
class Houses:
    """Two realms: one where people are known, and one that forwards whoever wants to log in to the first."""

    realm: Realm
    forwarding: Realm
    alice: Person
    bob: Person = field(default=BOB)


def build(keycloak: Keycloak, name: str, callbacks: list[str]) -> Houses:
    """Make the realms, the first of that ``name``; logins may come back to ``callbacks``, which may end in ``*``."""
    admin = keycloak.admin
    realm, forwarding = keycloak.provision_realm(name), keycloak.provision_realm(f"{name}-forwarding")
    alice = keycloak.material.alice
    admin.put_user(
        name,
        {
            "username": BOB.name,
            "enabled": True,
            "email": BOB.email,
            "emailVerified": True,
            "firstName": "Bob",
            "lastName": "Tester",
            "credentials": [{"type": "password", "value": BOB.password, "temporary": False}],
        },
    )
    broker = f"{forwarding.issuer()}/broker/house/endpoint"
    for each in (realm, forwarding):
        admin.put_client(each.name, _client(LOGIN, callbacks))
    admin.put_client(name, _client(CONSENT, callbacks, consentRequired=True))
    admin.put_client(name, _client(HURRIED, callbacks, lifetime=HURRY))
    admin.put_client(name, _client("house", [broker]))
    # Nobody is known there but through the first.
    admin.request("DELETE", f"{forwarding.name}/users/{forwarding.subject_of(alice)}")
    _forward(keycloak, realm, forwarding.name)
    return Houses(realm, forwarding, alice)


def _client(client_id: str, callbacks: list[str], *, lifetime: int | None = None, **more: Any) -> dict[str, Any]:
    attributes = {"oauth2.device.authorization.grant.enabled": "true"}
    if lifetime is not None:
        attributes["oauth2.device.code.lifespan"] = str(lifetime)
    return {
        "clientId": client_id,
        "enabled": True,
        "protocol": "openid-connect",
        "publicClient": False,
        "secret": SECRET,
        "standardFlowEnabled": True,
        "redirectUris": callbacks,
        "attributes": attributes,
        **more,
    }


def _forward(keycloak: Keycloak, realm: Realm, name: str) -> None:
    """Have the realm ``name`` send everybody on to ``realm``, which browsers know by another name, without asking."""
    elsewhere = realm.issuer().replace("127.0.0.1", "localhost")
    endpoints = f"{elsewhere}/protocol/openid-connect"
    keycloak.admin.put_identity_provider(
        name,
        {
            "alias": "house",
            "providerId": "oidc",
            "enabled": True,
            "trustEmail": True,
            "config": {
                "issuer": elsewhere,
                "authorizationUrl": f"{endpoints}/auth",
                "tokenUrl": f"{endpoints}/token",
                "userInfoUrl": f"{endpoints}/userinfo",
                "jwksUrl": f"{endpoints}/certs",
                "useJwksUrl": "true",
                "validateSignature": "true",
                "clientId": "house",
                "clientSecret": SECRET,
                "clientAuthMethod": "client_secret_post",
                "defaultScope": "openid profile email",
                "syncMode": "FORCE",
            },
        },
    )
    steps = keycloak.admin.request("GET", f"{name}/authentication/flows/browser/executions")
    redirector = next(step for step in steps if step.get("providerId") == "identity-provider-redirector")
    keycloak.admin.request(
        "POST",
        f"{name}/authentication/executions/{redirector['id']}/config",
        {"alias": "house", "config": {"defaultProvider": "house"}},
    )


async def log_in(page: Page, person: Person) -> None:
    """Give name and password on Keycloak's own page."""
    await page.locator("#username").fill(person.name, timeout=WAIT)
    await page.locator("#password").fill(person.password, timeout=WAIT)
    await page.locator("#kc-login").click(timeout=WAIT)


async def consent(page: Page, *, yes: bool = True) -> None:
    """Say yes or no where Keycloak asks whether the client may."""
    await page.locator("[name=accept]" if yes else "[name=cancel]").click(timeout=WAIT)
