"""The HTTPS server: its certificate is replaced under its connections, and what it answers has one shape."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.errors import KeyferryError
from keyferry.io.tls import LITTLE
from keyferry_operator.api.answers import answer, read_json
from keyferry_operator.api.certificates import Certificates, DirectorySource
from keyferry_operator.api.server import ApiServer
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web

    from keyferry_operator.api.routes import Asked


class Mounted:
    """A mounted Secret, as the kubelet makes one: files behind a link that is moved at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create()
        self.versions = 0
        self.renew()
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (directory / name).symlink_to(f"..data/{name}")

    def renew(self) -> None:
        self.versions += 1
        version = self.directory / f"..{self.versions}"
        version.mkdir()
        certificate = self.authority.server()
        (version / "tls.crt").write_text(certificate.certificate)
        (version / "tls.key").write_text(certificate.private_key)
        (version / "ca.crt").write_text(self.authority.certificate)
        link = self.directory / "..new"
        link.symlink_to(version.name)
        link.rename(self.directory / "..data")

    def client(self) -> ssl.SSLContext:
        return self.authority.client_context()


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path)


async def echo(asked: Asked) -> web.StreamResponse:
    return answer({"path": dict(asked.path), "body": await read_json(asked.request)})


async def broken(asked: Asked) -> web.StreamResponse:
    raise ZeroDivisionError(f"canary {asked.query}")


async def here(asked: Asked) -> web.StreamResponse:
    return answer({"here": True, "query": asked.query})


@pytest.fixture
async def server(mounted: Mounted) -> AsyncIterator[ApiServer]:
    server = ApiServer(Certificates(DirectorySource(mounted.directory), look=0.05), "127.0.0.1", 0)
    server.routes.add("GET", "/v1/here", here)
    server.routes.add("POST", "/v1/namespaces/{namespace}/echo", echo)
    server.routes.add("GET", "/v1/broken", broken)
    async with server:
        yield server


async def shown(server: ApiServer, mounted: Mounted) -> bytes:
    """The certificate that a new connection is shown."""
    port = int(server.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=mounted.client())
    tls = writer.get_extra_info("ssl_object")
    found: bytes = tls.getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return found


async def test_a_renewed_certificate_is_shown_and_no_connection_is_dropped(server: ApiServer, mounted: Mounted) -> None:
    told: list[str] = []
    server.certificates.listeners.append(told.append)
    before = await shown(server, mounted)
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(verify=mounted.client(), base_url=server.url, limits=limits, timeout=60) as client:
        streams = []
        for _ in range(2):
            answered = await client.get("/v1/here")
            assert answered.json()["here"] is True
            streams.append(answered.extensions["network_stream"].get_extra_info("client_addr"))
            mounted.renew()
            while await shown(server, mounted) == before:  # noqa: ASYNC110 - as a client sees it
                await asyncio.sleep(0.05)
        assert streams[0] == streams[1], "the connection that was open is the one that is used"
    assert not told, "the authority is the same"


async def test_a_broken_renewal_leaves_what_was_good(server: ApiServer, mounted: Mounted) -> None:
    before = await shown(server, mounted)
    (mounted.directory / "..1" / "tls.key").write_text(Authority.create().private_key)
    with pytest.raises(KeyferryError, match="do not belong together"):
        await server.certificates.refresh()
    assert await shown(server, mounted) == before
    mounted.renew()
    await server.certificates.refresh()
    assert await shown(server, mounted) != before


async def test_a_new_authority_is_told(server: ApiServer, mounted: Mounted) -> None:
    told: list[str] = []
    server.certificates.listeners.append(told.append)
    mounted.authority = Authority.create("another")
    mounted.renew()
    await server.certificates.refresh()
    assert told == [mounted.authority.certificate]
    assert server.certificates.bundle == told[0]


async def test_it_serves_once_there_is_a_certificate(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "later")
    async with ApiServer(Certificates(source), "127.0.0.1", 0, start_pause=0.05) as server:
        assert not server.listening
        (tmp_path / "later").mkdir()
        mounted = Mounted(tmp_path / "later")
        async with asyncio.timeout(60):
            while not server.listening:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)
        assert await shown(server, mounted)


async def test_old_tls_is_refused(server: ApiServer, mounted: Mounted) -> None:
    context = mounted.client()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with httpx.AsyncClient(verify=context, base_url=server.url, timeout=60) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/v1/here")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v1/here/", None, 404),
        ("GET", "/v1/%68ere", None, 404),
        ("POST", "/v1/namespaces/Team/echo", "{}", 404),
        ("POST", "/v1/namespaces/a%2Fb/echo", "{}", 404),
        ("DELETE", "/v1/here", None, 405),
        ("QUERY", "/v1/here", None, 405),
        ("POST", "/v1/namespaces/team/echo", "{", 400),
        ("POST", "/v1/namespaces/team/echo", "[" * 9000, 400),
        ("POST", "/v1/namespaces/team/echo", "x" * 20000, 413),
        ("POST", "/v1/namespaces/team/echo", None, 415),
    ],
)
async def test_every_refusal_is_a_problem_document_that_repeats_nothing(
    server: ApiServer, mounted: Mounted, method: str, path: str, body: str | None, status: int
) -> None:
    async with httpx.AsyncClient(verify=mounted.client(), timeout=60) as client:
        url = httpx.URL(server.url).copy_with(raw_path=path.encode())
        headers = {"Content-Type": "application/json"} if body is not None else {}
        answered = await client.request(method, url, content=body, headers=headers)
    assert answered.status_code == status
    assert answered.headers["Content-Type"] == "application/problem+json"
    assert answered.headers["Cache-Control"] == "no-store"
    problem = answered.json()
    assert set(problem) == {"type", "title", "status", "detail", "reason"}
    assert problem["status"] == status
    assert ("Allow" in answered.headers) == (status == 405)
    for part in ("Team", "%68ere", "QUERY", "DELETE", "xxx"):
        assert part not in json.dumps(problem)


async def test_what_is_served_is_answered(server: ApiServer, mounted: Mounted) -> None:
    async with httpx.AsyncClient(verify=mounted.client(), base_url=server.url, timeout=60) as client:
        answered = await client.post("/v1/namespaces/team-a/echo", json={"x": 1})
        assert answered.json() == {"path": {"namespace": "team-a"}, "body": {"x": 1}}
        assert (await client.get("/v1/here?a=%20b")).json()["query"] == "a=%20b"
        server.drain()
        assert (await client.get("/v1/here")).headers["Connection"] == "close"


async def test_a_defect_is_told_without_what_it_says(
    server: ApiServer, mounted: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient(verify=mounted.client(), base_url=server.url, timeout=60) as client:
        answered = await client.get("/v1/broken?secret")
        assert (answered.status_code, answered.json()["reason"]) == (500, "Unavailable")
        assert (await client.get("/v1/here")).status_code == 200
    assert "ZeroDivisionError" in caplog.text
    for word in ("canary", "secret"):
        assert word not in answered.text + caplog.text


async def test_no_http_is_no_http(server: ApiServer, mounted: Mounted) -> None:
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=mounted.client())
    writer.write(b"canary\r\n\r\n")
    found = await reader.read()
    assert found.startswith(b"HTTP/1.")
    assert b" 400 " in found
    assert b"canary" not in found
    writer.close()
    await writer.wait_closed()


def test_a_path_is_served_once(tmp_path: Path) -> None:
    server = ApiServer(Certificates(DirectorySource(tmp_path)), "127.0.0.1", 0)
    server.routes.add("GET", "/v1/here", here)
    with pytest.raises(ValueError, match="already"):
        server.routes.add("GET", "/v1/here", here)


async def test_a_request_larger_than_what_is_read_at_a_time_is_whole(server: ApiServer, mounted: Mounted) -> None:
    text = "x" * (3 * LITTLE)
    async with httpx.AsyncClient(verify=mounted.client(), base_url=server.url) as client:
        for _ in range(2):
            answered = await client.post("/v1/namespaces/team-a/echo", json={"x": text})
            assert answered.json()["body"] == {"x": text}


async def test_no_more_is_set_aside_for_a_connection_than_a_request_needs(mounted: Mounted) -> None:
    async def told(asked: Asked) -> web.StreamResponse:
        protocol = vars(asked.request.transport)["_ssl_protocol"]
        return answer({"size": len(vars(protocol)["_ssl_buffer"])})

    server = ApiServer(Certificates(DirectorySource(mounted.directory)), "127.0.0.1", 0)
    server.routes.add("POST", "/v1/told", told)
    async with server, httpx.AsyncClient(verify=mounted.client(), base_url=server.url) as client:
        for _ in range(2):
            assert (await client.post("/v1/told", content="x" * 3 * LITTLE)).json() == {"size": LITTLE}
