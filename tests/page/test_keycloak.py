"""People walk through Keycloak's own pages in a real browser, from a pending identity of ``keyferry run`` to a token.

One broker has an identity for every walk; what becomes of each is seen on the page, in the status and in the files.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.page.running import GROUP, RunningBroker
from tests.page.walks import CONSENT, HURRIED, LOGIN, SECRET, Houses, build, consent, log_in
from tests.support.browser import WAIT
from tests.support.browser import visitor as open_visitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tests.support.browser import Visitor
    from tests.support.keycloak import Keycloak

pytestmark = [
    pytest.mark.browser,
    pytest.mark.keycloak,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
]

DEVICE, CODE = "DeviceCode", "AuthorizationCode"
IDENTITIES: dict[str, tuple[str, str]] = {
    "device": (DEVICE, LOGIN),
    "device-denied": (DEVICE, LOGIN),
    "device-lapsed": (DEVICE, HURRIED),
    "device-wrong": (DEVICE, LOGIN),
    "login": (CODE, LOGIN),
    "declined": (CODE, LOGIN),
    "denied": (CODE, CONSENT),
    "wrong": (CODE, LOGIN),
    "elsewhere": (CODE, LOGIN),
    "forged": (CODE, LOGIN),
    "twice": (CODE, LOGIN),
    "forwarded": (CODE, "forwarding"),
}
FOR_ALICE = ("device-wrong", "wrong", "login")


@dataclass
class Scene:
    """A running broker with its page, and the people of the realm."""

    houses: Houses
    keycloak: Keycloak
    broker: RunningBroker
    hurried: str = ""
    """Address of the question that lapses within a minute."""

    async def link(self, name: str) -> str:
        """Return the address of a question."""
        return await self.broker.link(name)

    async def ready(self, name: str, person: str) -> None:
        """Wait until the identity is ready, by approval of ``person``, with a token that Keycloak calls live."""
        account = (await self.broker.ready(name)).authorized_as
        assert account is not None
        assert account.email == person
        realm = self.houses.forwarding if name == "forwarded" else self.houses.realm
        assert self.keycloak.introspect(self.broker.token(name), realm.name)["active"] is True


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scene(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    broker = RunningBroker.prepare(tmp_path_factory.mktemp("page"))
    # A name of its own, for several workers may each set one up.
    name = f"approvals-{secrets.token_hex(4)}"
    houses = await asyncio.to_thread(build, keycloak, name, [f"{broker.url}/callback/*"])
    async with broker.running(_resources(houses)):
        yield Scene(houses, keycloak, broker, await broker.link("device-lapsed"))
    assert SECRET not in broker.log()


def _resources(houses: Houses) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "client"}, "stringData": {"secret": SECRET}}
    ]
    for name, realm, client in (
        (LOGIN, houses.realm, LOGIN),
        (CONSENT, houses.realm, CONSENT),
        (HURRIED, houses.realm, HURRIED),
        ("forwarding", houses.forwarding, LOGIN),
    ):
        secret = {"secretKeyRef": {"name": "client", "key": "secret"}}
        known = {"id": client, "authentication": "ClientSecretBasic", "secretsFrom": [secret]}
        spec = {"type": "OAuth", "oauth": {"issuer": realm.issuer(), "client": known}}
        documents.append({**GROUP, "kind": "TokenProvider", "metadata": {"name": name}, "spec": spec})
    for name, (grant, provider) in IDENTITIES.items():
        spec = {"providerRef": {"name": provider}, "grant": {"type": grant}, "scopes": ["openid", "email", "profile"]}
        if name in FOR_ALICE:
            spec["expectedSubject"] = {"email": houses.alice.email}
        documents.append({**GROUP, "kind": "ServiceIdentity", "metadata": {"name": name}, "spec": spec})
    return documents


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    """Open a browser as people have it: Keycloak's pages may have their scripts."""
    async with open_visitor(browser, java_script_enabled=True) as opened:
        yield opened
        own = [text for text in opened.complaints if "Content Security Policy" in text]
        assert own == []


# --- device codes -----------------------------------------------------------------------------------------------------


async def approve(visitor: Visitor, scene: Scene, *, yes: bool = True, bob: bool = False) -> None:
    """Follow the page's button into a new tab, and answer there."""
    async with visitor.context.expect_page(timeout=WAIT) as opened:
        await visitor.press("Open 127.0.0.1")
    tab = await opened.value
    await log_in(tab, scene.houses.bob if bob else scene.houses.alice)
    await consent(tab, yes=yes)
    await tab.locator("text=Device Login").first.wait_for(timeout=WAIT)
    await tab.close()


async def test_device_code_is_approved(scene: Scene, visitor: Visitor) -> None:
    await visitor.page.goto(await scene.link("device"))
    await visitor.wait_for_heading("Approve device")
    await visitor.draw("keycloak-device")
    await approve(visitor, scene)
    await visitor.wait_for_heading("device has its token")  # by itself: nobody touches the page
    await scene.ready("device", scene.houses.alice.email)


async def test_device_code_is_denied_and_asked_again(scene: Scene, visitor: Visitor) -> None:
    await visitor.page.goto(await scene.link("device-denied"))
    before = await visitor.page.locator(".code").inner_text()
    await approve(visitor, scene, yes=False)
    await visitor.wait_for_heading("device-denied got no token")
    await visitor.draw("keycloak-device-denied")
    assert not scene.broker.token("device-denied")
    await visitor.press("Ask again")
    await visitor.wait_for_heading("Approve device-denied")
    assert await visitor.page.locator(".code").inner_text() != before
    await approve(visitor, scene)
    await visitor.wait_for_heading("device-denied has its token")
    await scene.ready("device-denied", scene.houses.alice.email)


async def test_device_code_is_approved_by_the_wrong_person(scene: Scene, visitor: Visitor) -> None:
    await visitor.page.goto(await scene.link("device-wrong"))
    await approve(visitor, scene, bob=True)
    await visitor.wait_for_heading("device-wrong got no token")
    assert scene.houses.alice.email in await visitor.text()
    await visitor.draw("keycloak-device-wrong")
    assert not scene.broker.token("device-wrong")


# --- logins -----------------------------------------------------------------------------------------------------------


async def come_back(visitor: Visitor, scene: Scene, name: str, *, bob: bool = False) -> str:
    """Log in up to where the provider sends the browser back; return that address."""
    await visitor.page.goto(await scene.link(name))
    await visitor.press("Log in at 127.0.0.1")
    await log_in(visitor.page, scene.houses.bob if bob else scene.houses.alice)
    await visitor.wait_for_heading("Welcome back")
    return visitor.page.url


async def test_login_is_confirmed_and_its_callback_is_good_once(scene: Scene, visitor: Visitor) -> None:
    callback = await come_back(visitor, scene, "login")
    await visitor.draw("keycloak-returned")
    assert not scene.broker.token("login")
    await visitor.press("Continue")
    await visitor.wait_for_heading("Is this the right account?")
    text = await visitor.text()
    assert [said for said in (scene.houses.alice.email, "Alice Tester", "login", "files in") if said not in text] == []
    await visitor.draw("keycloak-confirm")
    assert not scene.broker.token("login")
    await visitor.press("Confirm")
    await visitor.wait_for_heading("login has its token")
    await visitor.draw("keycloak-done")
    await scene.ready("login", scene.houses.alice.email)
    token = scene.broker.token("login")
    await visitor.page.goto(callback)
    await visitor.press("Continue")
    await visitor.wait_for_heading("This was refused")
    await visitor.draw("keycloak-replayed")
    assert scene.broker.token("login") == token


async def test_login_is_thrown_away(scene: Scene, visitor: Visitor) -> None:
    await come_back(visitor, scene, "declined")
    await visitor.press("Continue")
    await visitor.press("No, throw the login away")
    await visitor.wait_for_heading("declined got no token")
    assert not scene.broker.token("declined")


async def test_login_is_denied_at_the_provider(scene: Scene, visitor: Visitor) -> None:
    await visitor.page.goto(await scene.link("denied"))
    await visitor.press("Log in at 127.0.0.1")
    await log_in(visitor.page, scene.houses.alice)
    await consent(visitor.page, yes=False)
    await visitor.wait_for_heading("Welcome back")
    await visitor.press("Continue")
    await visitor.wait_for_heading("denied got no token")
    await visitor.draw("keycloak-denied")
    assert not scene.broker.token("denied")


async def test_login_of_the_wrong_person_is_thrown_away(scene: Scene, visitor: Visitor) -> None:
    await come_back(visitor, scene, "wrong", bob=True)
    await visitor.press("Continue")
    await visitor.wait_for_heading("wrong got no token")
    assert scene.houses.alice.email in await visitor.text()
    await visitor.draw("keycloak-wrong")
    assert not scene.broker.token("wrong")


async def test_login_cannot_be_finished_in_another_browser(scene: Scene, visitor: Visitor, browser: Browser) -> None:
    callback = await come_back(visitor, scene, "elsewhere")
    async with open_visitor(browser) as mallory:
        await mallory.page.goto(callback)
        await mallory.press("Continue")
        await mallory.wait_for_heading("This was refused")
        assert "another browser" in await mallory.text()
        await mallory.draw("keycloak-elsewhere")
        await visitor.press("Continue")  # the one that began it may go on
        await visitor.wait_for_heading("Is this the right account?")
        await mallory.page.goto(await scene.link("elsewhere"))
        assert scene.houses.alice.email not in await mallory.text()
    await visitor.press("Confirm")
    await scene.ready("elsewhere", scene.houses.alice.email)


async def test_forged_state_is_refused(scene: Scene, visitor: Visitor) -> None:
    callback = await come_back(visitor, scene, "forged")
    where, _, _ = callback.partition("?")
    await visitor.page.goto(f"{where}?state={'f' * 43}&code=stolen")
    await visitor.press("Continue")
    await visitor.wait_for_heading("This was refused")
    await visitor.draw("keycloak-forged")
    await visitor.page.goto(callback)
    await visitor.press("Continue")  # it did no harm to the real one
    await visitor.wait_for_heading("Is this the right account?")


async def test_of_two_who_begin_the_later_one_finishes(scene: Scene, visitor: Visitor, browser: Browser) -> None:
    await come_back(visitor, scene, "twice")
    async with open_visitor(browser, java_script_enabled=True) as second:
        await come_back(second, scene, "twice", bob=True)
        await visitor.press("Continue")
        await visitor.wait_for_heading("This was refused")
        await second.press("Continue")
        await second.press("Confirm")
        await second.wait_for_heading("twice has its token")
    await scene.ready("twice", scene.houses.bob.email)


async def test_provider_may_forward_to_another(scene: Scene, visitor: Visitor) -> None:
    await come_back(visitor, scene, "forwarded")
    assert len({host for host in visitor.hosts() if host.startswith(("127.0.0.1", "localhost"))}) == 3
    await visitor.press("Continue")
    await visitor.press("Confirm")
    await visitor.wait_for_heading("forwarded has its token")
    await scene.ready("forwarded", scene.houses.alice.email)


# It goes last, for it takes its time.
async def test_device_code_lapses(scene: Scene, visitor: Visitor) -> None:
    await visitor.page.goto(scene.hurried)
    await visitor.wait_for_heading("device-lapsed got no token")
    assert "Ask again" in await visitor.text()
    assert not scene.broker.token("device-lapsed")
