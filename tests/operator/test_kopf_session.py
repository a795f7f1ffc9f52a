"""kopf's first list is answered by where ours ended; all else goes to the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from keyferry_operator.kopf_session import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "/apis/keyferry.dev/v1alpha1/serviceidentities"
THERE: dict[str, Any] = {"metadata": {"resourceVersion": "9"}, "items": [{}]}


class Server(TestServer):
    def __init__(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.answer)
        super().__init__(application)
        self.asked: list[tuple[str, str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path_qs, request.headers.get("Authorization", "")))
        return web.json_response(THERE)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    started = Server()
    async with started:
        yield started


async def ask(session: kopf.AiohttpSession, method: str, path: str) -> Any:
    url = session.server.rstrip("/") + path  # as kopf makes it
    answer = await session.aiohttp_session.request(method=method, url=url, json=None, headers=None)
    async with answer:
        assert answer.status == 200
        return await answer.json()


@pytest.mark.parametrize("below", ["", "/k8s/clusters/c-1/"])
async def test_the_first_list_of_each_collection_has_nothing_new(server: Server, below: str) -> None:
    info = kopf.ConnectionInfo(server=str(server.make_url(below)), token="secret")
    prefix = below.rstrip("/")
    session = connect(info, {PATH: "7"})
    try:
        assert await ask(session, "get", f"{PATH}?watch=true&resourceVersion=7") == THERE
        assert await ask(session, "get", f"{PATH}/one?limit=500") == THERE
        assert await ask(session, "get", f"{PATH}?limit=500") == {"metadata": {"resourceVersion": "7"}, "items": []}
        assert await ask(session, "get", f"{PATH}?limit=500") == THERE
    finally:
        await session.aiohttp_session.close()
    assert session.aiohttp_session.closed
    assert server.asked == [
        ("GET", f"{prefix}{PATH}{rest}", "Bearer secret")
        for rest in ("?watch=true&resourceVersion=7", "/one?limit=500", "?limit=500")
    ]


async def test_a_session_after_another_does_not_answer_again(server: Server) -> None:
    """Whoever logs in again, or starts again, is told everything."""
    info, ends = kopf.ConnectionInfo(server=str(server.make_url("")), token="secret"), {PATH: "7"}
    for found in ({"metadata": {"resourceVersion": "7"}, "items": []}, THERE):
        session = connect(info, ends)
        try:
            assert await ask(session, "get", f"{PATH}?limit=500") == found
        finally:
            await session.aiohttp_session.close()
