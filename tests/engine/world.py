"""A broker, an issuer that fails on command, and resource files: what the tests of this package play with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.state import User
from keyferry.io.addresses import HostRule
from keyferry.model import ObjectKey
from keyferry.run.broker import LocalBroker
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyferry.engine import Event, IdentityStatus
    from keyferry.errors import Reason
    from tests.engine.clocks import FastClock
    from tests.support.issuer import FaultIssuer, RequestRecord

API = "keyferry.dev/v1alpha1"
PATIENCE = 300.0
"""Seconds that a test waits for what must happen at last: generous, since machines are slow."""
SECRET = "s3cret/of the+bot"
PASSWORD = "pa55 & word%"

Document = dict[str, Any]


async def until(what: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until `what` is true."""
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


@dataclass
class Told:
    """All that people were told."""

    statuses: list[IdentityStatus] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    forgotten: list[ObjectKey] = field(default_factory=list)

    def report(self, status: IdentityStatus) -> None:
        self.statuses.append(status)

    def forget(self, key: ObjectKey) -> None:
        self.forgotten.append(key)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def words(self, name: str = "") -> list[str]:
        """Return the words of the events, of one identity where it is named."""
        return [e.event for e in self.events if not name or (e.key is not None and e.key.name == name)]


def key(name: str) -> ObjectKey:
    return ObjectKey("default", name)


def reference(name: str, entry: str) -> Document:
    return {"secretKeyRef": {"name": name, "key": entry}}


def secret(name: str, /, **data: str) -> Document:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def resource(kind: str, name: str, spec: Document) -> Document:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def client_of(name: str, **fields: Any) -> Document:
    return {"id": name, "secretsFrom": [reference(name, "secret")]} | fields


def identity(name: str, provider: str = "idp", **spec: Any) -> Document:
    defaults = {"providerRef": {"name": provider}, "grant": {"type": "ClientCredentials"}}
    return resource("ServiceIdentity", name, defaults | spec)


REFRESH = {"type": "RefreshToken", "refreshToken": {"from": reference("seed", "token")}}
PASSWORD_GRANT = {
    "type": "Password",
    "password": {"usernameFrom": reference("person", "name"), "passwordFrom": reference("person", "password")},
}


def exchange_of(subject: str) -> Document:
    return {"type": "TokenExchange", "tokenExchange": {"subject": {"identityRef": {"name": subject}}}}


class World:
    """One test's directories and issuer; `broker()` starts a broker on them, again and again."""

    def __init__(self, base: Path, issuer: FaultIssuer, clock: FastClock) -> None:
        self.base, self.issuer, self.clock = base, issuer, clock
        self.resources, self.out, self.state = base / "resources", base / "out", base / "state"
        self.resources.mkdir()
        self.told = Told()
        self.secrets = SecretSettings()
        self.running: LocalBroker | None = None
        self.add_client("bot")
        issuer.service.add_user(User("ada", PASSWORD, "ada@example.org"))

    def add_client(self, name: str, **fields: Any) -> Client:
        defaults = {
            "secrets": (SECRET,),
            "methods": (AuthMethod.BASIC,),
            "grants": tuple(Grant),
            "scopes": ("read", "write"),
        }
        return self.issuer.clients.add(Client(name, **(defaults | fields)))

    def provider(self, name: str = "idp", *, limits: Document | None = None, **oauth: Any) -> Document:
        filled = {"issuer": self.issuer.issuer, "client": client_of("bot")} | oauth
        spec: Document = {"type": "OAuth", "oauth": {k: v for k, v in filled.items() if v is not None}}
        return resource("TokenProvider", name, spec | ({"limits": limits} if limits else {}))

    def write(self, file: str, *documents: Document) -> Path:
        """Write a resource file as an editor does: whole."""
        return self.write_text(file, yaml.safe_dump_all(documents))

    def write_text(self, file: str, text: str) -> Path:
        path = self.resources / file
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text)
        temporary.rename(path)
        return path

    def basics(self, **oauth: Any) -> None:
        """Write a provider and its client's secret."""
        self.write("provider.yaml", self.provider(**oauth), secret("bot", secret=SECRET))

    @contextlib.asynccontextmanager
    async def broker(self, *, page_url: str = "", **options: Any) -> AsyncIterator[LocalBroker]:
        settings = RunSettings(
            (self.resources,),
            self.out,
            self.state,
            self.secrets,
            allowed_hosts=(HostRule.parse("127.0.0.1"), HostRule.parse("localhost")),
            page_url=page_url,
        )
        async with LocalBroker(settings, clock=self.clock, **({"renew_interval": 0.0} | options)) as broker:
            broker.reporter.listeners.append(self.told)
            await broker.start()
            self.running = broker
            yield broker

    def status(self, name: str) -> IdentityStatus:
        assert self.running is not None
        return self.running.engine.status(key(name))

    def busy(self, name: str) -> bool:
        """Tell whether the engine works on an identity just now."""
        assert self.running is not None
        return self.running.engine.roster.entries[key(name)].busy

    def shown(self, name: str) -> Reason:
        return self.status(name).shown_reason(self.clock.now())

    def declared(self, name: str) -> bool:
        assert self.running is not None
        return key(name) in self.running.engine.roster.entries

    def renew(self, name: str) -> float:
        assert self.running is not None
        return self.running.engine.renew(key(name))

    def file(self, name: str, file: str = "token") -> Path:
        return self.out / "default" / name / file

    def token(self, name: str) -> str:
        """Return the published token, or nothing."""
        path = self.file(name)
        return path.read_text() if path.exists() else ""

    async def fresh(self, *names: str, revision: int = 1) -> None:
        """Wait until identities are issued, published and of a revision."""

        def done() -> bool:
            now = self.clock.now()
            return all(
                self.declared(name)
                and (status := self.status(name)).revision >= revision
                and status.ready(now)
                and status.failure_count == 0
                and not self.busy(name)
                and bool(self.token(name))
                for name in names
            )

        await until(done)

    def requests(self, path: str = "/token") -> list[RequestRecord]:
        return [request for request in self.issuer.requests if request.path == path]

    def valid_tokens(self) -> dict[str, bool]:
        """Return every access token that was issued, and whether it is good now."""
        return {token.value: self.issuer.service.active(token) for token in self.issuer.issued}


def tree(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, but one that vanishes meanwhile."""
    found: dict[str, bytes] = {}
    for place, _, names in os.walk(directory):
        for name in names:
            path = Path(place) / name
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found
