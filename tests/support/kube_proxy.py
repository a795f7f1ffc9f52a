"""A proxy before a real kube-apiserver that fails on command, in a thread of its own.

Clients reach it over HTTPS on 127.0.0.1, by its kubeconfig; what they send, and their bearer tokens, goes on to the
API server as it is, and watches are streamed. What goes wrong is planned in ``faults``; ``requests`` tells what was
asked. ``stop`` and ``start`` are an API server that is away and comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from tests.support.kube_config import Access
from tests.support.kube_faults import WATCH_KINDS, ApiFault, ApiFaultKind, ApiFaultPlan, ApiRequest
from tests.support.pki import Authority
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}
    | {"content-length"}  # both sides count for themselves
)
LARGEST_BODY = 64 * 1024 * 1024
LARGEST_EVENT = 4 * 1024 * 1024
START_TIMEOUT = 180.0
APPLY = "application/apply-patch+yaml"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


class KubeProxy:
    """The proxy; ``with`` starts and ends it. Everything public may be called from any thread."""

    def __init__(self, access: Access, directory: Path, *, record_limit: int = 200_000) -> None:
        self.faults = ApiFaultPlan()
        self.requests: deque[ApiRequest] = deque(maxlen=record_limit)
        self._upstream = access
        self._directory = directory
        self._authority = Authority.create("Keyferry test proxy")
        self._port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube-proxy", daemon=True)
        self._open: dict[int, web.BaseRequest] = {}
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._runner: web.ServerRunner | None = None

    # How to reach it

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def access(self) -> Access:
        """How the user of the API server reaches it through here."""
        return Access(self.url, ca=self._authority.certificate, token=self._upstream.token or "unused")

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of that user."""
        return self.kubeconfig_for(self.access.token or "", "proxy")

    def kubeconfig_for(self, token: str, name: str) -> Path:
        """Write a kubeconfig for the bearer of ``token``."""
        path = self._directory / f"{name}.kubeconfig"
        return Access(self.url, ca=self._authority.certificate, token=token).write(path)

    # What goes wrong

    def add(self, *faults: ApiFault) -> list[int]:
        """Plan faults (see ``ApiFaultPlan.add``)."""
        return self.faults.add(*faults)

    def stop(self) -> None:
        """Refuse connections, and reset those that are open, until ``start``."""
        self._run(self._close())

    def start(self) -> None:
        """Listen again, at the same address."""
        self._run(self._listen())

    def break_watches(self) -> None:
        """Reset the connections of all watches that are open now."""
        self._run(self._break_watches())

    def version(self) -> str:
        """Return the resource version of the cluster as it is now; a list can be answered as of then (STALE)."""
        listed = self._run(self._current("/api/v1/namespaces", {"limit": "1"}))
        return str(listed["metadata"]["resourceVersion"])

    # What was asked

    def asked(self, **wanted: str) -> list[ApiRequest]:
        """Return the requests that have the ``wanted`` values, such as ``verb="list"`` and ``resource="secrets"``."""
        return [
            request
            for request in list(self.requests)
            if all(getattr(request, name) == value for name, value in wanted.items())
        ]

    # Life

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open_upstream())
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_TIMEOUT)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT)

    async def _open_upstream(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._upstream.context(), limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=LARGEST_EVENT,
        )

    async def _listen(self) -> None:
        if self._runner is not None:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._authority.server().write(self._directory, "proxy"))
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=context, reuse_address=True).start()

    async def _close(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in list(runner.sites):
            await site.stop()
        for request in list(self._open.values()):
            _reset(request)
        await runner.cleanup()

    async def _end(self) -> None:
        await self._close()
        for transport in list(self._transports):
            transport.abort()  # one that was closed waits for the client's goodbye, and that may never come
        await self._session.close()
        await asyncio.sleep(0.1)  # TLS connections say goodbye after they are closed

    async def _break_watches(self) -> None:
        for request in list(self._open.values()):
            if request.query.get("watch") in ("true", "1"):
                _reset(request)

    async def _current(self, path: str, query: Mapping[str, str]) -> Any:
        headers = {"Authorization": f"Bearer {self._upstream.token}"} if self._upstream.token else {}
        async with self._session.get(self._upstream.url + path, params=query, headers=headers) as answer:
            answer.raise_for_status()
            return await answer.json()

    # One request

    async def _handle(self, received: web.BaseRequest) -> web.StreamResponse:
        self._open[id(received)] = received
        if received.transport is not None:
            self._transports.add(received.transport)
        try:
            received._client_max_size = LARGEST_BODY
            request = parse(received, await received.read())
            self.requests.append(request)
            faults = self.faults.take(request)
            request.faults = tuple(fault.kind for fault in faults)
            for fault in faults:
                if fault.kind is ApiFaultKind.DELAY:
                    await asyncio.sleep(fault.delay)
                if not fault.hooks_late:
                    fault.hook(request)
            return await self._answer(received, request, faults[-1] if faults else None)
        finally:
            del self._open[id(received)]

    async def _answer(
        self, received: web.BaseRequest, request: ApiRequest, fault: ApiFault | None
    ) -> web.StreamResponse:
        if fault is not None and not fault.forwards:
            return await _suffer(received, request, fault)
        if request.verb == "watch":
            return await self._watch(received, request, fault)
        # What the API server was asked is done, even if the client has gone meanwhile.
        answer = await asyncio.shield(asyncio.ensure_future(self._forward(received, request, fault)))
        if fault is None:
            request.status = answer.status
            return answer
        if fault.hooks_late:
            fault.hook(request)
            return await _suffer(received, request, fault)
        request.status = answer.status
        if fault.kind is ApiFaultKind.GARBAGE and isinstance(answer.body, bytes):
            answer.body = answer.body[: len(answer.body) // 2]
        return answer

    async def _forward(self, received: web.BaseRequest, request: ApiRequest, fault: ApiFault | None) -> web.Response:
        query = dict(received.query)
        if fault is not None and fault.kind is ApiFaultKind.STALE and "continue" not in query:
            query |= {"resourceVersion": fault.version, "resourceVersionMatch": "Exact"}
        async with self._ask(received, request, query) as answer:
            body = await answer.read()
        return web.Response(status=answer.status, headers=_headers(answer.headers), body=body)

    @contextlib.asynccontextmanager
    async def _ask(
        self, received: web.BaseRequest, request: ApiRequest, query: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        request.forwarded = True
        async with self._session.request(
            received.method,
            URL(self._upstream.url).with_path(received.rel_url.raw_path, encoded=True).with_query(query),
            data=request.body or None,
            headers=_headers(received.headers),
            timeout=aiohttp.ClientTimeout(total=None),
            allow_redirects=False,
        ) as answer:
            yield answer

    async def _watch(
        self, received: web.BaseRequest, request: ApiRequest, fault: ApiFault | None
    ) -> web.StreamResponse:
        try:
            async with self._ask(received, request, dict(received.query)) as answer:
                request.status = answer.status
                told = web.StreamResponse(status=answer.status, headers=_headers(answer.headers))
                told.enable_chunked_encoding()
                await told.prepare(received)
                async for event in _events(answer, fault):
                    if event is None:
                        _reset(received)
                        return told
                    await told.write(event)
                await told.write_eof()
                return told
        except (aiohttp.ClientError, ConnectionError):
            _reset(received)  # the API server, or the client, went away
            return web.Response()


async def _events(answer: aiohttp.ClientResponse, fault: ApiFault | None) -> AsyncIterator[bytes | None]:
    """Yield what a watch is to tell; None where its connection is to be reset."""
    if fault is None or fault.kind not in WATCH_KINDS:
        async for chunk in answer.content.iter_any():
            yield chunk
        return
    muffled = fault.kind is ApiFaultKind.MUFFLE
    count = 0
    while muffled or count < fault.skip_events:
        line = await answer.content.readline()
        if not line:
            return
        count += 1
        if count <= fault.skip_events or count > fault.skip_events + fault.drop:
            yield line
    async for event in _end(fault):
        yield event


async def _end(fault: ApiFault) -> AsyncIterator[bytes | None]:
    """Yield the last of a watch that ends before its time."""
    if fault.kind is ApiFaultKind.GONE:
        yield json.dumps({"type": "ERROR", "object": status_object(410, "Expired")}).encode() + b"\n"
    elif fault.kind is ApiFaultKind.SILENT:
        await asyncio.Event().wait()
    elif fault.kind in (ApiFaultKind.CUT, ApiFaultKind.BREAK):
        await asyncio.sleep(fault.delay)
        if fault.kind is ApiFaultKind.BREAK:
            yield None


async def _suffer(received: web.BaseRequest, request: ApiRequest, fault: ApiFault) -> web.StreamResponse:
    if fault.kind in (ApiFaultKind.ANSWER_BEFORE, ApiFaultKind.ANSWER_AFTER):
        request.status = fault.status
        headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
        return web.json_response(status_object(fault.status, fault.cause), status=fault.status, headers=headers)
    if fault.kind in (ApiFaultKind.STALL_BEFORE, ApiFaultKind.STALL_AFTER):
        await asyncio.Event().wait()
    _reset(received)
    return web.Response()


def status_object(code: int, reason: str) -> dict[str, Any]:
    """Return a Status as the API server answers with."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "made up by a test",
        "reason": reason,
        "code": code,
    }


def parse(received: web.BaseRequest, body: bytes) -> ApiRequest:
    """Understand a request as the API server does."""
    query = dict(received.query)
    request = ApiRequest(time.monotonic(), received.method, received.rel_url.path, query, "", body=body)
    parts = [part for part in request.path.split("/") if part]
    if parts[:1] == ["api"]:
        parts = parts[2:]
    elif parts[:1] == ["apis"]:
        request.group, parts = (parts[1] if len(parts) > 1 else ""), parts[3:]
    else:
        parts = []
    if parts[:1] == ["namespaces"] and len(parts) > 2 and parts[2] not in ("status", "finalize"):
        request.namespace, parts = parts[1], parts[2:]
    request.resource, request.name, request.subresource = (*parts, "", "", "")[:3]
    request.verb = _verb(received, request, query)
    if request.verb == "create" and not request.name:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            request.name = str(json.loads(body)["metadata"]["name"])
    return request


def _verb(received: web.BaseRequest, request: ApiRequest, query: Mapping[str, str]) -> str:
    if received.method == "GET":
        if query.get("watch") in ("true", "1"):
            return "watch"
        return "get" if request.name or not request.resource else "list"
    if received.method == "DELETE":
        return "delete" if request.name else "deletecollection"
    if received.headers.get("Content-Type", "").startswith(APPLY):
        return "apply"
    return _VERBS.get(received.method, received.method.lower())


def _headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


def _reset(received: web.BaseRequest) -> None:
    if received.transport is not None:
        received.transport.abort()
