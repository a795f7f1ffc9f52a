"""The loopback server: ``http://127.0.0.1:<port>/<identity>/…`` for workloads of this machine or pod.

A web page that a browser on the same machine shows must not reach it: it sends an ``Origin``, or by DNS rebinding a
``Host`` that is not the loopback. Other users of the machine can connect, and are told apart by the placeholder.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from keyferry.web.labarchives import LabArchivesEndpoint
from keyferry.web.oauth import current_token, exchange
from keyferry.web.presented import new_placeholder
from keyferry.web.serving import Server, base_url, listen, plain, port_of
from keyferry.web.source import NotOffered
from keyferry.web.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Never, Self

    from aiohttp import web

    from keyferry.io.addresses import AddressPolicy
    from keyferry.secret import SecretValue
    from keyferry.web.source import Source

HOST: Final = "127.0.0.1"
MOST_HEADERS: Final = 48
LONGEST_LINE: Final = 8190

_TARGET: Final = re.compile(
    r"/(?P<identity>[a-z0-9.:-]{1,317})/(?P<path>[A-Za-z0-9._/-]{1,512})(?:\?(?P<query>[!-~]*))?"
)
"""Nothing is percent-encoded in a path that is ours; an identity of another namespace is ``<namespace>:<name>``."""
_TOKEN_ENDPOINT: Final = re.compile(r"oauth/token|realms/[A-Za-z0-9._-]+/protocol/openid-connect/token")
_LABARCHIVES: Final = "labarchives/"


class Loopback:
    """Serves while in ``async with``; ``lookup`` finds an identity's source by its part of the URL."""

    def __init__(
        self, lookup: Callable[[str], Source | None], policy: AddressPolicy, *, host: str = HOST, port: int = 0
    ) -> None:
        """``policy`` says which LabArchives regions may be asked; port 0 lets the system choose."""
        self._lookup = lookup
        self._host, self._port = host, port
        self._upstream = Upstream(policy)
        self._labarchives = LabArchivesEndpoint(self._upstream)
        self._nobody = _Nobody()
        self._hosts: frozenset[str] = frozenset()
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        """What the URLs of all identities begin with, without a slash at the end."""
        return base_url(self._host, self._port)

    async def __aenter__(self) -> Self:
        """Listen. Raises KeyferryError where the address cannot be had."""
        server = Server(self._handle, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE)
        advice = "Name another port, or stop what uses this one."
        self._runner = await listen(server, self._host, self._port, what="The loopback endpoints", advice=advice)
        self._port = port_of(self._runner)
        self._hosts = frozenset(f"{name}:{self._port}" for name in (HOST, "localhost", "[::1]"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        await self._upstream.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        target = _TARGET.fullmatch(request.raw_path)
        return _nothing_here() if target is None else await self._route(request, target)

    async def _route(self, request: web.BaseRequest, target: re.Match[str]) -> web.StreamResponse:
        source = self._lookup(target["identity"]) or self._nobody
        path = target["path"]
        if path == "token":
            return await current_token(request, source) if request.method == "GET" else _allowed("GET")
        if _TOKEN_ENDPOINT.fullmatch(path):
            return await exchange(request, source) if request.method == "POST" else _allowed("POST")
        if path.startswith(_LABARCHIVES):
            if request.method not in {"GET", "POST"}:
                return _allowed("GET, POST")
            rest = path.removeprefix(_LABARCHIVES)
            return await self._labarchives.serve(request, source, rest, target["query"] or "")
        return _nothing_here()

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        headers = request.headers
        if len(headers) > MOST_HEADERS:
            return plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers\n")
        hosts = headers.getall("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return plain(HTTPStatus.FORBIDDEN, "this is not the host that was asked for\n")
        if "Origin" in headers:
            return plain(HTTPStatus.FORBIDDEN, "this is not for web pages\n")
        return None


class _Nobody:
    """Stands for an identity that is not there: answered as one whose placeholder was not presented."""

    def __init__(self) -> None:
        self._placeholder = new_placeholder()

    @property
    def placeholder(self) -> SecretValue:
        return self._placeholder

    async def token(self) -> Never:
        raise NotOffered

    async def sign(self, method: str) -> Never:
        raise NotOffered(method)

    async def user(self) -> Never:
        raise NotOffered

    async def correct_clock(self) -> None:
        raise NotOffered

    async def login_refused(self) -> None:
        raise NotOffered


def _nothing_here() -> web.Response:
    return plain(HTTPStatus.NOT_FOUND, "there is no such endpoint\n")


def _allowed(methods: str) -> web.Response:
    return plain(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed\n", Allow=methods)
