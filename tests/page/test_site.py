"""What the page's server takes and refuses, seen without a browser: an attacker sends what they like."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.errors import KeyferryError, NoSuchQuestion, Refused
from keyferry.model import ObjectKey
from keyferry.question import Stage
from keyferry.web.page.browser import NAME
from keyferry.web.page.site import NOWHERE, WRITES, ApprovalPage, Site
from tests.page.fake import LINK, PATH, VIEWER, FakeApprovals, overviews, question
from tests.support.pki import Authority, server_context
from tests.support.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="session")

ACTIONS = ("begin", "confirm", "decline", "again", "code")
CODE = {"email": "ada@example.org", "code": "one-time"}
ORIGINS: dict[str, dict[str, str]] = {
    "nothing": {"Origin": ""},
    "foreign": {"Origin": "https://evil.example"},
    "null": {"Origin": "null"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "none": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize(
    "path",
    [
        f"{PATH}y",
        "/approve/",
        "/approve/short",
        f"{PATH}/begin",
        f"{PATH}/",
        "/approve/%2e%2e%2fetc",
        f"/approve/{'x' * 300}",
        "/callback/",
        "/callback/a/b",
        "/assets/none.css",
        "/nothing",
    ],
)
async def test_whatever_is_not_there_is_answered_alike(page: httpx.AsyncClient, path: str) -> None:
    answer = await page.get(path)
    unknown = await page.get(f"/approve/{'u' * 45}")
    assert (answer.status_code, answer.text) == (404, unknown.text)
    assert NOWHERE in answer.text
    assert dict(answer.headers).keys() == dict(unknown.headers).keys()


async def test_unknown_link_is_answered_as_a_lapsed_one(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    unknown = await page.post(f"{PATH}y/begin")
    approvals.trouble = NoSuchQuestion("it lapsed")
    lapsed = await page.post(f"{PATH}/begin")
    assert (unknown.status_code, unknown.text) == (lapsed.status_code, lapsed.text)
    assert "it lapsed" not in lapsed.text


async def test_get_changes_nothing_and_sets_no_cookie(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    for path in (PATH, "/", "/callback/uid?code=c&state=s", *(f"{PATH}/{action}" for action in ACTIONS)):
        assert "Set-Cookie" not in (await page.get(path)).headers
    assert approvals.asked == [("question", None)]


async def test_head_is_a_get_and_other_methods_are_refused(page: httpx.AsyncClient) -> None:
    assert (await page.head(PATH)).status_code == 200
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert (await page.request(method, PATH)).status_code == 405


@pytest.mark.parametrize("path", [PATH, "/", "/nothing", "/callback/uid?code=c"])
async def test_every_page_keeps_to_itself(page: httpx.AsyncClient, path: str) -> None:
    headers = (await page.get(path)).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script" not in policy
    assert "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Server"] == "keyferry"


async def test_style_sheet_may_be_kept(page: httpx.AsyncClient) -> None:
    found = re.search(r'href="(/assets/page\.[0-9a-f]{16}\.css)"', (await page.get("/")).text)
    assert found is not None
    answer = await page.get(found[1])
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.headers["Content-Type"] == "text/css"


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("path", [*(f"{PATH}/{action}" for action in ACTIONS), "/callback/uid", "/"])
async def test_post_from_elsewhere_does_nothing(
    page: httpx.AsyncClient, approvals: FakeApprovals, path: str, origin: str
) -> None:
    request = page.build_request("POST", path, data=CODE, headers=ORIGINS[origin])
    if not request.headers["Origin"]:
        del request.headers["Origin"]
    answer = await page.send(request)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text
    assert approvals.asked == []
    assert "Set-Cookie" not in answer.headers


async def test_begin_knows_the_browser_again(page: httpx.AsyncClient, approvals: FakeApprovals, url: str) -> None:
    answer = await page.post(f"{PATH}/begin")
    assert answer.status_code == 200  # no redirect: Chromium's form-action would stop it, or the next one
    assert answer.headers["Refresh"] == f"0; url={approvals.address}"
    cookie = answer.headers["Set-Cookie"]
    name, value = cookie.split(";")[0].split("=")
    assert name == f"keyferry-{url.rpartition(':')[2]}"
    assert {part.strip() for part in cookie.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=Lax"}
    await page.post(f"{PATH}/begin")
    await page.post(f"{PATH}/confirm")
    assert [browser.reveal() for _, browser in approvals.asked] == [value, value, value]  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["short", "x" * 44, "x" * 42 + '"', "x" * 9000, ""])
async def test_foreign_cookie_is_none(page: httpx.AsyncClient, approvals: FakeApprovals, url: str, value: str) -> None:
    name = f"keyferry-{url.rpartition(':')[2]}"
    answer = await page.get(PATH, headers={"Cookie": f"{name}={value}"})
    assert answer.status_code == (400 if len(value) > 8190 else 200)
    assert approvals.asked == ([] if len(value) > 8190 else [("question", None)])


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "/here", "https://", "https://x/\r\nA: b"]
)
async def test_browser_is_sent_to_web_pages_only(
    page: httpx.AsyncClient, approvals: FakeApprovals, address: str
) -> None:
    approvals.address = address
    answer = await page.post(f"{PATH}/begin")
    assert answer.status_code == 503
    assert "Refresh" not in answer.headers
    assert address not in answer.text


async def test_what_a_provider_sends_is_carried_on_unread(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    given = {"code": '"><script>x</script>', "state": "ä b+c&d", "iss": "https://auth.example.org"}
    answer = await page.get("/callback/uid-1", params=given)
    assert "<script>" not in answer.text
    done = await page.post("/callback/uid-1", data=given)
    assert (done.status_code, done.headers["Location"]) == (303, PATH)
    assert approvals.asked == [("arrive", "uid-1", None, given)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"state=a&state=b", 400),
        (b"state=a%00b", 400),
        (b"state=%ff", 400),
        (b"state=\xff", 400),
        (b"&".join(b"a%d=1" % number for number in range(40)), 400),
        (b"state=" + b"x" * 20000, 413),
    ],
)
async def test_malformed_forms_are_refused(
    page: httpx.AsyncClient, approvals: FakeApprovals, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await page.post("/callback/uid", content=body, headers=headers)
    assert answer.status_code == status
    assert approvals.asked == []


async def test_form_of_another_kind_is_refused(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    answer = await page.post(f"{PATH}/code", files={"code": b"x"})
    assert answer.status_code == 415
    assert approvals.asked == []


@pytest.mark.parametrize("fields", [{"email": "a@b"}, {"email": "", "code": "c"}, {"email": "a@b", "code": "c" * 600}])
async def test_incomplete_code_is_not_given_on(
    page: httpx.AsyncClient, approvals: FakeApprovals, fields: dict[str, str]
) -> None:
    assert (await page.post(f"{PATH}/code", data=fields)).status_code == 400
    assert approvals.asked == []


async def test_everything_shown_is_escaped(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    evil = '"><img src=x onerror=alert(1)>'
    names = {"provider": evil, "provider_host": evil, "target": evil, "expected": evil, "message": evil}
    for stage in Stage:
        approvals.current = question(
            stage, identity=ObjectKey(evil, evil), scopes=(evil,), audiences=(evil,), consumers=(evil,), **names
        )
        assert "<img" not in (await page.get(PATH)).text
    approvals.identities = overviews(0.0)
    approvals.trouble = Refused(evil)
    assert "<img" not in (await page.get(PATH)).text


@pytest.mark.parametrize(
    ("trouble", "status"), [(Refused("It was used before."), 403), (KeyferryError("The disk is full."), 503)]
)
async def test_what_failed_is_told(
    page: httpx.AsyncClient, approvals: FakeApprovals, trouble: KeyferryError, status: int
) -> None:
    approvals.trouble = trouble
    answer = await page.post("/callback/uid", data={"state": "s"})
    assert (answer.status_code, trouble.message in answer.text) == (status, True)


async def test_foreign_name_for_the_loopback_is_refused(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    answer = await page.get(PATH, headers={"Host": "rebound.example"})
    assert answer.status_code == 403
    assert approvals.asked == []
    assert (await page.get("/healthz", headers={"Host": "10.0.0.7:8080"})).text == "ok\n"


async def test_flood_is_held_back(page: httpx.AsyncClient) -> None:
    answers = [await page.post("/", data={"token": "guess"}) for _ in range(int(WRITES[1]) + 20)]
    assert answers[0].status_code == 403
    assert answers[-1].status_code == 429
    assert (await page.get(PATH)).status_code == 200


async def test_token_of_a_viewer_is_not_repeated(page: httpx.AsyncClient, approvals: FakeApprovals) -> None:
    approvals.identities = overviews(0.0)
    for token, status in ((VIEWER.reveal(), 200), ("guess-1234", 403), ("", 403)):
        answer = await page.post("/", data={"token": token})
        assert answer.status_code == status
        assert not token or token not in answer.text
        assert "Set-Cookie" not in answer.headers


async def test_log_tells_nothing(
    page: httpx.AsyncClient, approvals: FakeApprovals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    approvals.trouble = Refused("no")
    await page.get(PATH)
    await page.post("/callback/uid", data={"code": "secret-code", "state": "s"})
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert [text for text in ours if LINK.reveal() in text or "secret-code" in text] == []


async def test_cookie_on_tls_is_of_this_host_alone(approvals: FakeApprovals, tmp_path: Path) -> None:
    authority, port = Authority.create(), free_port()
    site, tls = Site(f"https://localhost:{port}", "none"), server_context(authority.server(), tmp_path)
    async with (
        ApprovalPage(approvals, site, "127.0.0.1", port, tls=tls),
        httpx.AsyncClient(base_url=site.url, verify=authority.client_context(), timeout=60) as client,
    ):
        answer = await client.post(f"{PATH}/begin", headers={"Origin": site.url})
    name, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert name.startswith(f"{NAME}=")
    assert set(attributes) == {"HttpOnly", "Path=/", "SameSite=Lax", "Secure"}
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
