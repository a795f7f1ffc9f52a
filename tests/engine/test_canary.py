"""Secrets are in no log, exception, metric, table, status or stray file, whatever goes wrong."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.signing import TokenFormat, TrustedIssuer
from keyferry.demo.state import User
from keyferry.run.metrics import MetricsServer
from tests.engine.surfaces import Logs, Raised, files, leaks, representations, secrets_of, shown
from tests.engine.world import PASSWORD_GRANT, REFRESH, client_of, exchange_of, identity, reference, secret, tree, until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from keyferry.run.broker import LocalBroker
    from tests.engine.world import World

CANARY = "c4nary"
CLIENT_SECRET = f"{CANARY}-client/secret+of&the=bot"
POSTED_SECRET = f"{CANARY}-posted:secret%20"
PERSON = f"{CANARY}-password \"with' marks"
WRONG = f"{CANARY}-wrong-password"
CONTROL = f"{CANARY}-two\nlines-of-secret"
FAULTS = [
    Fault(FaultKind.RESET_BEFORE),
    Fault(FaultKind.RESET_AFTER),
    Fault(FaultKind.CLOSE_AFTER),
    Fault(FaultKind.STATUS, status=503),
    Fault(FaultKind.STATUS, status=429, retry_after="1"),
    Fault(FaultKind.HTML, status=403, body=f"<p>{CLIENT_SECRET} {PERSON}</p>"),
    Fault(FaultKind.ERROR, status=400, error="invalid_scope", description="no such scope"),
    Fault(FaultKind.BODY, status=200, body=f'{{"access_token": "{CANARY}-cut off'),
    Fault(FaultKind.BODY, status=200, body=json.dumps({"access_token": f"{CANARY}\nline", "refresh_token": 7})),
    Fault(FaultKind.BODY, status=500, body=f"Traceback: {POSTED_SECRET} {CLIENT_SECRET}"),
    Fault(FaultKind.REDIRECT, location=f"/?leak={CANARY}-client"),
    Fault(FaultKind.TRUNCATED),
    Fault(FaultKind.TRUNCATED_RESET),
    Fault(FaultKind.MALFORMED),
    Fault(FaultKind.HUGE, size=2 << 20),
    Fault(FaultKind.SET_FIELD, name="token_type", value="DPoP"),
    Fault(FaultKind.SET_FIELD, name="expires_in", value=0),
    Fault(FaultKind.DROP_FIELD, name="access_token"),
    Fault(FaultKind.REPLACE, value=[f"{CANARY}-listed"]),
]


def populate(world: World) -> set[str]:
    """Declare one identity of every grant and client authentication; return the secrets they begin with."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    service = world.issuer.service
    service.trust(TrustedIssuer("https://else.example.org", (public,)))
    service.add_user(User("ada", PERSON))
    service.settings.token_format = TokenFormat.ES256
    everything: dict[str, Any] = {"grants": tuple(Grant), "scopes": ("read",)}
    world.issuer.clients.add(Client("bot", secrets=(CLIENT_SECRET,), **everything))
    world.issuer.clients.add(Client("posted", secrets=(POSTED_SECRET,), methods=(AuthMethod.POST,), **everything))
    world.issuer.clients.add(
        Client("signed", public_keys=(public,), methods=(AuthMethod.PRIVATE_KEY_JWT,), token_format=TokenFormat.OPAQUE)
    )
    now = int(world.clock.now())
    assertion = jwt.encode(
        {"iss": "https://else.example.org", "sub": "ada", "aud": world.issuer.issuer, "iat": now, "exp": now + 100_000},
        key,
        algorithm="ES256",
    )
    seed = world.issuer.seed_refresh_token("bot", "ada")
    world.write("provider.yaml", world.provider(limits=LIMITS), secret("bot", secret=CLIENT_SECRET))
    posted = client_of("posted", authentication="ClientSecretPost")
    signed = {
        "id": "signed",
        "authentication": "PrivateKeyJwt",
        "algorithm": "ES256",
        "privateKeyFrom": reference("signed", "key"),
    }
    world.write(
        "identities.yaml",
        identity("plain", consumers=[{"identityName": "link"}]),
        identity("posted", client=posted),
        identity("signed", client=signed),
        identity("person", grant=PASSWORD_GRANT),
        identity("posted-person", grant=PASSWORD_GRANT, client=posted),
        identity("seeded", grant=REFRESH),
        identity("link", grant=exchange_of("plain")),
        identity("bearer", grant={"type": "JwtBearer", "jwtBearer": {"assertion": reference("bearer", "jwt")}}),
    )
    world.write("seed.yaml", secret("seed", token=seed))
    world.write(
        "secrets.yaml",
        secret("posted", secret=POSTED_SECRET),
        secret("signed", key=private),
        secret("person", name="ada", password=PERSON),
        secret("bearer", jwt=assertion),
    )
    world.write(
        "troubled.yaml",
        identity(
            "refused",
            grant={
                "type": "Password",
                "password": {
                    "usernameFrom": reference("wrong", "name"),
                    "passwordFrom": reference("wrong", "password"),
                },
            },
        ),
        identity("torn", client=client_of("torn")),
        secret("wrong", name="ada", password=WRONG),
        secret("torn", secret=CONTROL),
    )
    body = "".join(private.splitlines()[1:-1])
    return {CLIENT_SECRET, POSTED_SECRET, PERSON, WRONG, CONTROL, seed, assertion, body[:40], body[-40:]}


LIMITS = {"timeout": "5s", "requestsPerSecond": 1000, "burst": 1000}
NAMES = ("plain", "posted", "signed", "person", "posted-person", "seeded", "link", "bearer")


def echoes(world: World, name: str) -> list[Fault]:
    """Return errors that repeat what the request held, as careless servers do: to that kind of request only."""
    client, grant, held = {
        "plain": ("bot", Grant.CLIENT_CREDENTIALS, [CLIENT_SECRET]),
        "posted": ("posted", Grant.CLIENT_CREDENTIALS, [POSTED_SECRET]),
        "person": ("bot", Grant.PASSWORD, [PERSON, CLIENT_SECRET]),
        "posted-person": ("posted", Grant.PASSWORD, [PERSON, POSTED_SECRET]),
        "link": ("bot", Grant.TOKEN_EXCHANGE, [world.token("plain"), CLIENT_SECRET]),
    }.get(name, ("", Grant.CLIENT_CREDENTIALS, []))
    errors = [(secret_value, "") for secret_value in held]
    errors += [
        (error, f"what is {text}?")
        for secret_value in held
        for text in (secret_value, quote_plus(secret_value))
        for error in ("invalid_request", "invalid_client", "odd_error", "server_error")
    ]
    return [
        Fault(FaultKind.ERROR, client=client, grant=grant, status=400, error=error, description=description)
        for error, description in errors
    ]


def over(world: World, broker: LocalBroker, name: str, told: int) -> bool:
    """Tell whether the renewal that was asked for has come to an end."""
    return len(world.told.statuses) > told and not broker.engine.queue_depth() and not world.busy(name)


async def suffer(world: World, broker: LocalBroker) -> None:
    """Let every fault befall every identity."""
    stalls = [(Fault(FaultKind.STALL_AFTER), name) for name in ("posted-person", "seeded")]
    careless = [(fault, name) for name in NAMES for fault in echoes(world, name)]
    for fault, name in [*stalls, *itertools.product(FAULTS, NAMES), *careless]:
        for lane in broker.engine.lanes().values():
            lane.succeeded()
        world.issuer.faults.clear()
        world.issuer.faults.add(fault)
        if name == "seeded":
            # Most faults end its session, or leave it in doubt.
            world.write("seed.yaml", secret("seed", token=world.issuer.seed_refresh_token("bot", "ada")))
            await broker._reload(changed=True)
        told = len(world.told.statuses)
        world.renew(name)
        await until(functools.partial(over, world, broker, name, told))
    world.issuer.faults.clear()


async def scraped(server: MetricsServer) -> str:
    def get() -> str:
        with urllib.request.urlopen(server.url, timeout=30) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(get)


@pytest.mark.slow
async def test_no_secret_is_found_anywhere_it_does_not_belong(world: World) -> None:
    secrets = populate(world)
    asyncio.get_running_loop().set_debug(True)
    texts: list[str] = []
    with Logs() as logs, Raised() as raised:
        async with world.broker() as broker:
            metrics = MetricsServer(broker.engine, "127.0.0.1:0", clock=world.clock)
            broker.reporter.listeners.append(metrics)
            await metrics.start()
            logging.getLogger("keyferry.engine.core").debug("a probe")
            await world.fresh(*NAMES)
            await until(lambda: world.status("refused").stalled() and world.status("torn").stalled())
            await suffer(world, broker)
            outside = tree(world.out)
            (world.resources / "broken.yaml").write_text(f"kind: Secret\nstringData: {{a: {CANARY}-torn-file, b: [")
            await until(lambda: broker.problems)
            (world.resources / "broken.yaml").unlink()
            (world.resources / "identities.yaml").unlink()
            await until(lambda: len([word for word in world.told.words() if word == "removed"]) >= 3)
            texts += [await scraped(metrics), *shown(world), *representations(broker)]
            await metrics.close()
            secrets |= secrets_of(world.issuer)
    texts += logs.lines
    texts += raised.texts
    texts += files(world.state, without=("records", "gone", "escrow"))
    assert any("a probe" in line for line in logs.lines), "the logs were listened to"
    assert any("Refused" in text for text in raised.texts)
    assert any("Ambiguous" in text for text in raised.texts)
    assert len(secrets) > 20
    assert not leaks(iter(texts), secrets | {CANARY})

    # Token files hold access tokens, and nothing that begets them.
    access = {token.value for token in world.issuer.issued}
    published = [data.decode() for data in outside.values()]
    assert not leaks(iter(published), secrets - access)
    records = [data.decode() for name, data in outside.items() if name.endswith(".keyferry.json")]
    assert not leaks(iter(records), secrets)


async def test_the_search_finds_what_it_looks_for() -> None:
    """A search that never finds anything would pass as well."""
    for text in (
        CLIENT_SECRET,
        "Basic Ym90OmM0bmFyeS1jbGllbnQlMkZzZWNyZXQlMkJvZiUyNnRoZSUzRGJvdA==",
        "body=c4nary-client%2Fsecret%2Bof%26the%3Dbot&x=1",
        f"...{CLIENT_SECRET[-14:]}",
    ):
        assert leaks(iter(["innocent", text]), {CLIENT_SECRET}) == {text}
    assert not leaks(iter(["innocent", "bot", "***"]), {CLIENT_SECRET})
