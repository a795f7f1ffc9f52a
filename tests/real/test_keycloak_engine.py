"""The engine against a real Keycloak: the example files of ``examples/keycloak``, run as a person runs them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import httpx
import jwt
import pytest

from keyferry.errors import Reason, RetryClass
from keyferry.question import Account
from keyferry.run.broker import LocalBroker
from tests.real.engine_support import (
    Log,
    Place,
    Proxy,
    documented,
    each_token,
    exemplified,
    key_of,
    proxy_to,
    published,
    run_keyferry,
    until,
    until_revision,
    write,
)
from tests.support.keycloak_realm import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.keycloak import Keycloak, Realm

PLACEHOLDER = "https://keycloak.example.org/realms/keyferry"
CLIENTS = {
    "nightly-ingest": "basic-bot",
    "nightly-report": "post-bot",
    "signed-rs256": "rs256-bot",
    "signed-es256": "es256-bot",
    "signed-eddsa": "eddsa-bot",
    "with-certificate": "mtls-bot",
    "archive": "login-app",
    "alice": "login-app",
    "alice-reports": "exchanger",
    "caller-reports": "exchanger",
    "partner": "bearer-app",
    "without-secret": "federated-bot",
}
"""The identities of the examples, and the clients whose tokens they must be."""
PERSONS = ("archive", "alice", "alice-reports", "partner")
WITH_CERTIFICATE = "with-certificate"
ROTATIONS = 5
WITHOUT_CONSENT = """
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {name: uninvited}
spec:
  providerRef: {name: keycloak}
  client: {id: exchanger, secretsFrom: [{secretKeyRef: {name: exchanger, key: client_secret}}]}
  grant: {type: TokenExchange, tokenExchange: {subject: {identityRef: {name: alice}}}}
"""


@dataclass
class World:
    """A realm seen through the proxy, the examples made to fit it, and what people would keep fresh beside them."""

    keycloak: Keycloak
    realm: Realm
    proxy: Proxy
    place: Place
    http: httpx.AsyncClient
    log: Log

    @property
    def assertion_file(self) -> Path:
        return self.place.base / "partner.jwt"

    @property
    def workload_file(self) -> Path:
        return self.place.base / "workload.jwt"

    async def token(self, client_id: str, secret: str, **form: str) -> dict[str, Any]:
        """Ask for a token without Keyferry."""
        answer = await self.http.post(
            self.realm.endpoint(), data=form, auth=(quote_plus(client_id), quote_plus(secret))
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def is_active(self, token: str, *, https: bool = False) -> bool:
        """Ask the introspection endpoint (RFC 7662) at the address that the token is of."""
        if https:
            found = await asyncio.to_thread(self.keycloak.introspect, token, self.realm.name, https=True)
            return bool(found["active"])
        client = self.realm.material.introspection
        answer = await self.http.post(
            self.realm.endpoint("token/introspect"), data={"token": token}, auth=(client.id, client.secret)
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["active"] is True

    def write_assertions(self) -> None:
        """Write the tokens of other issuers, each of them new."""
        material, issuer = self.realm.material, self.realm.issuer()
        write(self.assertion_file, material.assertion_issuer.sign(self.realm.endpoint()) + "\n")
        write(self.workload_file, material.workload_issuer.sign(issuer))

    async def write_callers_token(self) -> None:
        """Write a token of the realm that somebody else obtained."""
        material = self.realm.material
        caller = await self.token(material.basic.id, material.basic.secret, grant_type="client_credentials")
        write(self.place.secrets / "default" / "caller" / "token", caller["access_token"])

    async def keep_assertions_fresh(self) -> None:
        """Keycloak takes an assertion once, so it is renewed far more often than it is presented."""
        while True:
            await asyncio.sleep(0.5)
            self.write_assertions()

    async def keep_callers_token_fresh(self) -> None:
        while True:
            await asyncio.sleep(1)
            await self.write_callers_token()

    def refreshes(self) -> list[str]:
        """Return the refresh tokens that Keyferry presented, in order."""
        forms = [seen.form() for seen in self.proxy.asked("/token")]
        return [form["refresh_token"] for form in forms if form["grant_type"] == "refresh_token"]

    def obtained(self, grant: str) -> int:
        """Return how often Keyferry made a grant's request."""
        return sum(seen.form()["grant_type"] == grant for seen in self.proxy.asked("/token"))


@asynccontextmanager
async def world_of(keycloak: Keycloak, realm: Realm, base: Path) -> AsyncIterator[World]:
    """Prepare a directory in which ``keyferry run resources`` would work with ``realm``."""
    material = realm.material
    async with proxy_to(keycloak.http_url) as proxy, httpx.AsyncClient(timeout=60) as http:
        seen = replace(realm, http_url=proxy.url)
        tokens = {seen.endpoint(): base / "partner.jwt", seen.issuer(): base / "workload.jwt"}
        world = World(keycloak, seen, proxy, Place(base, tokens), http, Log())
        world.place.add_examples("keycloak", {PLACEHOLDER: seen.issuer()}, mtls={PLACEHOLDER: realm.issuer(https=True)})
        alice = material.alice
        login = {"grant_type": "password", "username": alice.name, "password": alice.password, "scope": "openid email"}
        seed = await world.token(material.login.id, material.login.secret, **login)
        secrets = {
            client.id: {"client_secret": client.secret}
            for client in (material.basic, material.post, material.login, material.exchange, material.bearer)
        }
        secrets |= {
            material.signed[name].id: {"private_key.pem": material.signed[name].key.private_key} for name in ALGORITHMS
        }
        certificate, key = material.mtls.certificate.write(base, "mtls")
        secrets[material.mtls.id] = {"tls.crt": certificate.read_text(), "tls.key": key.read_text()}
        secrets["archive-seed"] = {"refresh_token": seed["refresh_token"]}
        secrets["alice"] = {"username": alice.name, "password": alice.password}
        world.place.add_secrets(secrets)
        authority, _ = material.authority.write(base, "authority")
        world.place.add_secrets({"keycloak-ca": {"ca.crt": authority.read_text()}}, kind="ConfigMap")
        world.write_assertions()
        await world.write_callers_token()
        yield world


async def check_token(world: World, name: str, token: dict[str, Any]) -> bool:
    """Check one published token; return whether Keycloak could still say that it is live."""
    access = token["access_token"]
    claims = jwt.decode(access, options={"verify_signature": False})
    assert claims["azp"] == CLIENTS[name]
    if name in PERSONS:
        assert claims["sub"] == world.realm.subject_of(world.realm.material.alice)
    if name.endswith("-reports"):
        assert claims["aud"] == world.realm.material.exchange_audience
    active = await world.is_active(access, https=name == WITH_CERTIFICATE)
    assert active or time.time() >= claims["exp"] - 1, f"{name}: revision {token['revision']} is not active"
    return active


async def follow(world: World, broker: LocalBroker, name: str) -> int:
    """See an identity through its rotations; return how many of its tokens were seen live."""
    access: list[str] = []
    active = 0
    async for token in each_token(broker, name, ROTATIONS + 1):
        active += await check_token(world, name, token)
        access.append(token["access_token"])
    assert len(set(access)) == len(access), f"{name}: a token was published twice"
    return active


@pytest.mark.keycloak
@pytest.mark.slow
async def test_every_way_to_a_token_goes_on_over_many_lifetimes(
    keycloak: Keycloak, rotating_realm: Realm, tmp_path: Path
) -> None:
    async with world_of(keycloak, rotating_realm, tmp_path) as world:
        fresh = [
            asyncio.create_task(world.keep_assertions_fresh()),
            asyncio.create_task(world.keep_callers_token_fresh()),
        ]
        async with LocalBroker(world.place.settings) as broker:
            broker.reporter.listeners.append(world.log)
            await broker.start()
            assert not broker.problems
            assert set(CLIENTS) == {key.name for key in broker.engine.roster.entries}
            active = await asyncio.gather(*(follow(world, broker, name) for name in CLIENTS))
            archive = broker.engine.status(key_of("archive"))
        for task in fresh:
            task.cancel()
        await asyncio.gather(*fresh, return_exceptions=True)

    # A token that had expired before Keycloak was asked of it proves nothing; most of them must have been live.
    assert min(active) > ROTATIONS / 2, dict(zip(CLIENTS, active, strict=True))
    alice = rotating_realm.material.alice
    assert archive.authorized_as == Account(rotating_realm.subject_of(alice), alice.email)
    assert archive.reauthorize_by_time is None, "the session's idle end slides on, and its maximum is not near"
    presented = world.refreshes()
    assert len(presented) >= 2 * ROTATIONS
    assert len(set(presented)) == len(presented), "a refresh token was presented twice"
    assert world.obtained("password") == 1, "a session is kept, not begun anew"
    assert world.obtained("refresh_token") == len(presented)
    assert not world.log.troubles()


@pytest.mark.keycloak
@pytest.mark.slow
async def test_files_hold_live_tokens_and_what_is_deleted_is_revoked(
    keycloak: Keycloak, keycloak_realm: Realm, tmp_path: Path
) -> None:
    async with world_of(keycloak, keycloak_realm, tmp_path) as world:
        exchange = world.place.resources / "token-exchange.yaml"
        write(exchange, exchange.read_text() + WITHOUT_CONSENT)
        async with LocalBroker(world.place.settings) as broker:
            broker.reporter.listeners.append(world.log)
            await broker.start()
            await asyncio.gather(*(until_revision(broker, name, 1) for name in CLIENTS))
            tokens = {name: await published_token(broker, name) for name in CLIENTS}
            for name, token in tokens.items():
                assert await check_token(world, name, token), name
            check_formats(broker.directory(key_of("nightly-ingest")), tokens["nightly-ingest"]["access_token"])
            await until(
                lambda: broker.engine.status(key_of("uninvited")).reason is Reason.SECRET_NOT_LABELLED,
                "a chain without consent is refused",
            )
            assert "consumers" in broker.engine.status(key_of("uninvited")).message

            refresh_tokens = newest_refresh_tokens(world)
            assert len(refresh_tokens) == 2
            assert all([await world.is_active(token) for token in refresh_tokens])
            for name in ("without-secret", "partner"):
                await check_used_up_assertion(broker, name)
                assert (await published_token(broker, name)) == tokens[name]
            world.write_assertions()
            world.place.drop(*CLIENTS, "uninvited")
            await asyncio.gather(
                *(until(partial(world.log.of, name, "revoked"), f"{name} is revoked") for name in CLIENTS)
            )

            for name, token in tokens.items():
                https = name == WITH_CERTIFICATE
                assert not await world.is_active(token["access_token"], https=https), f"{name} is still active"
                assert not broker.directory(key_of(name)).exists()
            assert not any([await world.is_active(token) for token in refresh_tokens])
        assert not [event for event in world.log.events if event.event == "revocation_failed"]


async def check_used_up_assertion(broker: LocalBroker, name: str) -> None:
    """A file whose token Keycloak has seen before is no reason to stop for good: another token will come."""
    assert broker.engine.renew(key_of(name)) == 0
    await until(lambda: broker.engine.status(key_of(name)).failure_count, f"{name}: the same assertion is refused")
    refused = broker.engine.status(key_of(name))
    assert refused.retry is RetryClass.SUSPICIOUS, refused
    assert refused.next_attempt_time is not None


@pytest.mark.keycloak
@pytest.mark.slow
async def test_the_command(keycloak: Keycloak, keycloak_realm: Realm, tmp_path: Path) -> None:
    async with world_of(keycloak, keycloak_realm, tmp_path) as world:
        options = world.place.options
        told = await run_keyferry("run", world.place.resources, "--once", *options)
        events = [json.loads(line) for line in told.splitlines()]
        assert {event["identity"] for event in events if event["event"] == "obtained"} == set(CLIENTS)
        for name in ("nightly-ingest", "with-certificate"):
            token = await run_keyferry("token", name, "--resources", world.place.resources, *options)
            assert await world.is_active(token.strip(), https=name == WITH_CERTIFICATE)
            assert token.strip() == (world.place.settings.out / "default" / name / "token").read_text()
        assert world.obtained("password") == 1


def test_the_page_shows_what_is_tested() -> None:
    shown = documented("keycloak.md")
    tested = exemplified("keycloak") + exemplified("kubernetes")  # the latter by tests/operator/live
    assert len(shown) == 4
    assert all(resource in tested for resource in shown)


async def published_token(broker: LocalBroker, name: str) -> dict[str, Any]:
    """Return ``token.json`` once it is there."""
    await until((broker.directory(key_of(name)) / "token.json").exists, f"{name} is published")
    return published(broker, name)


def check_formats(directory: Path, access: str) -> None:
    """The token, the env file and the template say the same as token.json."""
    assert (directory / "token").read_text() == access
    assert (directory / "token.env").read_text() == f"BEARER_TOKEN='{access}'\n"
    assert re.fullmatch(
        rf"\[auth\]\ntoken = {re.escape(access)}\nexpires = \S+Z\n", (directory / "ingest.ini").read_text()
    )
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, f"{path.name} is readable for others"


def newest_refresh_tokens(world: World) -> list[str]:
    """Return the refresh token of each session that Keyferry keeps (here: as it was first answered)."""
    answers = [seen.said() for seen in world.proxy.asked("/token") if seen.status == 200]
    return [answer["refresh_token"] for answer in answers if "refresh_token" in answer]
