"""``keyferry page`` as a process of its own: over TLS to a broker API, and over TLS to people."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from aiohttp import web

from keyferry.errors import CredentialError
from keyferry.question import Stage
from keyferry.web.page.certificate import ServingCertificate
from keyferry.web.page.wire import PATH as API
from keyferry.web.page.wire import PageHandler
from keyferry.web.serving import Server, listen, port_of
from tests.page.fake import PATH, FakeApprovals, question
from tests.support.pki import Authority, server_context
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.cli.conftest import Inside

DEADLINE = 180.0


@pytest.fixture
def approvals() -> FakeApprovals:
    return FakeApprovals(question(Stage.LOGIN))


@pytest.fixture
async def broker(approvals: FakeApprovals, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of a broker API; its authority is in ``ca.crt``, and ``token`` is the page's own."""
    authority = Authority.create()
    (tmp_path / "ca.crt").write_text(authority.certificate)
    (tmp_path / "token").write_text("page-token")

    async def serve(request: web.BaseRequest) -> web.Response:
        assert request.headers["Authorization"] == "Bearer page-token"
        status, body = await PageHandler().handle(approvals, request.path.removeprefix(API), await request.read())
        return web.json_response(body, status=status)

    tls = server_context(authority.server(), tmp_path)
    runner = await listen(Server(serve), "127.0.0.1", 0, what="It", advice="", tls=tls)
    yield f"https://localhost:{port_of(runner)}"
    await runner.cleanup()


async def test_page_is_what_a_broker_says(broker: str, approvals: FakeApprovals, tmp_path: Path) -> None:
    authority, port = Authority.create(), free_port()
    certificate, key = authority.server().write(tmp_path, "page")
    options = {
        "listen": f"127.0.0.1:{port}",
        "page-url": f"https://localhost:{port}",
        "broker": broker,
        "token": str(tmp_path / "token"),
        "ca": str(tmp_path / "ca.crt"),
        "tls-certificate": str(certificate),
        "tls-key": str(key),
        "trusted-proxies": "127.0.0.1",
        "forwarded-header": "Forwarded",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyferry", "page", *arguments, stderr=subprocess.PIPE
    )
    try:
        async with httpx.AsyncClient(
            base_url=options["page-url"],
            verify=authority.client_context(),
            headers={"Origin": options["page-url"]},
            timeout=DEADLINE,
        ) as client:
            async with asyncio.timeout(DEADLINE):
                while not await _is_ready(client):  # noqa: ASYNC110 - it is another process that gets ready
                    await asyncio.sleep(0.1)
            assert "Log in for nightly-ingest" in (await client.get(PATH)).text
            begun = await client.post(f"{PATH}/begin")
            assert begun.headers["Refresh"] == f"0; url={approvals.address}"
            arrived = await client.post("/callback/uid", data={"state": "s"})
            assert arrived.headers["Location"] == PATH
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.wait_for(process.communicate(), DEADLINE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert PATH not in said.decode()
    assert [asked[0] for asked in approvals.asked] == ["question", "begin", "arrive"]


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


GOOD = {
    "--page-url": "https://page.example.org",
    "--broker": "https://broker.example.org",
    "--token": "token",
    "--listen": "127.0.0.1:0",
}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--page-url", "http://page.example.org", "must begin with https://"),
        ("--page-url", "https://page.example.org/path", "no path"),
        ("--broker", "http://broker.example.org", "does not begin with https://"),
        ("--listen", "nowhere", "no address to listen on"),
        ("--tls-key", "page.key", "go together"),
        ("--broker", "", "--broker is needed"),
        ("--log-level", "loud", "invalid choice"),
        ("--trusted-proxies", "10.0.3.1/24", "write 10.0.3.0/24"),
        ("--forwarded-header", "X-Real-IP", "write X-Forwarded-For or Forwarded"),
    ],
)
def test_wrong_options_are_told(inside: Inside, option: str, value: str, said: str) -> None:
    code, _, err = inside("page", *(f"{name}={text}" for name, text in (GOOD | {option: value}).items()))
    assert code == 2
    assert said in err


def test_certificate_is_replaced_and_a_bad_one_is_not_taken(tmp_path: Path) -> None:
    certificate, key = Authority.create().server().write(tmp_path, "page")
    serving = ServingCertificate(certificate, key)
    certificate.write_text("half of it")
    with pytest.raises(CredentialError, match="no PEM certificate"):
        serving.refresh()
    certificate.unlink()
    with pytest.raises(CredentialError, match="cannot be read"):
        serving.refresh()
    fresh = Authority.create()
    fresh.server().write(tmp_path, "page")
    serving.refresh()
    assert _is_trusted(serving, fresh)


def _is_trusted(serving: ServingCertificate, authority: Authority) -> bool:
    """Shake hands in memory."""

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.context.wrap_bio(to_server, to_client, server_side=True)
    client = authority.client_context().wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.version() is not None and client.getpeercert() != {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--page-url", "https://page.example.org"], "goes with --page"),
        (["--page", "0.0.0.0:7530"], "say with --page-url"),
        (["--page", "0"], "say with --page-url"),
        (["--page", "7530", "--page-url", "http://page.example.org"], "must begin with https://"),
        (["--page", "7530", "--once"], "exclude each other"),
        (["--page", "here:there"], "no address to listen on"),
        (["--page", "7530", "--trusted-proxies", "ingress"], "is no address or network"),
        (["--page", "7530", "--forwarded-header", "X-Real-IP"], "write X-Forwarded-For or Forwarded"),
    ],
)
def test_run_says_what_a_page_lacks(inside: Inside, options: list[str], said: str) -> None:
    code, _, err = inside("run", "resources", *options)
    assert code == 2
    assert said in err
