"""Sends what grants yield, and tells apart what was certainly not sent from what may have been.

`HttpDriver` speaks HTTP/1.1 with httpx's values over aiohttp's connections. httpx's client is left out on purpose: it
logs whole URLs, keeps cookies and reads the proxy environment. There are no redirects, no cookies, no decompression
and no hidden second try: a refresh token that is sent twice looks stolen (RFC 9700 4.14.2).

Whether anything was sent is decided by one fact: the connection either was handed over for the request, or was not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar, cast

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from keyferry.errors import Ambiguous, NotSent, Reason, RetryClass
from keyferry.io.addresses import AddressNotAllowedError, AddressPolicy, GuardedResolver, HostRule, Target
from keyferry.io.failures import explain, overdue
from keyferry.model import HttpRequest, HttpResponse
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Generator

    from aiohttp.abc import AbstractResolver

T = TypeVar("T")

MAX_BODY: Final = 1024 * 1024
"""Bytes of an answer that are read before it is given up."""
_IDLE: Final = 15.0
"""Seconds for which an idle connection is kept: below what servers commonly allow."""
_ROUTES: Final = 256
"""How many checked URLs are remembered."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")


@dataclass(slots=True)
class _Attempt:
    """How far one request came."""

    connected: bool = False
    """A connection was handed over; from here on something may have been sent."""
    reused: bool = False
    """The connection had served before, so the server may have been closing it."""
    answered: bool = False
    """The head of an answer came."""


_attempt: ContextVar[_Attempt] = ContextVar("_attempt")


class _Broken(aiohttp.ClientError):
    """Wraps an error that aiohttp would answer with a second try of its own; the error is the cause."""


class HttpDriver:
    """The connections to the providers that share a TLS context and an address policy.

    Construct it inside the running event loop. Times are seconds.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        ssl_context: ssl.SSLContext,
        timeout: float,
        user_agent: str,
        connect_timeout: float | None = None,
        max_body: int = MAX_BODY,
        max_connections: int = 32,
        proxy: SecretValue | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """Open nothing yet.

        ``timeout`` bounds a whole `send`; ``connect_timeout`` (default: half of it) the wait for a connection, which
        ends in `NotSent`. ``max_connections`` is per host. ``proxy`` is the URL of an HTTP proxy, which may hold a
        user name and password; with one, names are resolved by the proxy and only the URL is checked here. Raises
        `ValueError` where it is no such URL. ``resolver`` replaces the system's.
        """
        self._policy = policy
        self._timeout = timeout
        self._user_agent = user_agent
        self._max_body = max_body
        self._proxy = None if proxy is None else _Proxy.parse(proxy)
        connect = timeout / 2 if connect_timeout is None else connect_timeout
        # Nothing for a single read: the whole is bounded by ``timeout``, and each timer costs.
        self._extensions = {"timeout": {"pool": connect, "connect": connect}}
        self._resolver = GuardedResolver(
            policy, resolver or aiohttp.ThreadedResolver(), proxy=self._proxy.rule if self._proxy else None
        )
        self._routes: dict[str, tuple[Target, httpx.URL]] = {}
        self._kept = self._transport(ssl_context, max_connections, reuse=True)
        self._fresh = self._transport(ssl_context, max_connections, reuse=False)

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request and return the whole answer, of whatever status.

        A one-time request goes out on a connection of its own, once. Any other may go out a second time where a kept
        connection turns out to have been closed by the server before anything was answered. Raises `NotSent` and
        `Ambiguous`, whose messages hold the host and the cause and nothing of the request.
        """
        target, url = self._route(request.url)
        outgoing = self._outgoing(request, target, url)
        attempt = _Attempt()
        before = _attempt.set(attempt)
        try:
            async with asyncio.timeout(self._timeout):
                answer = None if request.one_time else await self._send_kept(outgoing, attempt, target.host)
                return answer or await self._exchange(self._fresh, outgoing, attempt, target.host)
        except TimeoutError:
            error = overdue(target.host, self._timeout, sent=attempt.connected)
        except (aiohttp.ClientError, httpx.HTTPError, OSError) as exc:
            error = explain(_cause(exc), target.host, sent=attempt.connected)
        finally:
            _attempt.reset(before)
        # Outside of the handlers, so that no library exception, which may hold the URL, comes along as its context.
        raise error

    async def check(self, url: str) -> None:
        """Find out whether a URL may be requested, also by the DNS, and request nothing. Raises `NotSent`.

        With a proxy, which resolves the names, only the URL itself is looked at.
        """
        target, _ = self._route(url)
        if self._proxy is not None or not target.named:
            return
        try:
            await self._resolver.resolve(target.host, target.port)
        except AddressNotAllowedError as error:
            refusal = error.refusal
        except OSError:
            refusal = NotSent(f"{target.host}: the name cannot be resolved", code="dns")
        else:
            return
        raise refusal

    async def close(self) -> None:
        """Close all connections. Call it when nothing is under way."""
        await self._kept.aclose()
        await self._fresh.aclose()
        await self._resolver.close()

    async def _send_kept(self, outgoing: httpx.Request, attempt: _Attempt, host: str) -> HttpResponse | None:
        """Return the answer, or None where a kept connection was found closed (RFC 9112 9.3.1)."""
        try:
            return await self._exchange(self._kept, outgoing, attempt, host)
        except (aiohttp.ClientError, httpx.HTTPError, OSError) as exc:
            cause = _cause(exc)
            lost = isinstance(cause, aiohttp.ClientConnectionError | OSError) and not isinstance(cause, TimeoutError)
            if lost and attempt.reused and not attempt.answered:
                return None
            raise

    async def _exchange(
        self, transport: AiohttpTransport, outgoing: httpx.Request, attempt: _Attempt, host: str
    ) -> HttpResponse:
        response = await transport.handle_async_request(outgoing)
        attempt.answered = True
        try:
            # In one go: each look at httpx's own headers walks over all of them.
            headers = dict(response.headers.items())
            if headers.get("content-encoding", "identity") != "identity":
                raise Ambiguous(f"{host}: the answer is compressed, which was not asked for", code="compressed")
            body = bytearray()
            async for chunk in cast("httpx.AsyncByteStream", response.stream):
                body += chunk
                if len(body) > self._max_body:
                    raise Ambiguous(f"{host}: the answer is larger than {self._max_body} bytes", code="too_large")
        finally:
            # The answer is whole, or an error is on its way that must not be replaced by a lesser one.
            with contextlib.suppress(aiohttp.ClientError, httpx.HTTPError):
                await response.aclose()
        return HttpResponse(response.status_code, headers, bytes(body))

    def _route(self, url: str) -> tuple[Target, httpx.URL]:
        """Check a URL; remember the outcome for those few that are requested all the time and hold no secret."""
        known = self._routes.get(url)
        if known is None:
            target = self._policy.check_url(url)
            known = target, httpx.URL(target.url)
            if "?" not in url and len(self._routes) < _ROUTES:
                self._routes[url] = known
        return known

    def _outgoing(self, request: HttpRequest, target: Target, url: httpx.URL) -> httpx.Request:
        headers = {"user-agent": self._user_agent, "accept-encoding": "identity"}
        for name, value in request.headers.items():
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise NotSent(
                    f"{target.host}: a header{f' ({name})' if _NAME.fullmatch(name) else ''} holds characters that "
                    "HTTP does not allow; a credential may have been pasted with a line break",
                    code="invalid_header",
                    reason=Reason.INVALID_SPEC,
                    retry=RetryClass.NEEDS_CONFIGURATION,
                )
            headers[name.lower()] = value
        if self._proxy is not None and self._proxy.authorization is not None and url.scheme == "http":
            # Without a tunnel the proxy reads the request itself.
            headers["proxy-authorization"] = self._proxy.authorization.reveal()
        outgoing = httpx.Request(
            request.method, url, headers=headers, stream=httpx.ByteStream(request.body), extensions=self._extensions
        )
        outgoing.read()  # with the body known, the connection sets Host and Content-Length
        return outgoing

    def _transport(self, ssl_context: ssl.SSLContext, max_connections: int, *, reuse: bool) -> AiohttpTransport:
        connector = aiohttp.TCPConnector(
            ssl=ssl_context,
            resolver=self._resolver,
            limit=0,
            limit_per_host=max_connections,
            force_close=not reuse,
            keepalive_timeout=_IDLE if reuse else None,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            trace_configs=[_tracing()],
            middlewares=[_without_second_try],
        )
        proxy = None if self._proxy is None else self._proxy.for_httpx()
        return AiohttpTransport(verify=ssl_context, trust_env=False, proxy=proxy, client=session)


async def drive(
    exchange: Generator[HttpRequest, HttpResponse, T], send: Callable[[HttpRequest], Awaitable[HttpResponse]]
) -> T:
    """Send what an exchange yields until it returns, and return that.

    An error of ``send`` is raised as it is, after the exchange was closed: grants do not retry.
    """
    with contextlib.closing(exchange):
        try:
            request = next(exchange)
            while True:
                request = exchange.send(await send(request))
        except StopIteration as done:
            result: T = done.value
            return result


def check_proxy(url: SecretValue) -> None:
    """Raise `ValueError`, with a sentence that does not repeat it, where a proxy's URL cannot be used."""
    _Proxy.parse(url)


@dataclass(frozen=True, slots=True)
class _Proxy:
    url: str
    rule: HostRule
    authorization: SecretValue | None

    @classmethod
    def parse(cls, secret: SecretValue) -> _Proxy:
        with contextlib.suppress(ValueError):  # its text would show the password
            url = URL(secret.reveal())
            if url.scheme in {"http", "https"} and url.raw_host and url.port:
                return cls._of(url, HostRule(url.raw_host, url.port))
        raise ValueError("the proxy is not a URL such as http://[USER:PASSWORD@]HOST:PORT")

    @classmethod
    def _of(cls, url: URL, rule: HostRule) -> _Proxy:
        authorization = None
        if url.user is not None:
            pair = f"{url.user}:{url.password or ''}".encode()
            authorization = SecretValue(f"Basic {base64.b64encode(pair).decode()}")
        return cls(str(url.with_user(None)), rule, authorization)

    def for_httpx(self) -> httpx.Proxy:
        # As a header: handing over user and password is deprecated in aiohttp.
        headers = {} if self.authorization is None else {"Proxy-Authorization": self.authorization.reveal()}
        return httpx.Proxy(self.url, headers=headers)


def _cause(exc: Exception) -> BaseException:
    """Return what aiohttp raised."""
    while isinstance(exc, httpx.HTTPError | _Broken) and isinstance(exc.__cause__, Exception):
        exc = exc.__cause__
    return exc


async def _without_second_try(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending an idempotent request again on its own."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as exc:
        raise _Broken from exc


def _tracing() -> aiohttp.TraceConfig:
    """Note when a connection is handed over: the last moment before anything can be sent."""

    async def created(*_: object) -> None:
        _attempt.get().connected = True

    async def reused(*_: object) -> None:
        attempt = _attempt.get()
        attempt.connected = attempt.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_create_end.append(created)
    config.on_connection_reuseconn.append(reused)
    return config
