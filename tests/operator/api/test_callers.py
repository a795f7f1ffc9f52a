"""Whose a token is by the API server's own word (TokenReview), where the cluster's keys cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request

from keyferry_operator.api.answers import Denied
from keyferry_operator.api.callers import Callers
from keyferry_operator.api.jwks import ClusterKeys
from keyferry_operator.api.pods import LivePods
from keyferry_operator.client import KubeClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

USER: dict[str, Any] = {
    "username": "system:serviceaccount:batch:ingest",
    "uid": "account-uid",
    "extra": {
        "authentication.kubernetes.io/pod-name": ["ingest-1"],
        "authentication.kubernetes.io/pod-uid": ["pod-uid"],
    },
}
GOOD: dict[str, Any] = {"authenticated": True, "audiences": ["keyferry"], "user": USER}
CLAIMS = {
    "aud": ["keyferry"],
    "sub": USER["username"],
    "kubernetes.io": {
        "namespace": "batch",
        "pod": {"name": "ingest-1", "uid": "pod-uid"},
        "serviceaccount": {"name": "ingest", "uid": "account-uid"},
    },
}
TOKEN = jwt.encode(CLAIMS, "x" * 64, algorithm="HS256")
"""What an issuer that the API server trusts as well can write, too: only the API server knows whose it is."""


class Cluster:
    """An API server that publishes no keys; the pod and its account are there."""

    def __init__(self) -> None:
        self.word: dict[str, Any] = GOOD
        self.asked: list[Any] = []

    async def answer(self, request: web.Request) -> web.Response:
        if request.path.endswith("/tokenreviews"):
            self.asked.append((await request.json())["spec"])
            return web.json_response({"status": self.word})
        if request.path.endswith("/pods/ingest-1"):
            return web.json_response({"metadata": {"uid": "pod-uid"}, "spec": {"serviceAccountName": "ingest"}})
        if request.path.endswith("/serviceaccounts/ingest"):
            return web.json_response({"metadata": {"uid": "account-uid"}})
        return web.Response(status=404)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
async def callers(cluster: Cluster) -> AsyncIterator[Callers]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", cluster.answer)
    async with TestServer(application) as server:
        login = kopf.ConnectionInfo(server=str(server.make_url("/")).rstrip("/"), token="operator")
        async with KubeClient(login) as client:
            yield Callers(client, ClusterKeys(client), LivePods(client))


async def status(callers: Callers) -> int:
    request = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        await callers.identify(request)
    except Denied as denied:
        return denied.problem.status
    return 200


async def test_a_token_that_the_api_server_confirms_is_asked_about_once(callers: Callers, cluster: Cluster) -> None:
    assert [await status(callers), await status(callers)] == [200, 200]
    assert cluster.asked == [{"token": TOKEN, "audiences": ["keyferry"]}]


@pytest.mark.parametrize(
    "word",
    [
        {},
        {**GOOD, "authenticated": False},
        {**GOOD, "audiences": ["https://kubernetes.default.svc"]},
        {**GOOD, "audiences": None},
        {**GOOD, "user": {**USER, "username": "mallory"}},
        {**GOOD, "user": {**USER, "uid": "another"}},
        {**GOOD, "user": {**USER, "extra": {}}},
        {**GOOD, "user": {**USER, "extra": {**USER["extra"], "authentication.kubernetes.io/pod-uid": ["another"]}}},
        {**GOOD, "user": {**USER, "extra": {**USER["extra"], "authentication.kubernetes.io/pod-name": ["another"]}}},
    ],
)
async def test_what_a_token_says_of_itself_must_be_the_api_servers_word_too(
    callers: Callers, cluster: Cluster, word: dict[str, Any]
) -> None:
    cluster.word = word
    assert await status(callers) == 401
