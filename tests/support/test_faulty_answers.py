from __future__ import annotations

import asyncio
import email.utils
import math
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.demo.clients import Grant
from tests.support.asking import DEADLINE, ask, fails_with, refresh
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tests.support.issuer import FaultIssuer


@pytest.mark.parametrize("retry_after", ["7", email.utils.formatdate(1_800_000_000, usegmt=True)])
async def test_status_answers_carry_retry_after(issuer: FaultIssuer, http: httpx.AsyncClient, retry_after: str) -> None:
    issuer.faults.add(Fault(FaultKind.STATUS, status=429, retry_after=retry_after))
    answer = await ask(http)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, retry_after)
    assert not issuer.requests[-1].processed


@pytest.mark.parametrize("status", [500, 503])
async def test_plain_server_errors_may_come_after_the_grant_is_spent(
    issuer: FaultIssuer, http: httpx.AsyncClient, status: int
) -> None:
    issuer.faults.add(Fault(FaultKind.STATUS, status=status, spend=True))
    answer = await ask(http)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/plain")
    assert issuer.requests[-1].processed
    assert len(issuer.issued) == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [("temporarily_unavailable", 503), ("server_error", 500), ("invalid_grant", 400), ("made_up", 400), ("x", 200)],
)
async def test_oauth_errors_are_well_formed(
    issuer: FaultIssuer, http: httpx.AsyncClient, error: str, status: int
) -> None:
    issuer.faults.add(Fault(FaultKind.ERROR, error=error, status=status, description="why"))
    answer = await ask(http)
    assert (answer.status_code, answer.json()) == (status, {"error": error, "error_description": "why"})


@pytest.mark.parametrize("status", [200, 401, 403, 502])
async def test_html_comes_with_any_status(issuer: FaultIssuer, http: httpx.AsyncClient, status: int) -> None:
    issuer.faults.add(Fault(FaultKind.HTML, status=status))
    answer = await ask(http)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert answer.text.startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("status", [302, 307])
async def test_redirects_name_their_location(issuer: FaultIssuer, http: httpx.AsyncClient, status: int) -> None:
    issuer.faults.add(Fault(FaultKind.REDIRECT, status=status, location="https://elsewhere.example.org/"))
    answer = await ask(http)
    assert (answer.status_code, answer.headers["location"]) == (status, "https://elsewhere.example.org/")


@pytest.mark.parametrize("chunked", [False, True])
async def test_huge_bodies_hold_a_good_answer(issuer: FaultIssuer, http: httpx.AsyncClient, *, chunked: bool) -> None:
    size = 3 * 1024 * 1024
    issuer.faults.add(Fault(FaultKind.HUGE, size=size, chunked=chunked, times=1))
    answer = await ask(http)
    assert len(answer.content) == size
    assert answer.json()["access_token"] == issuer.issued[-1].value
    assert ("content-length" in answer.headers) is not chunked
    assert (await ask(http)).status_code == 200


async def test_a_huge_body_ends_when_the_client_has_enough(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.HUGE, size=64 * 1024 * 1024, times=1))
    parameters = {"grant_type": "client_credentials"}
    async with http.stream("POST", "/token", data=parameters, auth=("bot", "s3cret")) as answer:
        async for _ in answer.aiter_bytes(1024):
            break
    assert (await ask(http)).status_code == 200


@pytest.mark.parametrize(
    ("kind", "error"),
    [(FaultKind.TRUNCATED, httpx.RemoteProtocolError), (FaultKind.TRUNCATED_RESET, httpx.ReadError)],
)
async def test_truncated_bodies_end_too_early(
    issuer: FaultIssuer, http: httpx.AsyncClient, kind: FaultKind, error: type[Exception]
) -> None:
    issuer.faults.add(Fault(kind))
    received = bytearray()
    claimed = 0

    async def read() -> None:
        nonlocal claimed
        parameters = {"grant_type": "client_credentials"}
        async with http.stream("POST", "/token", data=parameters, auth=("bot", "s3cret")) as answer:
            claimed = int(answer.headers["content-length"])
            async for piece in answer.aiter_bytes():
                received.extend(piece)

    await fails_with(error, read())
    assert 0 < len(received) < claimed
    assert issuer.requests[-1].processed


async def test_malformed_json_has_a_fitting_length(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.MALFORMED))
    answer = await ask(http)
    assert answer.status_code == 200
    assert answer.text.startswith("{")
    with pytest.raises(ValueError, match=r"delimiter|Unterminated|Expecting"):
        answer.json()


@pytest.mark.parametrize("value", [[], ["access_token"], "text", 7, None])
async def test_json_may_be_of_another_type(issuer: FaultIssuer, http: httpx.AsyncClient, value: object) -> None:
    issuer.faults.add(Fault(FaultKind.REPLACE, value=value))
    answer = await ask(http)
    assert (answer.status_code, answer.json()) == (200, value)


@pytest.mark.parametrize("name", ["access_token", "token_type", "expires_in", "refresh_token"])
async def test_fields_may_be_missing(issuer: FaultIssuer, http: httpx.AsyncClient, name: str) -> None:
    seed = issuer.seed_refresh_token("bot", "ada")
    issuer.faults.add(Fault(FaultKind.DROP_FIELD, name=name))
    fields = (await refresh(http, seed)).json()
    expected = {"access_token", "token_type", "expires_in", "refresh_token", "scope"} - {name}
    assert set(fields) == expected


async def test_issued_token_type_may_be_missing(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.DROP_FIELD, name="issued_token_type", times=1))
    exchange = {
        "grant_type": Grant.TOKEN_EXCHANGE.value,
        "subject_token": (await ask(http)).json()["access_token"],
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }
    issuer.faults.clear()
    issuer.faults.add(Fault(FaultKind.DROP_FIELD, name="issued_token_type", times=1))
    answers = [await http.post("/token", data=exchange, auth=("bot", "s3cret")) for _ in range(2)]
    assert [("issued_token_type" in answer.json(), answer.status_code) for answer in answers] == [
        (False, 200),
        (True, 200),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expires_in", "300"),
        ("expires_in", 299.5),
        ("expires_in", -1),
        ("expires_in", 0),
        ("expires_in", 1e18),
        ("expires_in", True),
        ("scope", ["read"]),
        ("token_type", "DPoP"),
        ("token_type", "N_A"),
        ("error", "server_error"),
        ("access_token", "line\nbreak"),
        ("access_token", "nul\x00"),
        ("access_token", "tokén"),
        ("access_token", ""),
        ("access_token", 5),
    ],
)
async def test_fields_may_be_wrong(issuer: FaultIssuer, http: httpx.AsyncClient, name: str, value: object) -> None:
    issuer.faults.add(Fault(FaultKind.SET_FIELD, name=name, value=value))
    answer = await ask(http)
    assert answer.status_code == 200
    assert answer.json()[name] == value
    assert type(answer.json()[name]) is type(value)


async def test_a_lifetime_may_be_no_number(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.SET_FIELD, name="expires_in", value=math.nan))
    answer = await ask(http)
    assert '"expires_in": NaN' in answer.text


async def test_a_body_may_be_anything(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.BODY, body="\udcff\udcfe", content_type="application/json"))
    assert (await ask(http)).content == b"\xff\xfe"


async def test_metadata_may_name_another_issuer(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    path = "/.well-known/openid-configuration"
    issuer.faults.add(Fault(FaultKind.SET_FIELD, path=path, name="issuer", value="https://other.example.org", times=1))
    assert (await http.get(path)).json()["issuer"] == "https://other.example.org"
    assert (await http.get(path)).json()["issuer"] == issuer.issuer


async def test_a_drip_outlasts_a_timeout_on_each_read(issuer: FaultIssuer, http: httpx.AsyncClient) -> None:
    issuer.faults.add(Fault(FaultKind.DRIP, delay=0.01))

    async def whole() -> None:
        async with asyncio.timeout(0.3):
            await http.post(
                "/token", data={"grant_type": "client_credentials"}, auth=("bot", "s3cret"), timeout=DEADLINE
            )

    await fails_with(TimeoutError, whole())
    issuer.faults.clear()
    issuer.faults.add(Fault(FaultKind.DRIP, delay=0.0))
    assert (await ask(http)).json()["token_type"] == "Bearer"
