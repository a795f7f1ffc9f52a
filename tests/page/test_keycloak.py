"""People walk through Keycloak's own pages in a real browser, from a pending identity of ``keyferry run`` to a token.

One broker has an identity for every walk; what becomes of each is seen on the page, in the status and in the files.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import yaml

from keyferry.run.control import ControlClient
from keyferry.run.status_json import decode_status
from tests.page.walks import CONSENT, HURRIED, LOGIN, SECRET, Houses, build, consent, log_in
from tests.support.browser import WAIT
from tests.support.browser import visitor as open_visitor
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from keyferry.engine import IdentityStatus
    from tests.support.browser import Visitor
    from tests.support.keycloak import Keycloak

pytestmark = [
    pytest.mark.browser,
    pytest.mark.keycloak,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
]

PATIENCE = 300.0
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
    url: str
    base: Path
    hurried: str = ""
    """Address of the question that lapses within seconds."""

    def is_up(self) -> bool:
        return (self.base / "state" / "control.sock").exists()

    async def status(self, name: str) -> IdentityStatus:
        """Ask the broker, as ``keyferry status`` does."""

        def ask() -> list[dict[str, Any]]:
            with ControlClient(self.base / "state", patience=PATIENCE) as client:
                found: list[dict[str, Any]] = client.statuses()["identities"]
                return found

        return next(decode_status(each) for each in await asyncio.to_thread(ask) if each["name"] == name)

    async def link(self, name: str) -> str:
        """Return the address of an identity's question; while it has one, it waits for a person."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = await self.status(name)
                if status.prompt is not None and status.prompt.page:
                    assert not status.ready(time.time())
                    return status.prompt.page
                await asyncio.sleep(0.5)

    async def ready(self, name: str, person: str) -> None:
        """Wait until the identity is ready, by approval of ``person``, with a token that Keycloak calls live."""
        async with asyncio.timeout(PATIENCE):
            while True:
                status = await self.status(name)
                if status.ready(time.time()):
                    break
                await asyncio.sleep(0.5)
        assert status.authorized_as is not None
        assert status.authorized_as.email == person
        token = (self.base / "out" / "default" / name / "token").read_text()
        realm = self.houses.forwarding if name == "forwarded" else self.houses.realm
        assert self.keycloak.introspect(token, realm.name)["active"] is True

    def has_token(self, name: str) -> bool:
        return (self.base / "out" / "default" / name / "token").exists()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scene(keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    base, port = tmp_path_factory.mktemp("page"), free_port()
    url = f"http://127.0.0.1:{port}"
    found = Scene(
        await asyncio.to_thread(build, keycloak, f"approvals-{secrets.token_hex(4)}", [f"{url}/callback/*"]),
        keycloak,
        url,
        base,
    )
    (base / "resources.yaml").write_text(yaml.safe_dump_all(_resources(found.houses)))
    options = {"--state": base / "state", "--out": base / "out", "--page": f"127.0.0.1:{port}"}
    arguments = [text for name, value in options.items() for text in (name, str(value))]
    arguments += ["--allow-host", "127.0.0.1", "--allow-host", "localhost"]
    with (base / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "keyferry", "run", str(base / "resources.yaml"), *arguments, stdout=log, stderr=log
        )
        try:
            async with asyncio.timeout(PATIENCE):
                while not found.is_up():  # another process gets ready
                    assert process.returncode is None
                    await asyncio.sleep(0.1)
            found.hurried = await found.link("device-lapsed")
            yield found
            process.terminate()
            await asyncio.wait_for(process.wait(), PATIENCE)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    _check_log((base / "log").read_text())


def _check_log(log: str) -> None:
    """No address of a question, no code and no token is in what a broker says."""
    assert "/approve/" not in log
    assert SECRET not in log


def _resources(houses: Houses) -> list[dict[str, Any]]:
    group = {"apiVersion": "keyferry.dev/v1alpha1"}
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
        documents.append({**group, "kind": "TokenProvider", "metadata": {"name": name}, "spec": spec})
    for name, (grant, provider) in IDENTITIES.items():
        spec = {"providerRef": {"name": provider}, "grant": {"type": grant}, "scopes": ["openid", "email", "profile"]}
        if name in FOR_ALICE:
            spec["expectedSubject"] = {"email": houses.alice.email}
        documents.append({**group, "kind": "ServiceIdentity", "metadata": {"name": name}, "spec": spec})
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
    assert not scene.has_token("device-denied")
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
    assert not scene.has_token("device-wrong")


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
    assert not scene.has_token("login")
    await visitor.press("Continue")
    await visitor.wait_for_heading("Is this the right account?")
    text = await visitor.text()
    assert [said for said in (scene.houses.alice.email, "Alice Tester", "login", "files in") if said not in text] == []
    await visitor.draw("keycloak-confirm")
    assert not scene.has_token("login")
    await visitor.press("Confirm")
    await visitor.wait_for_heading("login has its token")
    await visitor.draw("keycloak-done")
    await scene.ready("login", scene.houses.alice.email)
    token = (scene.base / "out" / "default" / "login" / "token").read_text()
    await visitor.page.goto(callback)
    await visitor.press("Continue")
    await visitor.wait_for_heading("This was refused")
    await visitor.draw("keycloak-replayed")
    assert (scene.base / "out" / "default" / "login" / "token").read_text() == token


async def test_login_is_thrown_away(scene: Scene, visitor: Visitor) -> None:
    await come_back(visitor, scene, "declined")
    await visitor.press("Continue")
    await visitor.press("No, throw the login away")
    await visitor.wait_for_heading("declined got no token")
    assert not scene.has_token("declined")


async def test_login_is_denied_at_the_provider(scene: Scene, visitor: Visitor) -> None:
    await visitor.page.goto(await scene.link("denied"))
    await visitor.press("Log in at 127.0.0.1")
    await log_in(visitor.page, scene.houses.alice)
    await consent(visitor.page, yes=False)
    await visitor.wait_for_heading("Welcome back")
    await visitor.press("Continue")
    await visitor.wait_for_heading("denied got no token")
    await visitor.draw("keycloak-denied")
    assert not scene.has_token("denied")


async def test_login_of_the_wrong_person_is_thrown_away(scene: Scene, visitor: Visitor) -> None:
    await come_back(visitor, scene, "wrong", bob=True)
    await visitor.press("Continue")
    await visitor.wait_for_heading("wrong got no token")
    assert scene.houses.alice.email in await visitor.text()
    await visitor.draw("keycloak-wrong")
    assert not scene.has_token("wrong")


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
    assert not scene.has_token("device-lapsed")
