from __future__ import annotations

import httpx
import pytest

from keyferry.demo.clients import AuthMethod, Grant
from keyferry.demo.issuer import DemoAccount, DemoIssuer, start_demo_issuer


async def ask(client: httpx.AsyncClient, account: DemoAccount, path: str, **parameters: str) -> httpx.Response:
    secret = account.client_secret.reveal()
    if account.authentication is AuthMethod.BASIC:
        return await client.post(path, data=parameters, auth=(account.client_id, secret))
    return await client.post(path, data={**parameters, "client_id": account.client_id, "client_secret": secret})


def http(issuer: DemoIssuer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=issuer.url, trust_env=False, timeout=60)


async def test_each_account_gets_its_token_and_the_grants_differ() -> None:
    issuer = await start_demo_issuer(access_lifetime=3)
    try:
        by_grant = {account.grant: account for account in issuer.accounts}
        assert set(by_grant) == {Grant.CLIENT_CREDENTIALS, Grant.REFRESH_TOKEN, Grant.PASSWORD, Grant.DEVICE_CODE}
        async with http(issuer) as client:
            answer = await ask(client, by_grant[Grant.CLIENT_CREDENTIALS], "/token", grant_type="client_credentials")
            assert (answer.status_code, answer.json()["expires_in"]) == (200, 3)
            assert answer.headers["cache-control"] == "no-store"

            person = by_grant[Grant.PASSWORD]
            assert person.password is not None
            answer = await ask(
                client,
                person,
                "/token",
                grant_type="password",
                username=person.username or "",
                password=person.password.reveal(),
            )
            assert answer.json()["refresh_token"]

            seeded = by_grant[Grant.REFRESH_TOKEN]
            assert seeded.refresh_token is not None
            seed = seeded.refresh_token.reveal()
            answer = await ask(client, seeded, "/token", grant_type="refresh_token", refresh_token=seed)
            successor = answer.json()["refresh_token"]
            assert successor != seed
            for spent in (seed, successor):
                answer = await ask(client, seeded, "/token", grant_type="refresh_token", refresh_token=spent)
                assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    finally:
        await issuer.close()


async def test_metadata_is_found_at_both_places_and_names_the_issuer() -> None:
    issuer = await start_demo_issuer()
    try:
        async with http(issuer) as client:
            metadata = (await client.get("/.well-known/openid-configuration")).json()
            assert (await client.get("/.well-known/oauth-authorization-server")).json() == metadata
            assert metadata["issuer"] == issuer.issuer == issuer.url
            assert metadata["token_endpoint"] == f"{issuer.url}/token"
            keys = (await client.get(metadata["jwks_uri"])).json()["keys"]
            assert keys[0]["kty"] == "EC"
            assert "d" not in keys[0]
    finally:
        await issuer.close()


async def test_revocation_and_introspection_work_over_http() -> None:
    issuer = await start_demo_issuer()
    try:
        account = issuer.accounts[0]
        async with http(issuer) as client:
            answer = await ask(client, account, "/token", grant_type="client_credentials")
            token = answer.json()["access_token"]
            assert (await ask(client, account, "/introspect", token=token)).json()["active"] is True
            revoked = await ask(client, account, "/revoke", token=token)
            assert (revoked.status_code, revoked.content) == (200, b"")
            assert (await ask(client, account, "/introspect", token=token)).json() == {"active": False}
    finally:
        await issuer.close()


async def test_refusals_are_well_formed() -> None:
    issuer = await start_demo_issuer()
    try:
        async with http(issuer) as client:
            answer = await client.post("/token", data={"grant_type": "client_credentials"}, auth=("nobody", "x"))
            assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
            assert answer.headers["www-authenticate"].startswith("Basic")
            assert (await client.get("/token")).status_code == 405
            assert (await client.get("/nowhere")).status_code == 404
    finally:
        await issuer.close()


async def test_it_listens_on_the_loopback_until_closed_and_its_secrets_are_not_printed() -> None:
    issuer = await start_demo_issuer()
    assert issuer.url.startswith("http://127.0.0.1:")
    printed = repr(issuer.accounts)
    secrets = [account.client_secret.reveal() for account in issuer.accounts]
    assert not [secret for secret in secrets if secret in printed]
    await issuer.close()
    await issuer.close()
    async with http(issuer) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/jwks")


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    issuer = await start_demo_issuer()
    try:
        port = int(issuer.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await start_demo_issuer(port=port)
    finally:
        await issuer.close()
