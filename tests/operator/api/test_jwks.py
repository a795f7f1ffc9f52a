"""The cluster's keys: rotated, withdrawn, away, and asked for by those who make keys up."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jwt
import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from keyferry_operator.api.jwks import ClusterKeys, KeysUnavailable, KeyTimes
from keyferry_operator.client import KubeClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ISSUER = "https://kubernetes.default.svc"
QUICK = KeyTimes(life=0.0, pause=0.0, unavailable_pause=0.0)


@dataclass
class ApiServer:
    """What publishes keys, and signs with them."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    reads: int = 0

    def add(self, kid: str, *, curve: bool = False) -> None:
        new = ec.generate_private_key(ec.SECP256R1()) if curve else rsa.generate_private_key(65537, 2048)
        self.keys[kid] = new

    def token(self, kid: str, key: Any = None, algorithm: str = "", **changes: Any) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": ["keyferry"], "sub": "x", "iat": now, "exp": now + 600, **changes}
        signing = key if key is not None else self.keys[kid]
        name = algorithm or ("ES256" if isinstance(signing, ec.EllipticCurvePrivateKey) else "RS256")
        return jwt.encode(claims, signing, algorithm=name, headers={"kid": kid})

    async def answer(self, request: web.Request) -> web.Response:
        if self.status != 200:
            return web.Response(status=self.status)
        if request.path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": ISSUER, "jwks_uri": "https://elsewhere.example.org/jwks"})
        if "application/jwk-set+json" not in request.headers["Accept"]:
            return web.Response(status=406)  # as the real one does
        self.reads += 1
        published = []
        for kid, key in self.keys.items():
            algorithm = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
            name = "ES256" if algorithm is ECAlgorithm else "RS256"
            text = json.loads(algorithm.to_jwk(key.public_key()))
            published.append({**text, "kid": kid, "use": "sig", "alg": name})
        return web.json_response({"keys": published}, content_type="application/jwk-set+json")


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    api = ApiServer()
    api.add("first")
    application = web.Application()
    application.router.add_get("/{path:.*}", api.answer)
    async with TestServer(application) as running:
        api.url = str(running.make_url("/")).rstrip("/")
        yield api


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[KubeClient]:
    async with KubeClient(kopf.ConnectionInfo(server=server.url, token="operator")) as client:
        yield client


async def refused(keys: ClusterKeys, token: str) -> None:
    with pytest.raises(jwt.PyJWTError):
        await keys.claims(token, "keyferry", 10.0)


async def test_a_rotated_key_is_found_and_one_read_serves_all(server: ApiServer, client: KubeClient) -> None:
    keys = ClusterKeys(client, KeyTimes(pause=0.0))
    assert (await keys.claims(server.token("first"), "keyferry", 10.0))["sub"] == "x"
    server.add("second", curve=True)
    tokens = [server.token("second", sub=str(number)) for number in range(50)]
    found = await asyncio.gather(*(keys.claims(token, "keyferry", 10.0) for token in tokens))
    assert [claims["sub"] for claims in found] == [str(number) for number in range(50)]
    await keys.claims(server.token("first"), "keyferry", 10.0)
    assert server.reads == 2


async def test_keys_that_somebody_makes_up_do_not_have_us_read_all_day(server: ApiServer, client: KubeClient) -> None:
    keys = ClusterKeys(client)
    stranger = rsa.generate_private_key(65537, 2048)
    await keys.claims(server.token("first"), "keyferry", 10.0)
    for number in range(20):
        await refused(keys, server.token(f"made-up-{number}", stranger))
    assert server.reads == 1


async def test_a_withdrawn_key_is_not_believed_for_long(server: ApiServer, client: KubeClient) -> None:
    keys = ClusterKeys(client, QUICK)
    token = server.token("first")
    await keys.claims(token, "keyferry", 10.0)
    server.add("second")
    del server.keys["first"]
    with pytest.raises(jwt.PyJWTError):  # noqa: PT012 - it is read again behind the scenes
        async with asyncio.timeout(60):
            while True:
                await keys.claims(token, "keyferry", 10.0)
                await asyncio.sleep(0.01)


async def test_an_outage_leaves_what_is_known(server: ApiServer, client: KubeClient) -> None:
    keys = ClusterKeys(client, QUICK)
    await keys.claims(server.token("first"), "keyferry", 10.0)
    server.status = 503
    await keys.claims(server.token("first"), "keyferry", 10.0)
    await refused(keys, server.token("unknown", rsa.generate_private_key(65537, 2048)))
    server.status = 200
    server.add("second")
    await keys.claims(server.token("second"), "keyferry", 10.0)


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_where_there_are_none_it_is_said(server: ApiServer, client: KubeClient, status: int) -> None:
    server.status = status
    with pytest.raises(KeysUnavailable):
        await ClusterKeys(client).claims(server.token("first"), "keyferry", 10.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://kubernetes.default.svc"]},
        {"aud": []},
        {"iss": "https://another.example.org"},
        {"exp": int(time.time()) - 60},
        {"nbf": int(time.time()) + 86400},
        {"exp": None},
        {"sub": None},
    ],
)
async def test_a_token_that_is_for_others_or_out_of_time(
    server: ApiServer, client: KubeClient, changes: dict[str, Any]
) -> None:
    claims = {name: value for name, value in changes.items() if value is not None}
    token = server.token("first", **claims)
    if len(claims) < len(changes):
        body = jwt.decode(token, options={"verify_signature": False})
        gone = {name: value for name, value in body.items() if name not in changes}
        token = jwt.encode(gone, server.keys["first"], algorithm="RS256", headers={"kid": "first"})
    await refused(ClusterKeys(client), token)


async def test_a_token_that_is_signed_in_another_way(server: ApiServer, client: KubeClient) -> None:
    keys = ClusterKeys(client)
    stranger = rsa.generate_private_key(65537, 2048)
    await refused(keys, server.token("first", stranger))
    await refused(keys, server.token("first", "public" * 8, algorithm="HS256"))
    await refused(keys, server.token("first", "", algorithm="none"))
    await refused(keys, server.token("first", ec.generate_private_key(ec.SECP256R1())))
    for text in ("", "a", "a.b.c", "." * 5, "e30.e30.e30"):
        await refused(keys, text)
