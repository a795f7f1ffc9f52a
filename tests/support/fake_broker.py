"""A broker API that does as it is told: for the faults of a broker, which the real one does not show on demand.

What it says when nothing is wrong is what the real one says (``tests/sidecar/contract.py`` asks both the same).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

from keyferry.secret import SecretValue
from keyferry.spec.durations import format_duration, parse_duration
from keyferry.wire import LONGEST_WAIT, PROBLEM_TYPE, Problem, TokenAnswer, TokenFile
from tests.support.http1 import Connection, Listener, Received, render
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from tests.support.pki import Certificate

NAMESPACE = "batch"
POD_TOKEN = "pod-token"
_TARGET = re.compile(r"/v1/namespaces/(?P<namespace>[^/]+)/identities/(?P<name>[^/]+)/(?P<rest>[a-z/]+)")


@dataclass(slots=True)
class Held:
    """A request that waits for another revision."""

    name: str
    connection: Connection
    timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Wait no longer."""
        if self.timer is not None:
            self.timer.cancel()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. ``at`` is monotonic time."""

    at: float
    request: Received
    connection: int


@dataclass
class FakeBroker:
    """Serves while in ``async with``, in the test's own event loop."""

    authority: Authority
    directory: Path
    tokens: set[str] = field(default_factory=lambda: {POD_TOKEN})
    """Tokens that are accepted."""
    identities: dict[str, TokenAnswer] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    """What is answered for an identity instead of a token."""
    faults: deque[str | Problem] = field(default_factory=deque)
    """What happens to the coming requests: truncate, hang, reset, garbage, drip, no-etag, or an error."""
    retry_after: int | None = None
    """Said with every error."""
    asked: list[Asked] = field(default_factory=list)
    reports: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    labarchives: dict[str, Callable[[dict[str, Any]], object | Problem]] = field(default_factory=dict)
    """What answers ``signature``, ``user``, ``clock`` and ``refused``."""
    longest_wait: float = LONGEST_WAIT
    ends_connections: bool = False
    """Closes each connection after an answer."""

    def __post_init__(self) -> None:
        self._listener = Listener(self._handle)
        self._published: dict[str, float] = {}
        self._held: list[Held] = []

    async def __aenter__(self) -> Self:
        self.use(self.authority.server())
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._listener.release()
        await self._listener.connections.emptied.wait()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.port}"

    @property
    def connections(self) -> int:
        """How many were accepted."""
        return self._listener.accepted

    @property
    def held(self) -> list[Held]:
        """Requests that wait, of those who are still there."""
        return [held for held in self._held if held.connection.open]

    def use(self, certificate: Certificate) -> None:
        """Show this certificate, from the next start on."""
        self._listener.ssl = server_context(certificate, self.directory)

    async def start(self) -> None:
        await self._listener.start()

    def stop(self) -> None:
        """End as a killed process does: everybody is hung up on, and nobody gets in."""
        self._listener.stop()
        for held in self._held:
            held.stop()
        self._held.clear()
        self._listener.drop()

    def publish(
        self,
        name: str,
        access_token: str = "",
        *,
        lifetime: float = 3600.0,
        files: Mapping[str, str] | None = None,
        **more: Any,
    ) -> TokenAnswer:
        """Make a new revision, and answer those who wait for it."""
        before = self.identities.get(name)
        revision = before.revision + 1 if before is not None else 1
        access_token = access_token or f"token-{revision}"
        contents = files if files is not None else {"token": access_token}
        now = time.time()
        answer = TokenAnswer(
            access_token=SecretValue(access_token),
            token_type="Bearer",
            issued_at=now,
            expires_at=now + lifetime,
            scope="read",
            revision=revision,
            files=tuple(TokenFile(path, SecretValue(text), local="@@" in text) for path, text in contents.items()),
            **more,
        )
        self.identities[name] = answer
        self._published[name] = time.monotonic()
        for held in [held for held in self._held if held.name == name]:
            self._held.remove(held)
            held.stop()
            self._answer(name, held.connection)
        return answer

    def let_go(self, *, closing: bool = False) -> None:
        """Answer everybody who waits that nothing changed, as a replica that ends."""
        self.ends_connections = closing
        waiting, self._held = self._held, []
        for held in waiting:
            held.stop()
            self._unchanged(held)

    # --- answering ----------------------------------------------------------------------------------------------------

    def _handle(self, request: Received, connection: Connection) -> None:
        self.asked.append(Asked(time.monotonic(), request, connection.number))
        fault = self.faults.popleft() if self.faults else ""
        if isinstance(fault, Problem):
            self._refuse(fault, connection)
        elif fault:
            self._break(fault, request, connection)
        else:
            self._serve(request, connection)

    def _serve(self, request: Received, connection: Connection) -> None:
        found = _TARGET.fullmatch(request.path)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            self._refuse(Problem(401, "Unauthenticated", "the token is not good"), connection)
        elif found is None or found["namespace"] != NAMESPACE or found["name"] not in self.identities | self.problems:
            self._refuse(Problem(404, "NotFound", "there is no such identity, or it is not for this pod"), connection)
        elif found["rest"] == "held":
            self.reports.append((found["name"], json.loads(request.body)))
            self._send(204, {}, b"", connection)
        elif found["rest"].startswith("labarchives/"):
            self._call(found["rest"].rpartition("/")[2], request, connection)
        else:
            self._token(found["name"], request, connection)

    def _token(self, name: str, request: Received, connection: Connection) -> None:
        problem, answer = self.problems.get(name), self.identities.get(name)
        asked = parse_duration(parse_qs(request.query).get("minimum_remaining", ["0s"])[0])
        preference = re.fullmatch(r"wait=(\d+)", request.headers.get("prefer", ""))
        wait = min(self.longest_wait, float(preference[1])) if preference else 0.0
        if problem is not None and (problem.status in (401, 404) or problem.reason == "LifetimeTooShort"):
            self._refuse(problem, connection)
        elif problem is None and answer is not None and answer.expires_at - answer.issued_at < asked:
            short = f"no token of {name} ever lives for {format_duration(asked)}"
            self._refuse(Problem(409, "LifetimeTooShort", short), connection)
        elif problem is None and answer is not None and request.headers.get("if-none-match") != self.etag(name):
            self._answer(name, connection)
        else:
            held = Held(name, connection)
            self._held.append(held)
            held.timer = asyncio.get_running_loop().call_later(wait, self._lapse, held)

    def etag(self, name: str) -> str:
        return f'"uid.{self.identities[name].revision}.hash"'

    def _lapse(self, held: Held) -> None:
        self._held.remove(held)
        self._unchanged(held)

    def _unchanged(self, held: Held) -> None:
        problem = self.problems.get(held.name)
        if problem is not None:
            self._refuse(problem, held.connection)
        elif held.connection.open:
            closing = "Connection: close\r\n" if self.ends_connections else ""
            held.connection.send(f"HTTP/1.1 304 Not Modified\r\nETag: {self.etag(held.name)}\r\n{closing}\r\n".encode())
            self._finish(held.connection)

    def _answer(self, name: str, connection: Connection) -> None:
        body = self.identities[name].to_json()
        body["age"] = time.monotonic() - self._published[name]
        self._send(200, {"ETag": self.etag(name)}, json.dumps(body).encode(), connection)

    def _call(self, what: str, request: Received, connection: Connection) -> None:
        known = self.labarchives.get(what)
        answer = known(json.loads(request.body)) if known else Problem(404, "NotOffered", "it has no such login")
        if isinstance(answer, Problem):
            self._refuse(answer, connection)
        elif answer is None:
            self._send(204, {}, b"", connection)
        else:
            self._send(200, {}, json.dumps(answer).encode(), connection)

    def _refuse(self, problem: Problem, connection: Connection) -> None:
        headers = {"Content-Type": PROBLEM_TYPE}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        self._send(problem.status, headers, json.dumps(problem.to_json()).encode(), connection)

    def _send(self, status: int, headers: dict[str, str], body: bytes, connection: Connection) -> None:
        closing = {"Connection": "close"} if self.ends_connections else {}
        if status == 204:
            connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            connection.send(render(status, {"Content-Type": "application/json", **headers, **closing}, body))
        self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        if self.ends_connections:
            connection.close()
        else:
            connection.finish()

    def _break(self, fault: str, request: Received, connection: Connection) -> None:
        name = next(iter(self.identities), "")
        whole = render(200, {"ETag": '"x"'}, json.dumps(self.identities[name].to_json()).encode()) if name else b""
        match fault:
            case "truncate":
                connection.send(whole[:-20])
                connection.close()
            case "garbage":
                connection.send(b"SSH-2.0-broker\r\n\r\n")
                connection.close()
            case "other-json":
                connection.send(render(200, {"ETag": '"x"'}, b'{"access_token": 7}'))
                connection.finish()
            case "no-json":
                connection.send(render(200, {"ETag": '"x"'}, b"<html>"))
                connection.finish()
            case "endless":
                connection.send(render(200, {}, b"", length=1 << 40))
            case "reset":
                connection.reset()
            case "hang":
                pass
            case "drip":
                asyncio.get_running_loop().create_task(self._drip(request, connection))
            case "chunked":
                self._chunked(request, connection)

    async def _drip(self, request: Received, connection: Connection) -> None:
        found = _TARGET.fullmatch(request.path)
        assert found is not None
        body = json.dumps(self.identities[found["name"]].to_json()).encode()
        for byte in render(200, {"ETag": self.etag(found["name"])}, body):
            connection.send(bytes((byte,)))
            await asyncio.sleep(0.001)
        connection.finish()

    def _chunked(self, request: Received, connection: Connection) -> None:
        found = _TARGET.fullmatch(request.path)
        assert found is not None
        body = json.dumps(self.identities[found["name"]].to_json()).encode()
        head = f"HTTP/1.1 200 OK\r\nETag: {self.etag(found['name'])}\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
        chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + head.encode() + chunks + b"0\r\nTrailer: x\r\n\r\n")
        connection.finish()
