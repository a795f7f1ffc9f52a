"""The whole engine over the example files, as a person runs it, and a proxy that sees what it asks of a real server."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import aiohttp
import yaml
from aiohttp import web

from keyferry.io.addresses import HostRule
from keyferry.model import ObjectKey
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from keyferry.engine import Event, IdentityStatus
    from keyferry.engine.status import Prompt
    from keyferry.run.broker import LocalBroker

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 300.0
"""Seconds after which a wait is given up; a slow machine needs some, a right engine nothing like all of it."""
OUR_AGENT = "keyferry/"
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
LOOPBACK = (HostRule.parse("127.0.0.1"), HostRule.parse("localhost"))


@dataclass(frozen=True)
class Seen:
    """One request and its answer, as the proxy saw them."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    status: int
    answer: bytes = field(repr=False)
    at: float
    """When the answer came (Unix seconds)."""

    @property
    def ours(self) -> bool:
        """Whether Keyferry sent it."""
        return self.headers.get("User-Agent", "").startswith(OUR_AGENT)

    def form(self) -> dict[str, str]:
        """Return the form that was sent."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))

    def sent(self) -> dict[str, Any]:
        """Return the JSON object that was sent."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    def said(self) -> dict[str, Any]:
        """Return the JSON object that was answered."""
        found: dict[str, Any] = json.loads(self.answer)
        return found


class Proxy:
    """Forwards to one server, at an address of its own, and keeps what it saw. Host headers go through unchanged."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session
        self.url = ""
        self.seen: list[Seen] = []
        self.answered: Callable[[Seen], Awaitable[None]] | None = None
        """Is awaited when the server has answered, before whoever asked sees that."""

    def asked(self, path: str, method: str = "POST", *, ours: bool = True) -> list[Seen]:
        """Return the requests to a path that ends so."""
        return [seen for seen in self.seen if seen.method == method and seen.path.endswith(path) and seen.ours is ours]

    async def handle(self, request: web.Request) -> web.Response:
        """Forward one request."""
        body = await request.read()
        sent = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            async with self._session.request(
                request.method, f"{self._upstream}{request.raw_path}", headers=sent, data=body, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            return web.Response(status=502, text="the server is away")
        seen = Seen(request.method, request.path, dict(request.query), sent, body, answer.status, content, time.time())
        self.seen.append(seen)
        if self.answered is not None:
            await self.answered(seen)
        said = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
        return web.Response(status=answer.status, body=content, headers=said)


@asynccontextmanager
async def proxy_to(upstream: str) -> AsyncIterator[Proxy]:
    """Run a proxy on the loopback while the block runs."""
    async with aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
        proxy = Proxy(upstream, session)
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield proxy
        finally:
            await runner.cleanup()


class Log:
    """Keeps every event of a broker."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def report(self, status: IdentityStatus) -> None:
        """Statuses are asked for where a test needs one."""

    def forget(self, key: ObjectKey) -> None:
        """The event ``removed`` says the same."""

    def event(self, event: Event) -> None:
        """Keep it."""
        self.events.append(event)

    def of(self, name: str, word: str) -> list[Event]:
        """Return the events of one kind about one identity."""
        return [event for event in self.events if event.key == key_of(name) and event.event == word]

    def troubles(self) -> list[str]:
        """Return what people were warned of, one line each."""
        return [
            f"{event.key}: {event.event}: {event.message}"
            for event in self.events
            if event.level.value in ("warning", "error")
        ]


@dataclass(frozen=True)
class Place:
    """The directories of one ``keyferry run``: resources, output, state, and secrets that change."""

    base: Path
    service_account_tokens: Mapping[str, Path] = field(default_factory=dict)

    @property
    def resources(self) -> Path:
        """Where the YAML files are."""
        return self.base / "resources"

    @property
    def secrets(self) -> Path:
        """Where ``<namespace>/<name>/<key>`` files are (``--secrets``)."""
        return self.base / "secrets"

    @property
    def settings(self) -> RunSettings:
        """What the command's options would come to."""
        return RunSettings(
            paths=(self.resources,),
            out=self.base / "out",
            state=self.base / "state",
            secrets=SecretSettings(directory=self.secrets, service_account_tokens=self.service_account_tokens),
            allowed_hosts=LOOPBACK,
        )

    @property
    def options(self) -> list[str | Path]:
        """The same as the command takes them."""
        files = self.service_account_tokens.items()
        return [
            *("--out", self.settings.out, "--state", self.settings.state, "--secrets", self.secrets),
            *(word for rule in LOOPBACK for word in ("--allow-host", str(rule))),
            *(word for audience, file in files for word in ("--service-account-token", f"{audience}={file}")),
        ]

    def add_examples(self, system: str, replacements: Mapping[str, str], **per_file: Mapping[str, str]) -> None:
        """Copy the examples of a system with the placeholders replaced: in all files, or otherwise in one of them."""
        self.resources.mkdir(parents=True, exist_ok=True)
        unused = set(replacements)
        for path in sorted((EXAMPLES / system).glob("*.yaml")):
            text = path.read_text()
            for old, new in per_file.get(path.stem, replacements).items():
                if old in text:
                    unused.discard(old)
                text = text.replace(old, new)
            (self.resources / path.name).write_text(text)
        assert not unused, f"no example of {system} has {sorted(unused)} in it any more"

    def add_secrets(self, secrets: Mapping[str, Mapping[str, str]], kind: str = "Secret") -> None:
        """Write Secret (or ConfigMap) documents beside the resources."""
        content = "stringData" if kind == "Secret" else "data"
        documents = [
            {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, content: dict(data)}
            for name, data in secrets.items()
        ]
        self.resources.mkdir(parents=True, exist_ok=True)
        (self.resources / f"{kind.lower()}s.yaml").write_text(yaml.safe_dump_all(documents))

    def drop(self, *names: str) -> None:
        """Take identities out of the files, as somebody who edits them would."""
        for path in self.resources.glob("*.yaml"):
            documents = list(yaml.safe_load_all(path.read_text()))
            kept = [
                document
                for document in documents
                if document["kind"] != "ServiceIdentity" or document["metadata"]["name"] not in names
            ]
            if not kept:
                path.unlink()  # an empty file might be half-written, so it lets nothing go
            elif len(kept) < len(documents):
                write(path, yaml.safe_dump_all(kept))


def key_of(name: str) -> ObjectKey:
    """Return the key of an identity in the default namespace."""
    return ObjectKey("default", name)


def write(path: Path, text: str) -> None:
    """Replace a file at once, as whoever keeps a token fresh does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.rename(path)


async def until(check: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Return what ``check`` (plain or async) returns, as soon as that is true; fail with ``what`` if it never is."""
    deadline = time.monotonic() + patience
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience:.0f} s in vain: {what}"
        await asyncio.sleep(0.1)


async def until_revision(broker: LocalBroker, name: str, revision: int) -> None:
    """Wait until an identity has been issued so many tokens."""
    reached = await broker.engine.wait_for(key_of(name), lambda status: status.revision >= revision, PATIENCE)
    assert reached, f"{name} did not reach revision {revision}: {broker.engine.status(key_of(name))}"


async def prompted(broker: LocalBroker, name: str) -> Prompt:
    """Wait until a person is asked to approve for an identity; return what they are shown."""
    found: Prompt = await until(lambda: broker.engine.status(key_of(name)).prompt, f"somebody is asked for {name}")
    return found


def published(broker: LocalBroker, name: str) -> dict[str, Any]:
    """Return ``token.json`` of an identity."""
    found: dict[str, Any] = json.loads((broker.directory(key_of(name)) / "token.json").read_text())
    return found


async def each_token(broker: LocalBroker, name: str, count: int) -> AsyncIterator[dict[str, Any]]:
    """Yield ``token.json`` as it is after each of ``count`` issues that are seen."""
    seen = 0
    for _ in range(count):
        await until_revision(broker, name, seen + 1)
        # The file is written just after the token was committed.
        token = await until(partial(_later, broker, name, seen), f"{name}: token.json of a revision after {seen}")
        seen = token["revision"]
        yield token


def _later(broker: LocalBroker, name: str, revision: int) -> dict[str, Any] | None:
    if not (broker.directory(key_of(name)) / "token.json").exists():
        return None
    token = published(broker, name)
    return token if token["revision"] > revision else None


def documented(page: str) -> list[dict[str, Any]]:
    """Return every resource that a page of the documentation shows before it comes to clusters."""
    text = (EXAMPLES.parent / "docs" / page).read_text().partition("\n## In a cluster\n")[0]
    blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def exemplified(system: str) -> list[dict[str, Any]]:
    """Return every resource of the examples for a system."""
    texts = [path.read_text() for path in sorted((EXAMPLES / system).glob("*.yaml"))]
    return [document for text in texts for document in yaml.safe_load_all(text)]


async def run_keyferry(*arguments: str | Path) -> str:
    """Run the command as a person does and return its output; fail with its errors where its exit code is not 0."""
    process = await asyncio.create_subprocess_exec(
        *keyferry_command(*arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, f"exit code {process.returncode}:\n{errors.decode()}\n{output.decode()}"
    return output.decode()


def keyferry_command(*arguments: str | Path) -> list[str | Path]:
    """Return the command line of ``keyferry``."""
    return [sys.executable, "-m", "keyferry", *arguments]
