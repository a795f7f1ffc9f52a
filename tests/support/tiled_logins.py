"""Tiled's two ways to log people in through a browser, each with its client at the tests' real Keycloak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from tests.support.keycloak_realm import audience_mapper
from tests.support.tiled import Login

if TYPE_CHECKING:
    from tests.support.keycloak import Keycloak, Realm

BROWSER_CLIENT, BROWSER_SECRET = "tiled-browser", "tiled-browser-secret"
UPSTREAM_CLIENT, UPSTREAM_AUDIENCE = "tiled-device", "tiled"
SCOPES = ("read:metadata", "read:data", "write:metadata", "write:data", "create:node", "create", "register", "metrics")
KEY_SCOPES = ("create:apikeys", "revoke:apikeys")


def browser_login(keycloak: Keycloak, realm: Realm) -> Login:
    """Return Tiled's own device login (``OIDCAuthenticator``), as it is used with ORCID: there Tiled runs the flow."""
    client = {
        "clientId": BROWSER_CLIENT,
        "secret": BROWSER_SECRET,
        "enabled": True,
        "protocol": "openid-connect",
        "publicClient": False,
        "standardFlowEnabled": True,
        "redirectUris": ["http://127.0.0.1:*"],
    }
    keycloak.admin.put_client(realm.name, client)
    arguments = {
        "audience": BROWSER_CLIENT,
        "client_id": BROWSER_CLIENT,
        "client_secret": BROWSER_SECRET,
        "well_known_uri": f"{realm.issuer()}/.well-known/openid-configuration",
    }
    return Login("institute", "tiled.authenticators:OIDCAuthenticator", arguments)


def upstream_login(keycloak: Keycloak, realm: Realm) -> Login:
    """Return the login of a Tiled that issues no tokens itself (``ProxiedOIDCAuthenticator``): Keycloak does."""
    client: dict[str, Any] = {
        "clientId": UPSTREAM_CLIENT,
        "enabled": True,
        "protocol": "openid-connect",
        "publicClient": True,
        "standardFlowEnabled": False,
        "directAccessGrantsEnabled": True,  # for the tests' own writing
        "attributes": {"oauth2.device.authorization.grant.enabled": "true"},
        "protocolMappers": [audience_mapper(UPSTREAM_AUDIENCE)],
    }
    keycloak.admin.put_client(realm.name, client)
    arguments = {
        "audience": UPSTREAM_AUDIENCE,
        "client_id": UPSTREAM_CLIENT,
        "device_flow_client_id": UPSTREAM_CLIENT,
        "well_known_uri": f"{realm.issuer()}/.well-known/openid-configuration",
        "scopes_map": {"openid": [*SCOPES, *KEY_SCOPES]},
    }
    return Login("institute", "tiled.authenticators:ProxiedOIDCAuthenticator", arguments, lambda: access_token(realm))


def access_token(realm: Realm) -> str:
    """Return an access token of the person's that a Tiled with ``upstream_login`` takes."""
    person = realm.material.alice
    form = {"grant_type": "password", "client_id": UPSTREAM_CLIENT, "username": person.name}
    answer = httpx.post(realm.endpoint(), data={**form, "password": person.password}, timeout=60).raise_for_status()
    token: str = answer.json()["access_token"]
    return token
