"""Every state of a question in a real browser: what it says, how it reads aloud, and that it keeps to itself."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import KeyferryError, Refused
from keyferry.model import ObjectKey
from keyferry.question import Account, Overview, Question, Stage
from tests.page.fake import PATH, VIEWER, FakeApprovals, device, overviews, question
from tests.support.browser import visitor as open_visitor

if TYPE_CHECKING:
    import httpx
    from playwright.async_api import Browser

    from tests.support.browser import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("page"), pytest.mark.asyncio(loop_scope="session")]

WRONG = "You logged in as bob@example.org, but only ada@example.org may approve. Log out there, then ask again."
STATES: dict[str, tuple[Question, str, list[str]]] = {
    "device": (
        question(Stage.DEVICE),
        "Approve nightly-ingest",
        ["WDJB-MJHT", "Open auth.example.org", "ada@example.org", "offline_access", "lapses in 9 minutes, at "],
    ),
    "login": (
        question(Stage.LOGIN),
        "Log in for nightly-ingest",
        ["batch", "the Secret nightly-ingest-token", "service account ingest", "https://api.example.org"],
    ),
    "begun": (question(Stage.LOGIN, begun_here=True), "Log in for nightly-ingest", ["Begin again"]),
    "code": (
        question(Stage.LOGIN, takes_code=True, message="That code was refused."),
        "Log in for nightly-ingest",
        ["That code was refused.", "One-time code", "E-mail address"],
    ),
    "working": (question(Stage.WORKING), "One moment", ["auth.example.org is being asked"]),
    "confirm": (
        question(Stage.CONFIRM),
        "Is this the right account?",
        ["Ada Lovelace", "ada@example.org", "5f0c1f9e", "nightly-ingest", "the Secret nightly-ingest-token"],
    ),
    "elsewhere": (question(Stage.CONFIRM, account=None), "Is this the right account?", ["in another browser"]),
    "done": (
        question(Stage.DONE),
        "nightly-ingest has its token",
        ["Ada Lovelace", "You can close this page", "To take the access back"],
    ),
    "ended": (
        question(Stage.ENDED, message=WRONG, may_ask_again=True),
        "nightly-ingest got no token",
        [WRONG, "Ask again"],
    ),
    "over": (question(Stage.ENDED, message="Somebody said no."), "nightly-ingest got no token", ["Somebody said no."]),
}
DEVICE_ONLY = question(Stage.DEVICE, expected="", scopes=(), consumers=(), audiences=(), target="")


@pytest.mark.parametrize("state", STATES)
async def test_state_says_what_it_is_and_asks_nobody_else(
    state: str, approvals: FakeApprovals, visitor: Visitor, url: str
) -> None:
    current, heading, said = STATES[state]
    approvals.current = replace(current, expires_at=time.time() + 599)
    await visitor.page.goto(url + PATH)
    text = await visitor.text()
    assert await visitor.heading() == heading
    assert [words for words in said if words not in text] == []
    assert visitor.complaints == []
    assert visitor.hosts() == {url.removeprefix("http://")}
    assert await visitor.page.locator("script").count() == 0
    await visitor.draw(state)


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
async def test_states_are_accessible(
    width: int, scheme: str, approvals: FakeApprovals, browser: Browser, url: str
) -> None:
    """Contrast, names, labels, landmarks and the order of headings, and no scrolling sideways on a narrow screen."""
    approvals.identities = overviews(time.time())
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "java_script_enabled": True}
    found: dict[str, list[str]] = {}
    async with open_visitor(browser, **options) as guest:
        for state, (approvals.current, _, _) in STATES.items():
            await guest.page.goto(f"{url}{PATH}?refresh=off")
            found[state] = await _faults(guest)
        for path in ("/", "/callback/uid?state=s&code=c", "/approve/no-such-question"):
            await guest.page.goto(url + path)
            found[path] = await _faults(guest)
        await guest.page.goto(url)
        await guest.page.get_by_label("Token").fill(VIEWER.reveal())
        await guest.press("Show")
        await guest.wait_for_heading("Identities")
        found["overview"] = await _faults(guest)
    assert {state: faults for state, faults in found.items() if faults} == {}


async def test_long_names_fit_a_narrow_screen(approvals: FakeApprovals, browser: Browser, url: str) -> None:
    name, host = ObjectKey("n" * 63, "i" * 63), f"{'department.' * 6}example.org"
    long = {"identity": name, "provider": f"ClusterTokenProvider {'p' * 63}", "provider_host": host}
    long |= {"scopes": ("s" * 100, *(f"scope-{number}" for number in range(30))), "audiences": (f"https://{host}/",)}
    long |= {"target": f"Secret {name}", "expected": f"{'somebody.' * 8}@example.org"}
    account = Account("5" * 64, f"{'somebody.' * 8}@example.org", "Somebody" * 8)
    now = time.time()
    approvals.identities = [Overview(name, "p" * 63, "AuthorizationCode", "Asking", "m" * 90, now, now, now)]
    sideways: list[str] = []
    async with open_visitor(browser, viewport={"width": 320, "height": 800}) as guest:
        for state, (current, _, _) in STATES.items():
            shown = account if current.account is not None else None
            approvals.current = replace(current, account=shown, **long)  # type: ignore[arg-type]
            await guest.page.goto(f"{url}{PATH}?refresh=off")
            sideways += [state] if await _is_wider(guest, "html") else []
        await guest.page.goto(url)
        await guest.page.get_by_label("Token").fill(VIEWER.reveal())
        await guest.press("Show")
        await guest.wait_for_heading("Identities")
        sideways += ["overview"] if await _is_wider(guest, ".table") else []
    assert sideways == []


async def _is_wider(guest: Visitor, what: str) -> bool:
    wider: bool = await guest.page.locator(what).evaluate("element => element.scrollWidth > element.clientWidth")
    return wider


async def _faults(guest: Visitor) -> list[str]:
    wide = ["it is wider than the screen"] if await _is_wider(guest, "html") else []
    return [*wide, *await guest.problems()]


async def test_keyboard_alone_reaches_what_there_is_to_do(approvals: FakeApprovals, visitor: Visitor, url: str) -> None:
    approvals.current = question(Stage.CONFIRM)
    await visitor.page.goto(url + PATH)
    reached = []
    for _ in range(3):
        await visitor.page.keyboard.press("Tab")
        reached.append(await visitor.page.locator(":focus").inner_text())
    assert reached == ["Skip to the content", "Confirm, and give the token", "No, throw the login away"]
    async with visitor.page.expect_navigation():  # the address stays the same, so it says nothing
        await visitor.page.keyboard.press("Enter")
    assert ("decline",) in {asked[:1] for asked in approvals.asked}


async def test_device_code_can_be_scanned_opened_and_copied(
    approvals: FakeApprovals, visitor: Visitor, url: str
) -> None:
    approvals.current = question(Stage.DEVICE)
    await visitor.page.goto(url + PATH)
    link = visitor.page.get_by_role("link", name="Open auth.example.org")
    assert await link.get_attribute("href") == device().verification_uri_complete
    assert await link.get_attribute("rel") == "noreferrer noopener"
    assert await visitor.page.get_by_role("img", name="QR code").is_visible()
    await visitor.page.set_viewport_size({"width": 390, "height": 844})
    assert not await visitor.page.get_by_role("img", name="QR code").is_visible()  # it is in the hand already


async def test_waiting_page_goes_on_by_itself_and_stops_at_the_end(
    page: httpx.AsyncClient, approvals: FakeApprovals, visitor: Visitor, url: str
) -> None:
    approvals.current = question(Stage.WORKING)
    await visitor.page.goto(url + PATH)
    approvals.current = question(Stage.DONE)
    await visitor.wait_for_heading("has its token")
    last = (await page.get(PATH)).headers
    assert "Refresh" not in last


async def test_waiting_can_be_made_to_stop(
    page: httpx.AsyncClient, approvals: FakeApprovals, visitor: Visitor, url: str
) -> None:
    approvals.current = DEVICE_ONLY
    await visitor.page.goto(url + PATH)
    assert "Refresh" in (await page.get(PATH)).headers
    await visitor.press("Stop looking")
    assert "does not look for your approval by itself" in await visitor.text()
    assert "Refresh" not in (await page.get(f"{PATH}?refresh=off")).headers


async def test_way_to_the_provider_and_back(approvals: FakeApprovals, visitor: Visitor, url: str) -> None:
    """The provider is another origin (``localhost``) here, which sends the browser back to us."""
    approvals.address = f"{url.replace('127.0.0.1', 'localhost')}/elsewhere"
    sent: list[str | None] = []

    async def provide(route: object) -> None:
        sent.append(await route.request.header_value("Referer"))  # type: ignore[attr-defined]
        await route.fulfill(status=302, headers={"Location": f"{url}/callback/uid?code=c%22%3E&state=s"})  # type: ignore[attr-defined]

    await visitor.context.route("**/elsewhere", provide)
    await visitor.page.goto(url + PATH)
    approvals.current = question(Stage.CONFIRM)
    await visitor.press("Log in at auth.example.org")
    await visitor.wait_for_heading("Welcome back")
    assert sent == [None]
    assert [asked for asked in approvals.asked if asked[0] == "arrive"] == []  # coming back has changed nothing
    await visitor.draw("returned")
    await visitor.press("Continue")
    await visitor.wait_for_heading("Is this the right account?")
    begun = next(asked for asked in approvals.asked if asked[0] == "begin")
    assert approvals.asked[-2] == ("arrive", "uid", begun[1], {"code": 'c">', "state": "s"})
    assert approvals.asked[-1] == ("question", begun[1])
    assert visitor.complaints == []


@pytest.mark.parametrize("trouble", [Refused("This login was begun in another browser."), KeyferryError("Away.")])
async def test_what_fails_says_so_and_leads_back(
    trouble: KeyferryError, approvals: FakeApprovals, visitor: Visitor, url: str
) -> None:
    await visitor.page.goto(url + PATH)
    approvals.trouble = trouble
    await visitor.press("Log in at auth.example.org")
    assert trouble.message in await visitor.text()
    await visitor.draw(f"problem-{type(trouble).__name__}")
    approvals.trouble = None
    await visitor.press("Back to the question")
    await visitor.wait_for_heading("Log in for nightly-ingest")


async def test_typed_code_is_carried_over(approvals: FakeApprovals, visitor: Visitor, url: str) -> None:
    approvals.current = question(Stage.LOGIN, takes_code=True)
    await visitor.page.goto(url + PATH)
    await visitor.page.get_by_role("textbox", name="E-mail address").fill("a+b@example.org")
    await visitor.page.get_by_role("textbox", name="One-time code").fill(" Xy&=1 ")
    approvals.current = question(Stage.DONE)
    await visitor.press("Use this code")
    await visitor.wait_for_heading("has its token")
    _, browser, email, code = next(asked for asked in approvals.asked if asked[0] == "code")
    assert (email, code.reveal()) == ("a+b@example.org", "Xy&=1")  # type: ignore[attr-defined]
    assert approvals.asked[-1] == ("question", browser)


async def test_overview_keeps_no_token(approvals: FakeApprovals, visitor: Visitor, url: str) -> None:
    approvals.identities = overviews(time.time())
    await visitor.page.goto(url)
    await visitor.draw("entry")
    await visitor.page.get_by_label("Token").fill("wrong")
    await visitor.press("Show")
    assert "This token may not list any identity." in await visitor.text()
    await visitor.page.get_by_label("Token").fill(VIEWER.reveal())
    await visitor.press("Show")
    await visitor.page.get_by_role("table").wait_for()
    text = await visitor.text()
    assert [name for name in ("nightly-ingest", "plate-reader-archive", "beamline") if name not in text] == []
    assert await visitor.context.cookies() == []
    await visitor.draw("overview")
