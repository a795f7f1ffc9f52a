"""Who may use the endpoints at all, and what is answered to the others."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asking import DEADLINE

if TYPE_CHECKING:
    from tests.web.conftest import Place

FORM = "application/x-www-form-urlencoded"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_the_token_and_what_is_known_of_it(place: Place) -> None:
    answer = await place.http.get(place.url("bot") + "/token", headers=bearer(place.bot.placeholder.reveal()))
    assert answer.status_code == 200
    found = answer.json()
    assert 0 < found.pop("expires_in") <= 300
    assert found.pop("issued_at").endswith("Z")
    assert found.pop("expires_at").endswith("Z")
    assert found == {"access_token": "access-1", "token_type": "Bearer", "scope": "read", "revision": 7}
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "headers", [{}, bearer("x"), {"Authorization": "Bearer"}, {"Authorization": "Basic eDp5"}, bearer("\xe9")]
)
async def test_without_the_placeholder_every_identity_looks_alike(place: Place, headers: dict[str, str]) -> None:
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    seen = set()
    for identity in ("bot", "notebook", "nobody", "other:bot"):
        answer = await place.http.get(f"{place.server.url}/{identity}/token", headers=encoded)
        seen.add((answer.status_code, answer.content, answer.headers["WWW-Authenticate"]))
    assert len(seen) == 1
    ((status, _, _),) = seen
    assert status == 401


async def test_one_identitys_placeholder_does_not_open_another(place: Place) -> None:
    headers = bearer(place.notebook.placeholder.reveal())
    assert (await place.http.get(place.url("bot") + "/token", headers=headers)).status_code == 401
    assert (await place.http.get(place.url("notebook") + "/token", headers=headers)).status_code == 404


@pytest.mark.parametrize("path", ["oauth/token", "realms/aiod/protocol/openid-connect/token"])
async def test_a_placeholder_grant_is_answered_with_the_current_token(place: Place, path: str) -> None:
    url, placeholder = f"{place.url('bot')}/{path}", place.bot.placeholder.reveal()
    refresh = {"grant_type": "refresh_token", "refresh_token": placeholder, "client_id": "aiod-sdk"}
    client = {"grant_type": "client_credentials", "client_secret": placeholder, "scope": "openid", "username": ""}
    answers = [await place.http.post(url, data=refresh), await place.http.post(url, data=client)]
    answers.append(await place.http.post(url, data={"grant_type": "client_credentials"}, auth=("any", placeholder)))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert 0 < found.pop("expires_in") <= 300
        assert found == {"access_token": "access-1", "token_type": "Bearer"}
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ("", 400, "invalid_request"),
        ("grant_type=refresh_token", 400, "invalid_grant"),
        ("grant_type=refresh_token&refresh_token=x", 400, "invalid_grant"),
        ("grant_type=refresh_token&refresh_token=x&refresh_token=y", 400, "invalid_request"),
        ("grant_type=client_credentials&client_secret=x", 401, "invalid_client"),
        ("grant_type=password&username=a&password=b", 400, "unsupported_grant_type"),
        ("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code", 400, "unsupported_grant_type"),
        ("&".join(f"a{n}=1" for n in range(64)), 400, "invalid_request"),
        ("a=\xe9", 400, "invalid_request"),
        ("a=" + "x" * 20_000, 413, "invalid_request"),
    ],
)
async def test_everything_else_is_an_error_of_rfc_6749(place: Place, form: str, status: int, error: str) -> None:
    headers = {"Content-Type": FORM}
    for identity in ("bot", "nobody"):
        url = f"{place.url(identity)}/oauth/token"
        answer = await place.http.post(url, content=form.encode("latin-1"), headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (status, error)
        assert "access-1" not in answer.text


async def test_a_basic_client_is_challenged_in_kind(place: Place) -> None:
    url = f"{place.url('bot')}/oauth/token"
    answer = await place.http.post(url, data={"grant_type": "client_credentials"}, auth=("a", "wrong"))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


async def test_json_is_no_form(place: Place) -> None:
    answer = await place.http.post(f"{place.url('bot')}/oauth/token", json={"grant_type": "refresh_token"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_no_token_just_now(place: Place) -> None:
    from keyferry.web.source import Unavailable  # noqa: PLC0415 - the one place

    place.bot.trouble = Unavailable("the provider is away")
    placeholder = place.bot.placeholder.reveal()
    answer = await place.http.get(place.url("bot") + "/token", headers=bearer(placeholder))
    form = {"grant_type": "refresh_token", "refresh_token": placeholder}
    for found in (answer, await place.http.post(place.url("bot") + "/oauth/token", data=form)):
        assert found.status_code == 503
        assert found.headers["Retry-After"]
        assert found.json()["error_description"] == "the provider is away"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example.org"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
        ({f"X-{number}": "1" for number in range(60)}, 431),
    ],
)
async def test_web_pages_and_strange_requests_are_refused(place: Place, headers: dict[str, str], status: int) -> None:
    present = bearer(place.bot.placeholder.reveal())
    answer = await place.http.get(place.url("bot") + "/token", headers=present | headers)
    assert answer.status_code == status
    assert "access-1" not in answer.text
    assert not any(value in answer.text for value in headers.values() if len(value) > 1)


async def test_the_names_of_the_loopback_are_all_right(place: Place) -> None:
    port = place.server.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"127.0.0.1:{port}"):
        headers = bearer(place.bot.placeholder.reveal()) | {"Host": host}
        assert (await place.http.get(place.url("bot") + "/token", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "bot/token", 405),
        ("GET", "bot/oauth/token", 405),
        ("PUT", "notebook/labarchives/api/entries/add_entry", 405),
        ("OPTIONS", "bot/token", 405),
        ("GET", "bot", 404),
        ("GET", "bot/", 404),
        ("GET", "bot/files", 404),
        ("GET", "bot%2ftoken", 404),
        ("GET", "bot//token", 404),
        ("GET", "..%2fbot/token", 404),
        ("POST", "bot/realms/a/b/protocol/openid-connect/token", 404),
        ("GET", "metrics", 404),
    ],
)
async def test_only_what_there_is(place: Place, method: str, path: str, status: int) -> None:
    headers = bearer(place.bot.placeholder.reveal())
    answer = await place.http.request(method, f"{place.server.url}/{path}", headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /bot/token HTTP/1.1\r\nHost: {host}\r\nHost: evil.example.org\r\nAuthorization: Bearer {token}\r\n\r\n",
        "GET /bot/token HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n",
        "GET http://evil.example.org/bot/token HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n",
        "GET /bot/token HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nX: " + "a" * 20_000 + "\r\n\r\n",
        "GET /" + "a" * 20_000 + " HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "\x16\x03\x01 no HTTP {token}\r\n\r\n",
    ],
)
async def test_malformed_requests_get_nothing(
    place: Place, request_text: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = place.server.url.removeprefix("http://")
    token = place.bot.placeholder.reveal()
    reader, writer = await asyncio.open_connection(*host.split(":"))
    writer.write(request_text.format(host=host, token=token).encode("latin-1"))
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    finally:
        writer.close()
        await writer.wait_closed()
    assert head.split()[1].startswith(b"4")
    assert token not in head.decode() + caplog.text
    assert "access-1" not in head.decode()


def test_a_sidecar_can_afford_it() -> None:
    """Neither heavy library comes along."""
    names = ("pydantic", "typer", "rich", "httpx", "yaml", "kopf", "kubernetes", "prometheus_client", "defusedxml")
    program = f"import json, sys, keyferry.web.loopback; print(json.dumps([n for n in {names!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    assert found == []
