"""Logging in through the page at a real Keycloak: its login form, PKCE, pushed requests, ``iss`` in the callback."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
import pytest
import yaml

from keyferry.engine.links import named_uid
from keyferry.errors import Reason, Refused
from keyferry.question import Account, Stage
from keyferry.run.broker import LocalBroker
from keyferry.secret import SecretValue
from keyferry.spec.identity import ProviderKind
from tests.real.engine_support import Place, key_of, published, until, until_revision, write

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.question import Question
    from tests.support.keycloak import Keycloak, Realm

CLIENT, SECRET = "page-app", "s3cret of the page"
PAGE = "https://keyferry.example.org"
BROWSER = SecretValue("this one browser")
UID = named_uid(ProviderKind.TOKEN_PROVIDER, key_of("keycloak"))
EVE = "eve"


@dataclass
class Visit:
    """A broker with a page, and a person whose browser is scripted."""

    broker: LocalBroker
    realm: Realm
    link: SecretValue

    async def question(self) -> Question:
        return await self.broker.engine.approvals.question(self.link, BROWSER)

    async def begin(self) -> str:
        return await self.broker.engine.approvals.begin(self.link, BROWSER)

    async def arrive(self, callback: str, **changes: str | None) -> Question:
        given: dict[str, str | None] = {**dict(parse_qsl(urlsplit(callback).query)), **changes}
        parameters = {name: value for name, value in given.items() if value is not None}
        assert await self.broker.engine.approvals.arrive(UID, BROWSER, parameters) == self.link
        return await self.question()


def log_in(address: str, user: str, password: str) -> str:
    """Fill in Keycloak's login form as a browser does; return where it sends the browser back to."""
    cookies: dict[str, str] = {}
    form = _visit("GET", address, cookies)
    action = re.search(r'<form[^>]*id="kc-form-login"[^>]*action="([^"]+)"', form.text)
    assert action, form.text
    sent = _visit("POST", html.unescape(action[1]), cookies, {"username": user, "password": password})
    assert sent.status_code == 302, sent.text
    return sent.headers["location"]


def _visit(method: str, address: str, cookies: dict[str, str], data: dict[str, str] | None = None) -> httpx.Response:
    """Send a request and follow redirects within Keycloak.

    Its cookies are marked Secure: a browser sends them to the loopback all the same, and httpx does not.
    """
    while True:
        header = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
        answer = httpx.request(method, address, headers=header, data=data, timeout=60)
        for cookie in answer.headers.get_list("set-cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            cookies[name] = value
        onward = urljoin(address, answer.headers.get("location", address))
        if answer.status_code != 302 or onward.startswith(PAGE):
            return answer
        method, address, data = "GET", onward, None


def prepare(keycloak: Keycloak, realm: Realm, place: Place, **identity: Any) -> None:
    """Register the client and a second person, and write the resources."""
    keycloak.admin.put_client(
        realm.name,
        {
            "clientId": CLIENT,
            "secret": SECRET,
            "protocol": "openid-connect",
            "publicClient": False,
            "standardFlowEnabled": True,
            "redirectUris": [f"{PAGE}/callback/{UID}"],
            "attributes": {"pkce.code.challenge.method": "S256", "require.pushed.authorization.requests": "true"},
        },
    )
    person = {"enabled": True, "email": "eve@example.org", "emailVerified": True, "firstName": "E", "lastName": "Ve"}
    credentials = [{"type": "password", "value": EVE, "temporary": False}]
    keycloak.admin.put_user(realm.name, {"username": EVE, "credentials": credentials, **person})
    client = {"id": CLIENT, "secretsFrom": [{"secretKeyRef": {"name": "page-app", "key": "client_secret"}}]}
    endpoints = {"pushedAuthorizationRequest": realm.endpoint("ext/par/request")}
    oauth = {"issuer": realm.issuer(), "client": client, "endpoints": endpoints}
    spec = {"providerRef": {"name": "keycloak"}, "grant": {"type": "AuthorizationCode"}, "scopes": ["openid", "email"]}
    documents = [
        ("TokenProvider", "keycloak", {"type": "OAuth", "oauth": oauth}),
        ("ServiceIdentity", "report", spec | identity),
    ]
    place.resources.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump_all(
        {"apiVersion": "keyferry.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": body}
        for kind, name, body in documents
    )
    write(place.resources / "login.yaml", text)
    place.add_secrets({"page-app": {"client_secret": SECRET}})


async def visit(broker: LocalBroker, realm: Realm) -> Visit:
    await broker.start()
    await until(lambda: broker.engine.status(key_of("report")).prompt is not None, "a person is asked")
    prompt = broker.engine.status(key_of("report")).prompt
    assert prompt is not None
    return Visit(broker, realm, SecretValue(prompt.page.rpartition("/")[2]))


@pytest.mark.keycloak
async def test_a_person_logs_in_at_keycloak_and_the_session_goes_on(
    keycloak: Keycloak, keycloak_realm: Realm, tmp_path: Path
) -> None:
    alice = keycloak_realm.material.alice
    place = Place(tmp_path)
    prepare(keycloak, keycloak_realm, place, expectedSubject={"email": alice.email})
    async with LocalBroker(replace(place.settings, page_url=PAGE), renew_interval=0.0) as broker:
        person = await visit(broker, keycloak_realm)
        wrong = await person.arrive(log_in(await person.begin(), EVE, EVE))
        assert wrong.stage is Stage.ENDED
        assert alice.email in wrong.message
        await until(
            lambda: broker.engine.status(key_of("report")).reason is Reason.WRONG_SUBJECT, "the wrong person is told"
        )
        assert (await broker.engine.approvals.ask_again(person.link)).stage is Stage.LOGIN

        address = await person.begin()
        assert dict(parse_qsl(urlsplit(address).query)).keys() == {"client_id", "request_uri"}, "it was pushed"
        callback = log_in(address, alice.name, alice.password)
        assert "iss" in dict(parse_qsl(urlsplit(callback).query)), "Keycloak names itself (RFC 9207)"
        for changes in ({"iss": None}, {"iss": "https://elsewhere.example.org"}, {"state": "forged"}):
            with pytest.raises(Refused):
                await person.arrive(callback, **changes)
        seen = await person.arrive(callback)
        assert seen.stage is Stage.CONFIRM
        assert seen.account == Account(keycloak_realm.subject_of(alice), alice.email, "Alice Tester")
        with pytest.raises(Refused):
            await person.arrive(callback)
        assert broker.engine.status(key_of("report")).revision == 0
        assert (await broker.engine.approvals.confirm(person.link, BROWSER)).stage is Stage.DONE
        first = published(broker, "report")
        assert keycloak.introspect(first["access_token"], keycloak_realm.name)["sub"] == seen.account.subject
        broker.engine.renew(key_of("report"))
        await until_revision(broker, "report", 2)
        assert published(broker, "report")["access_token"] != first["access_token"]


@pytest.mark.keycloak
async def test_a_declined_login_ends_its_session_at_keycloak(
    keycloak: Keycloak, keycloak_realm: Realm, tmp_path: Path
) -> None:
    alice = keycloak_realm.material.alice
    place = Place(tmp_path)
    prepare(keycloak, keycloak_realm, place)
    subject = keycloak_realm.subject_of(alice)

    def sessions() -> list[dict[str, Any]]:
        found = keycloak.admin.sessions(keycloak_realm.name, subject)
        return [session for session in found if CLIENT in session["clients"].values()]

    async with LocalBroker(replace(place.settings, page_url=PAGE)) as broker:
        person = await visit(broker, keycloak_realm)
        before = len(sessions())
        assert (await person.arrive(log_in(await person.begin(), alice.name, alice.password))).stage is Stage.CONFIRM
        assert len(sessions()) == before + 1
        assert (await broker.engine.approvals.decline(person.link, BROWSER)).stage is Stage.ENDED
        await until(lambda: len(sessions()) == before, "Keycloak knows no such session any more")
        assert broker.engine.status(key_of("report")).revision == 0
