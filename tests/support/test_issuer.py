from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.demo.clients import AuthMethod, Client
from keyferry.demo.refresh_tokens import Outcome
from tests.support.asking import DEADLINE, NO_TLS, ask, eventually, fails_with, refresh
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    from pathlib import Path


async def test_without_faults_requests_and_tokens_are_recorded(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    answer = await ask(http)
    assert answer.json()["access_token"] == issuer.issued[-1].value
    assert (await ask(http, "nobody")).status_code == 401
    good, bad = issuer.requests
    assert (good.client, good.grant, good.path, good.outcome, good.status) == (
        "bot",
        "client_credentials",
        "/token",
        "issued",
        200,
    )
    assert (bad.client, bad.outcome, bad.status, bad.processed) == ("nobody", "invalid_client", 401, True)
    assert good.connection == bad.connection == 1


async def test_connections_are_told_apart(issuer: FaultIssuer) -> None:
    for _ in range(2):
        async with httpx.AsyncClient(base_url=issuer.url, trust_env=False, verify=NO_TLS, timeout=DEADLINE) as client:
            await ask(client)
    assert [record.connection for record in issuer.requests] == [1, 2]


async def test_latency_passes_before_a_good_answer(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.LATENCY, delay=0.2))
    begun = time.monotonic()
    assert (await ask(http)).status_code == 200
    assert time.monotonic() - begun >= 0.2


@pytest.mark.parametrize(
    ("kind", "spent"),
    [(FaultKind.STALL_BEFORE, False), (FaultKind.STALL_AFTER, True)],
)
async def test_stalls_give_no_answer(
    issuer: FaultIssuer, http: httpx.AsyncClient, kind: FaultKind, *, spent: bool
) -> None:
    seed = issuer.seed_refresh_token("bot", "ada")
    issuer.faults.add(Fault(kind, times=1))
    await fails_with(httpx.ReadTimeout, refresh(http, seed, timeout=httpx.Timeout(DEADLINE, read=0.3)))
    await eventually(lambda: bool(issuer.requests) and issuer.requests[-1].processed is spent)
    assert issuer.sent_refresh_tokens() == {seed: 1}
    assert [spend.accepted for spend in issuer.spends if spend.token == seed] == [int(spent)]


async def test_a_late_stall_spends_the_grant_of_a_client_that_hung_up(
    issuer: FaultIssuer, http: httpx.AsyncClient
) -> None:
    seed = issuer.seed_refresh_token("bot", "ada")
    issuer.faults.add(Fault(FaultKind.STALL_BEFORE, delay=0.4, times=1))
    await fails_with(httpx.ReadTimeout, refresh(http, seed, timeout=httpx.Timeout(DEADLINE, read=0.1)))
    await eventually(lambda: bool(issuer.requests) and issuer.requests[-1].processed)
    assert [spend.accepted for spend in issuer.spends if spend.token == seed] == [1]


@pytest.mark.parametrize(
    ("kind", "spent", "error"),
    [
        (FaultKind.RESET_BEFORE, False, httpx.ReadError),
        (FaultKind.RESET_AFTER, True, httpx.ReadError),
        (FaultKind.CLOSE_BEFORE, False, httpx.RemoteProtocolError),
        (FaultKind.CLOSE_AFTER, True, httpx.RemoteProtocolError),
    ],
)
async def test_connections_end_before_and_after_the_grant_is_spent(
    issuer: FaultIssuer, http: httpx.AsyncClient, kind: FaultKind, error: type[Exception], *, spent: bool
) -> None:
    seed = issuer.seed_refresh_token("bot", "ada")
    issuer.faults.add(Fault(kind, times=1))
    await fails_with(error, refresh(http, seed))
    assert issuer.requests[-1].processed is spent
    again = await refresh(http, seed)
    assert again.status_code == (400 if spent else 200)
    spend = next(spend for spend in issuer.spends if spend.token == seed)
    assert [shown.outcome for shown in spend.presentations] == (
        [Outcome.ACCEPTED, Outcome.REUSED] if spent else [Outcome.ACCEPTED]
    )
    assert issuer.sent_refresh_tokens() == {seed: 2}


async def test_a_reset_is_a_reset_on_the_wire(issuer: FaultIssuer) -> None:
    issuer.faults.add(Fault(FaultKind.RESET_BEFORE, path=None))
    reader, writer = await asyncio.open_connection("127.0.0.1", issuer.listener.port)
    writer.write(b"GET /jwks HTTP/1.1\r\nHost: x\r\n\r\n")
    await fails_with(ConnectionResetError, reader.read())
    writer.close()
    await fails_with(ConnectionResetError, writer.wait_closed())


async def test_a_closed_listener_refuses_and_opens_on_the_same_port(
    issuer: FaultIssuer, http: httpx.AsyncClient
) -> None:
    seed = issuer.seed_refresh_token("bot", "ada")
    url = issuer.url
    issuer.stop()
    await fails_with(httpx.ConnectError, ask(http))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", issuer.listener.port))
    await issuer.start()
    assert issuer.url == url
    assert (await refresh(http, seed)).status_code == 200


async def test_a_stop_resets_open_connections_unless_told_not_to(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    await ask(http)
    issuer.stop(drop=False)
    assert (await ask(http)).status_code == 200
    issuer.stop()
    await fails_with(httpx.TransportError, ask(http))


async def test_refuse_reopens_by_itself(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.REFUSE, times=1, delay=1.5))
    await fails_with(httpx.ReadError, ask(http))
    await fails_with(httpx.ConnectError, ask(http))
    await eventually(lambda: issuer.listener.open)
    assert (await ask(http)).status_code == 200


async def test_a_pause_holds_requests_back_until_resumed(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.pause()
    waiting = asyncio.create_task(ask(http))
    await eventually(lambda: len(issuer.requests) == 1)
    assert not issuer.requests[0].processed
    issuer.resume()
    assert (await waiting).status_code == 200


async def test_faults_of_one_client_leave_the_others_alone(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.clients.add(Client("other", secrets=("s3cret",)))
    issuer.faults.add(Fault(FaultKind.ERROR, client="bot"))
    assert (await ask(http, "bot")).status_code == 400
    assert (await ask(http, "other")).status_code == 200


async def test_an_issuer_with_a_path_is_discovered_at_both_places() -> None:
    async with (
        FaultIssuer(path="/realms/x") as issuer,
        httpx.AsyncClient(base_url=issuer.url, trust_env=False, verify=NO_TLS, timeout=DEADLINE) as client,
    ):
        for path in (
            "/realms/x/.well-known/openid-configuration",
            "/.well-known/oauth-authorization-server/realms/x",
        ):
            assert (await client.get(path)).json()["issuer"] == f"{issuer.url}/realms/x"
        issuer.faults.add(Fault(FaultKind.ERROR, path="/token"))
        answer = await client.post("/realms/x/token", data={"grant_type": "x"})
        assert answer.json()["error"] == "server_error"


async def test_tls_takes_client_certificates(tmp_path: Path) -> None:
    authority, stranger = Authority.create(), Authority.create()
    context = server_context(authority.server(), tmp_path, clients=authority)
    asked = {"grant_type": "client_credentials", "client_id": "mutual"}
    async with FaultIssuer(tls=context) as issuer:
        issuer.clients.add(Client("mutual", methods=(AuthMethod.TLS,), certificate_subject="mutual"))
        assert issuer.issuer.startswith("https://127.0.0.1:")
        for name, status in (("mutual", 200), ("another", 401), (None, 401)):
            verify = authority.client_context(authority.client(name) if name else None, tmp_path)
            async with httpx.AsyncClient(
                base_url=issuer.url, verify=verify, trust_env=False, timeout=DEADLINE
            ) as client:
                assert (await client.post("/token", data=asked)).status_code == status
        async with httpx.AsyncClient(
            base_url=issuer.url, verify=stranger.client_context(), trust_env=False, timeout=DEADLINE
        ) as client:
            await fails_with(httpx.ConnectError, client.get("/jwks"))


@pytest.mark.parametrize("kind", [FaultKind.RESET_AFTER, FaultKind.TRUNCATED, FaultKind.STALL_AFTER])
async def test_faults_work_over_tls(tmp_path: Path, kind: FaultKind) -> None:
    authority = Authority.create()
    async with (
        FaultIssuer(tls=server_context(authority.server(), tmp_path)) as issuer,
        httpx.AsyncClient(
            base_url=issuer.url,
            verify=authority.client_context(),
            trust_env=False,
            timeout=httpx.Timeout(DEADLINE, read=5.0),
        ) as client,
    ):
        issuer.clients.add(Client("bot", secrets=("s3cret",)))
        issuer.faults.add(Fault(kind, times=1))
        await fails_with(httpx.TransportError, ask(client))
        assert issuer.requests[-1].processed
        assert (await ask(client)).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST /token HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"411"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b"431"),
    ],
)
async def test_requests_that_it_does_not_know_are_refused(issuer: FaultIssuer, sent: bytes, status: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", issuer.listener.port)
    writer.write(sent)
    assert (await reader.readline()).split()[1] == status
    writer.close()
    await writer.wait_closed()


async def test_requests_in_pieces_and_in_a_row_are_answered(issuer: FaultIssuer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", issuer.listener.port)
    body = b"grant_type=client_credentials"
    head = b"POST /token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n"
    request = (head % len(body)) + body
    for piece in (request[:20], request[20:-5], request[-5:] + request):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    for _ in range(2):
        assert b"401" in await reader.readline()
        rest = await reader.readuntil(b"\r\n\r\n")
        length = int(rest.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        assert json.loads(await reader.readexactly(length))["error"] == "invalid_client"
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_wants_the_connection_closed_is_obeyed(issuer: FaultIssuer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", issuer.listener.port)
    writer.write(b"GET /jwks HTTP/1.1\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()
