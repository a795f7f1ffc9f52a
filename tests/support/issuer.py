"""An authorization server that fails on command: `FaultIssuer` in this process, or a process of its own.

`python -m tests.support.issuer --port 0` prints one JSON line with its URLs, and is then controlled over
`/_admin/…`; `tests.support.issuer_process` starts and speaks to it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl

from keyferry.demo.clients import Clients, basic_credentials, unverified_subject
from keyferry.demo.endpoints import Endpoints
from keyferry.demo.token_service import TokenService
from keyferry.demo.wire import Answer, HttpRequest
from tests.support.faults import HTML, Fault, FaultKind, FaultPlan, Target, change, padded
from tests.support.http1 import Connection, Handler, Listener, Received, render

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from keyferry.demo.refresh_tokens import RefreshPolicy, Spend
    from keyferry.demo.state import IssuedToken, Settings

ADMIN = "/_admin/"
_JSON = {"Content-Type": "application/json"}


@dataclass(slots=True)
class RequestRecord:
    """One request, from its arrival on; what a fault did to it is filled in as it happens."""

    at: float
    connection: int
    """Which connection it came over, counted from 1: a one-time credential has to come over a fresh one."""
    method: str
    path: str
    client: str | None
    grant: str | None
    parameters: Mapping[str, str]
    fault: str | None = None
    processed: bool = False
    """Whether it reached the token service, so that a one-time credential in it is spent."""
    status: int | None = None
    outcome: str = ""
    """`issued`, an OAuth error code, or `no answer`."""

    @property
    def refresh_token(self) -> str | None:
        """The refresh token that was sent, whether or not it was spent."""
        return self.parameters.get("refresh_token") if self.grant == "refresh_token" else None


@dataclass(slots=True)
class _Exchange:
    """One request on its way to an answer."""

    received: Received
    connection: Connection
    record: RequestRecord
    answer: Answer | None = None
    faults: list[Fault] = field(default_factory=list)


class FaultIssuer:
    """A real HTTP server on 127.0.0.1 around a `TokenService`; `async with` starts and ends it.

    `tls` makes it HTTPS. `path` is the path of the issuer identifier. `faults` are programmed at any time;
    `requests`, `spends` and `issued` tell what happened. A stop keeps all state, and the port.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        path: str = "",
        clock: Callable[[], float] = time.time,
        settings: Settings | None = None,
        refresh_policy: RefreshPolicy | None = None,
        record_limit: int = 100_000,
    ) -> None:
        self.service = TokenService(
            clock=clock, settings=settings, refresh_policy=refresh_policy, record_limit=record_limit
        )
        self.faults = FaultPlan()
        self.requests: deque[RequestRecord] = deque(maxlen=record_limit)
        self.listener = Listener(self._handle, port, tls)
        self._path = path
        self._scheme = "https" if tls is not None else "http"
        self._endpoints = Endpoints(self.service)
        self.admin: Handler | None = None
        self._paused: list[_Exchange] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens, without the issuer's path."""
        return f"{self._scheme}://127.0.0.1:{self.listener.port}"

    @property
    def issuer(self) -> str:
        """The issuer identifier."""
        return self.service.issuer

    @property
    def clients(self) -> Clients:
        return self.service.clients

    @property
    def spends(self) -> list[Spend]:
        return self.service.spends()

    @property
    def issued(self) -> deque[IssuedToken]:
        return self.service.issued

    def seed_refresh_token(self, client: str, subject: str) -> str:
        """Return the first refresh token of a new family."""
        return self.service.seed_refresh_token(client, subject)

    def revoke_family(self, refresh_token: str) -> None:
        """End an authorization, as its person might; raises `ValueError` where there is no such token."""
        token = self.service.refresh_tokens.find(refresh_token)
        if token is None:
            raise ValueError("there is no such refresh token")
        self.service.refresh_tokens.revoke(token.family, "Requested")

    def sent_refresh_tokens(self) -> dict[str, int]:
        """Return how often each refresh token arrived, also where a fault kept it from being spent."""
        counts: dict[str, int] = {}
        for record in self.requests:
            if record.refresh_token is not None:
                counts[record.refresh_token] = counts.get(record.refresh_token, 0) + 1
        return counts

    async def start(self) -> None:
        """Listen, for the first time or again."""
        await self.listener.start()
        if not self.service.issuer:
            self.service.issuer = self.url + self._path
            self._endpoints = Endpoints(self.service)

    def stop(self, *, drop: bool = True, spare: Connection | None = None) -> None:
        """Refuse connections until `start`; `drop` resets those that are open but `spare`. Tokens and records stay."""
        self.listener.stop()
        if drop:
            self.listener.drop(spare)

    def pause(self) -> None:
        """Take requests but do nothing with them until `resume`."""
        if self._paused is None:
            self._paused = []

    def resume(self) -> None:
        """Process what was held back, in its order."""
        held, self._paused = self._paused or [], None
        for exchange in held:
            self._begin(exchange)

    async def close(self) -> None:
        """End it for good."""
        self.listener.release()
        self.listener.drop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.listener.connections.emptied.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _handle(self, received: Received, connection: Connection) -> None:
        if self.admin is not None and received.path.startswith(ADMIN):
            self.admin(received, connection)
            return
        exchange = _Exchange(received, connection, _record(received, connection, self.service.clock()))
        self.requests.append(exchange.record)
        if self._paused is not None:
            self._paused.append(exchange)
        else:
            self._begin(exchange)

    def _begin(self, exchange: _Exchange) -> None:
        record = exchange.record
        if self.faults:
            path = record.path.removeprefix(self._path)
            exchange.faults = self.faults.take(Target(path, record.client, record.grant))
        if not exchange.faults:
            # The usual case stays free of tasks: a benchmark drives it.
            self._send(exchange, self._process(exchange))
            return
        record.fault = "+".join(fault.kind.value for fault in exchange.faults)
        task = asyncio.get_running_loop().create_task(self._suffer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _process(self, exchange: _Exchange) -> Answer:
        """Let the token service answer: whatever is spent is spent here."""
        received = exchange.received
        answer = self._endpoints.answer(
            HttpRequest(
                received.method,
                received.path,
                received.body,
                received.headers.get("content-type", ""),
                received.headers.get("authorization"),
                exchange.connection.certificate_subject if self._scheme == "https" else None,
            )
        )
        exchange.record.processed = True
        exchange.record.outcome = _outcome(answer.status, answer.payload)
        return answer

    async def _suffer(self, exchange: _Exchange) -> None:
        for fault in exchange.faults:
            if fault.kind is FaultKind.LATENCY:
                await asyncio.sleep(fault.delay or 0)
        fault = exchange.faults[-1]
        if fault.kind is FaultKind.STALL_BEFORE:
            await _stall(fault)
        elif fault.spent:
            exchange.answer = self._process(exchange)
        if fault.kind is FaultKind.STALL_AFTER:
            await _stall(fault)
        if self._end_early(exchange, fault):
            return
        if fault.kind in {FaultKind.LATENCY, FaultKind.STALL_BEFORE, FaultKind.STALL_AFTER}:
            self._send(exchange, exchange.answer or self._process(exchange))
        else:
            await self._send_faulty(exchange, fault)

    def _end_early(self, exchange: _Exchange, fault: Fault) -> bool:
        """End the connection without an answer, where that is the fault."""
        connection, record = exchange.connection, exchange.record
        if fault.kind in {FaultKind.RESET_BEFORE, FaultKind.RESET_AFTER, FaultKind.REFUSE}:
            if fault.kind is FaultKind.REFUSE:
                self.stop()
                asyncio.get_running_loop().call_later(fault.delay or 0, self._reopen)
            connection.reset()
        elif fault.kind in {FaultKind.CLOSE_BEFORE, FaultKind.CLOSE_AFTER}:
            connection.close()
        else:
            return False
        record.outcome = record.outcome or "no answer"
        return True

    def _reopen(self) -> None:
        task = asyncio.get_running_loop().create_task(self.start())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _send(self, exchange: _Exchange, answer: Answer) -> None:
        exchange.record.status = answer.status
        send(exchange.connection, answer)
        exchange.connection.finish()

    async def _send_faulty(self, exchange: _Exchange, fault: Fault) -> None:
        connection = exchange.connection
        status, headers, body = _faulty_answer(fault, exchange.answer)
        exchange.record.status = status
        exchange.record.outcome = exchange.record.outcome or _outcome(status, None)
        if fault.kind is FaultKind.HUGE:
            await _send_huge(connection, status, headers, body, chunked=fault.chunked)
        elif fault.kind is FaultKind.DRIP:
            for byte in render(status, headers, body):
                connection.send(bytes([byte]))
                await asyncio.sleep(fault.delay if fault.delay is not None else 0.1)
        elif fault.kind in {FaultKind.TRUNCATED, FaultKind.TRUNCATED_RESET}:
            connection.send(render(status, headers, body[: len(body) // 2], length=len(body)))
            if fault.kind is FaultKind.TRUNCATED:
                connection.close()
            else:
                # What was written must leave before the reset throws it away.
                await asyncio.sleep(0.02)
                connection.reset()
            return
        else:
            connection.send(render(status, headers, body))
        connection.finish()


def send(connection: Connection, answer: Answer) -> None:
    """Send an answer as it should be."""
    body = b"" if answer.payload is None else json.dumps(answer.payload).encode()
    connection.send(render(answer.status, {**_JSON, **answer.headers}, body))


async def _stall(fault: Fault) -> None:
    if fault.delay is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(fault.delay)


def _faulty_answer(fault: Fault, answer: Answer | None) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer that a fault has changed or replaced."""
    headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
    status = fault.http_status
    replacement = _replacement(fault)
    if replacement is not None:
        return status, {**headers, **replacement[0]}, replacement[1]
    status = answer.status if answer is not None and fault.status is None else status
    intact = answer.payload if answer is not None else {}
    if fault.kind is FaultKind.HUGE:
        return status, {**headers, **_JSON}, padded(intact, fault.size)
    body = json.dumps(change(intact, fault)).encode()
    if fault.kind is FaultKind.MALFORMED:
        body = body[: len(body) // 2]
    return status, {**headers, **_JSON}, body


def _replacement(fault: Fault) -> tuple[dict[str, str], bytes] | None:
    """Return headers and body of an answer that has nothing of the token service's, or `None` for the other kinds."""
    if fault.kind is FaultKind.HTML:
        return {"Content-Type": "text/html; charset=utf-8"}, (fault.body or HTML).encode()
    if fault.kind is FaultKind.STATUS:
        return {"Content-Type": "text/plain"}, (fault.body or "try again later\n").encode()
    if fault.kind is FaultKind.REDIRECT:
        return {"Location": fault.location}, b""
    if fault.kind is FaultKind.BODY:
        return {"Content-Type": fault.content_type}, fault.body.encode("utf-8", "surrogateescape")
    if fault.kind is FaultKind.ERROR:
        payload = {"error": fault.error, **({"error_description": fault.description} if fault.description else {})}
        return _JSON, json.dumps(payload).encode()
    return None


async def _send_huge(
    connection: Connection, status: int, headers: Mapping[str, str], body: bytes, *, chunked: bool
) -> None:
    """Send a large body piece by piece, stopping once the client has had enough of it."""
    piece = 64 * 1024
    if chunked:
        head = render(status, headers, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    else:
        head = render(status, headers, b"", length=len(body))
    connection.send(head)
    for start in range(0, len(body), piece):
        if not connection.open:
            return
        part = body[start : start + piece]
        connection.send(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        await connection.drained()
    if chunked:
        connection.send(b"0\r\n\r\n")


def _record(received: Received, connection: Connection, now: float) -> RequestRecord:
    """Note who asks for what, without believing or checking it."""
    parameters: dict[str, str] = {}
    if received.body and received.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        parameters = dict(parse_qsl(received.body.decode("latin-1")))
    client = parameters.get("client_id")
    credentials = basic_credentials(received.headers.get("authorization", ""))
    if credentials is not None:
        client = credentials[0]
    elif client is None and "client_assertion" in parameters:
        named = unverified_subject(parameters["client_assertion"])
        client = named[1] if named else None
    grant = parameters.get("grant_type")
    return RequestRecord(now, connection.number, received.method, received.path, client, grant, parameters)


def _outcome(status: int, payload: object) -> str:
    if isinstance(payload, dict) and "error" in payload:
        return str(payload["error"])
    if status != 200:
        return f"status {status}"
    return "issued" if isinstance(payload, dict) and "access_token" in payload else "answered"


if __name__ == "__main__":
    from tests.support.issuer_process import main

    main()
