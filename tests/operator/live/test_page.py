"""A person approves on the page of a cluster: Chromium, Keycloak's own pages, ``keyferry page`` and the broker API."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from tests.operator.live.conftest import GROUP, PATIENCE, Field
from tests.operator.live.pods import LOOPBACK, Pod, serving
from tests.page.walks import LOGIN, SECRET, Houses, build, consent, log_in
from tests.support.asking import NO_TLS
from tests.support.browser import WAIT
from tests.support.browser import visitor as open_visitor
from tests.support.issuer import FaultIssuer
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import Browser

    from tests.support.browser import Visitor
    from tests.support.cluster import Cluster
    from tests.support.keycloak import Keycloak

pytestmark = [
    pytest.mark.browser,
    pytest.mark.cluster,
    pytest.mark.keycloak,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ACCOUNT = "keyferry-page"


@dataclass
class Place:
    """A namespace that an operator looks after, its page, and the people at Keycloak."""

    field: Field
    houses: Houses
    keycloak: Keycloak
    url: str

    def declare(self, name: str, grant: str) -> None:
        """Apply an identity that only Alice may approve."""
        self.field.apply(
            self.field.identity(
                name,
                providerRef={"name": "keycloak"},
                grant={"type": grant},
                scopes=["openid", "email", "profile"],
                expectedSubject={"email": self.houses.alice.email},
            )
        )

    async def link(self, name: str) -> str:
        """Return the address of the question in the status of an identity that is not ready."""
        await self.field.until(lambda: self.field.status(name).get("approval", {}).get("page"))
        assert self.field.condition(name)["status"] == "False"
        return str(self.field.status(name)["approval"]["page"])

    def waiting(self, name: str) -> asyncio.Task[str]:
        """Begin ``kubectl wait`` for an identity, as a person does beside the browser."""
        arguments = [
            "wait",
            f"si/{name}",
            "-n",
            self.field.namespace,
            "--for=condition=Ready",
            f"--timeout={PATIENCE}s",
        ]
        return asyncio.create_task(asyncio.to_thread(self.field.cluster.kubectl, *arguments))

    def check(self, name: str) -> None:
        """Look at what was published, and who is said to have approved it."""
        assert self.field.status(name)["authorizedAs"]["email"] == self.houses.alice.email
        assert "approval" not in self.field.status(name)
        assert self.keycloak.introspect(self.field.token(name), self.houses.realm.name)["active"] is True

    def viewer(self, name: str, *, may_list: bool) -> str:
        """Return the token of a service account."""
        api, where = self.field.cluster.api, self.field.namespace
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": where}}
        api.create(account)
        if may_list:
            group = "rbac.authorization.k8s.io"
            rule = {"apiGroups": ["keyferry.dev"], "resources": ["serviceidentities"], "verbs": ["list"]}
            role = {"metadata": {"name": name, "namespace": where}, "apiVersion": f"{group}/v1"}
            api.create({**role, "kind": "Role", "rules": [rule]})
            subject = {"kind": "ServiceAccount", "name": name, "namespace": where}
            reference = {"apiGroup": group, "kind": "Role", "name": name}
            api.create({**role, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]})
        return self.field.cluster.kubectl("create", "token", name, "-n", where).strip()


@pytest_asyncio.fixture(loop_scope="session")
async def place(definitions: Cluster, keycloak: Keycloak, tmp_path: Path) -> AsyncIterator[Place]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with contextlib.AsyncExitStack() as stack:
        team, home = (stack.enter_context(definitions.namespace(name)) for name in ("team", "keyferry"))
        issuer = await stack.enter_async_context(FaultIssuer())
        field = Field(definitions, team, home, issuer, tmp_path)
        houses = await asyncio.to_thread(build, keycloak, team, [f"{url}/callback/*"])
        field.apply(_provider(houses), field.secret("client", houses.realm.issuer().split("/")[2], secret=SECRET))
        settings = replace(LOOPBACK, page_account=ACCOUNT)
        site = await stack.enter_async_context(serving(field, settings, page_url=url))
        pod = Pod.create(field, "page-1", inject=None, account=ACCOUNT, namespace=home)
        (tmp_path / "token").write_text(pod.token())
        (tmp_path / "ca.crt").write_text(site.operator.broker.certificates.bundle)  # type: ignore[union-attr]
        await stack.enter_async_context(_page(port, site.url, url, tmp_path))
        yield Place(field, houses, keycloak, url)


def _provider(houses: Houses) -> dict[str, Any]:
    secret = {"secretKeyRef": {"name": "client", "key": "secret"}}
    client = {"id": LOGIN, "authentication": "ClientSecretBasic", "secretsFrom": [secret]}
    spec = {"type": "OAuth", "oauth": {"issuer": houses.realm.issuer(), "client": client}}
    return {"apiVersion": GROUP, "kind": "TokenProvider", "metadata": {"name": "keycloak"}, "spec": spec}


@contextlib.asynccontextmanager
async def _page(port: int, broker: str, url: str, directory: Path) -> AsyncIterator[None]:
    """Run ``keyferry page``; at its end it must not have said anything of a question."""
    options = {
        "listen": f"127.0.0.1:{port}",
        "page-url": url,
        "broker": broker,
        "token": directory / "token",
        "ca": directory / "ca.crt",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYFERRY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyferry", "page", *arguments, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        await _serves(url)
        yield
        process.terminate()
        _, said = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 0
        assert "approve/" not in said.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _serves(url: str) -> None:
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"{url}/readyz")).status_code == httpx.codes.OK:
                    return
            await asyncio.sleep(0.2)


@pytest_asyncio.fixture(loop_scope="session")
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    async with open_visitor(browser, java_script_enabled=True) as opened:
        yield opened


async def test_identities_of_a_cluster_get_their_tokens_by_approval(place: Place, visitor: Visitor) -> None:
    place.declare("device", "DeviceCode")
    place.declare("login", "AuthorizationCode")
    await _approve_device(place, visitor)
    await _log_in(place, visitor)
    await _look_at_the_list(place, visitor)
    told = place.field.cluster.kubectl("get", "events", "-A", "-o", "yaml")
    assert "/approve/" not in told
    assert [text for text in visitor.complaints if "Content Security Policy" in text] == []


async def _approve_device(place: Place, visitor: Visitor) -> None:
    link, ready = await place.link("device"), place.waiting("device")
    await visitor.page.goto(link)
    await visitor.wait_for_heading("Approve device")
    assert f"Secret {place.field.namespace}/device" in await visitor.text()
    async with visitor.context.expect_page(timeout=WAIT) as opened:
        await visitor.press("Open 127.0.0.1")
    tab = await opened.value
    await log_in(tab, place.houses.alice)
    await consent(tab)
    await visitor.wait_for_heading("device has its token")
    assert "condition met" in await ready
    place.check("device")


async def _log_in(place: Place, visitor: Visitor) -> None:
    link, ready = await place.link("login"), place.waiting("login")
    await visitor.context.clear_cookies()
    await visitor.page.goto(link)
    await visitor.press("Log in at 127.0.0.1")
    await log_in(visitor.page, place.houses.alice)
    await visitor.wait_for_heading("Welcome back")
    await visitor.press("Continue")
    await visitor.wait_for_heading("Is this the right account?")
    text = await visitor.text()
    assert place.houses.alice.email in text
    assert f"Secret {place.field.namespace}/login" in text
    await visitor.draw("cluster-confirm")
    assert place.field.target("login") is None
    await visitor.press("Confirm")
    await visitor.wait_for_heading("login has its token")
    assert "condition met" in await ready
    place.check("login")


async def _look_at_the_list(place: Place, visitor: Visitor) -> None:
    for name, may_list, said in (("nobody", False, "may not list"), ("viewer", True, "Fresh")):
        token = await asyncio.to_thread(place.viewer, name, may_list=may_list)
        await visitor.page.goto(place.url)
        await visitor.page.get_by_label("Token").fill(token)
        await visitor.press("Show")
        await visitor.page.get_by_text(said).first.wait_for(timeout=WAIT)
    assert await visitor.page.get_by_role("row").count() == 3
    await visitor.draw("cluster-overview")
