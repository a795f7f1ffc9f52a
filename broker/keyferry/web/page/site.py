"""The web server of the approval page.

A GET changes nothing. A POST must come from a form of ours and is answered with a redirect to what it brought about;
only the way to a provider is an answer that browsers follow by themselves (``Refresh``), for Chromium applies
``form-action`` to every redirect after a POST, also to those from one provider on to the next.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import web

from keyferry.errors import KeyferryError, NoSuchQuestion, Refused
from keyferry.question import Stage
from keyferry.secret import SecretValue
from keyferry.web.page import headers
from keyferry.web.page.browser import Browsers, new_browser
from keyferry.web.page.pages import Pages, host_of
from keyferry.web.page.peers import DIRECT, Peers
from keyferry.web.page.rates import Rates
from keyferry.web.page.received import Unreadable, form, parameters
from keyferry.web.serving import SERVER, Server, listen, plain

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from keyferry.question import Approvals

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
LONGEST_LINE: Final = 8190
MOST_HEADERS: Final = 64
READS: Final = (20.0, 200.0)
"""GETs of one address: a second, and at once."""
WRITES: Final = (3.0, 30.0)
REFRESH: Final = {Stage.DEVICE: 5, Stage.WORKING: 2}
"""Seconds after which a browser looks again."""
LONGEST_EMAIL: Final = 254
LONGEST_CODE: Final = 512

_ASCII_DOWN: Final = r"[!-~]*"
_QUESTION: Final = re.compile(r"/approve/(?P<link>[A-Za-z0-9_-]{16,256})(?:/(?P<action>[a-z]{1,16}))?")
_CALLBACK: Final = re.compile(r"/callback/(?P<provider>[A-Za-z0-9._~-]{1,128})")
_TARGET: Final = re.compile(rf"(?P<path>/[^?]*)(?:\?(?P<query>{_ASCII_DOWN}))?")

BEGIN_AGAIN: Final = "The question is still where it was: open its link again, the one that you got first."

NOWHERE: Final = "There is nothing here"
NOWHERE_MESSAGE: Final = "The link is not whole, or it has lapsed, or the question was answered or taken back."
NOWHERE_ADVICE: Final = (
    "Open the link as you got it. Where that does not help, ask whoever looks after the workload for a new one."
)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the page is, and what it says of itself."""

    url: str
    """What its visitors type, without a slash at the end."""
    viewers: str
    """Says to those who look at the list which token it takes."""
    peers: Peers = DIRECT
    """Knows the proxies in front of it."""


def check_url(text: str) -> str:
    """Return a page's URL as browsers write its origin. Raises ValueError with a sentence for people."""
    url = text.rstrip("/").lower()
    if not host_of(url) or urlsplit(url).path or set("?#@") & set(url):
        raise ValueError(f"{text!r} is not the URL of a page: write https://HOST, or https://HOST:PORT, and no path")
    scheme, _, rest = url.partition("://")
    if scheme != "https" and urlsplit(url).hostname not in LOOPBACK:
        raise ValueError(f"{text!r}: logins are sent back there, so it must begin with https:// (or be the loopback)")
    # RFC 6454 6.2; forms are compared with it.
    return f"{scheme}://{rest.removesuffix(':443' if scheme == 'https' else ':80')}"


class ApprovalPage:
    """Serves the page while in ``async with``."""

    def __init__(
        self,
        approvals: Approvals,
        site: Site,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``site.url`` is as ``check_url`` returns it; without ``tls``, somebody before us must speak it."""
        self._approvals = approvals
        self._site = site
        self._address = host, port
        self._tls = tls
        self._clock = clock
        self._pages = Pages()
        self._browsers = Browsers(site.url)
        self._reads, self._writes = Rates(*READS), Rates(*WRITES)
        # A name that an attacker points at the loopback must not make it their origin (DNS rebinding).
        parts = urlsplit(site.url)
        self._only_host = parts.netloc if parts.hostname in LOOPBACK else ""
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises KeyferryError where the address cannot be had."""
        server = Server(self._handle, max_line_size=LONGEST_LINE, max_field_size=LONGEST_LINE)
        advice = "Name another address, or stop what uses this one."
        self._runner = await listen(server, *self._address, what="The approval page", advice=advice, tls=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path in {"/healthz", "/readyz"}:
            return plain(HTTPStatus.OK, "ok\n")
        return self._refusal(request) or self._asset(request) or await self._serve(request)

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        target = _TARGET.fullmatch(request.raw_path)
        path, query = (target["path"], target["query"] or "") if target is not None else ("", "")
        question = _QUESTION.fullmatch(path)
        back = f"/approve/{question['link']}" if question is not None and question["action"] else ""
        try:
            return await self._route(request, path, parameters(query))
        except Unreadable as error:
            message = f"What your browser sent cannot be used. {error.message}"
            return self._problem(error.status, "That did not work", message, back=back)
        except NoSuchQuestion:
            return self._problem(HTTPStatus.NOT_FOUND, NOWHERE, NOWHERE_MESSAGE, NOWHERE_ADVICE)
        except Refused as error:
            advice = "" if back else BEGIN_AGAIN
            return self._problem(HTTPStatus.FORBIDDEN, "This was refused", error.message, advice, back)
        except KeyferryError as error:
            advice = "Nothing is lost. Try again in a moment."
            return self._problem(HTTPStatus.SERVICE_UNAVAILABLE, "That did not work", error.message, advice, back)

    def _asset(self, request: web.BaseRequest) -> web.Response | None:
        asset = self._pages.assets.get(request.raw_path)
        if asset is None or request.method == "POST":
            return None
        kept = headers.of(secure=self._browsers.secure, kept=True)
        return web.Response(body=asset.content, headers={**kept, "Content-Type": asset.content_type, "Server": SERVER})

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        if request.method not in {"GET", "HEAD", "POST"}:
            return plain(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed\n", Allow="GET, HEAD, POST")
        if len(request.headers) > MOST_HEADERS:
            return plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers\n")
        if self._only_host and [host.lower() for host in request.headers.getall("Host", [])] != [self._only_host]:
            return plain(HTTPStatus.FORBIDDEN, "this is not the host that was asked for\n")
        writes = request.method == "POST"
        peers = self._site.peers
        asking = peers.of(request.remote or "", request.headers.getall(peers.header, []))
        if not (self._writes if writes else self._reads).take(asking):
            message = "There were too many requests from your network. Wait a minute, then load this page again."
            return self._problem(HTTPStatus.TOO_MANY_REQUESTS, "One moment", message)
        if writes and not self._browsers.is_own_form(request):
            message = "This did not come from a page of this site, as far as your browser says, so nothing was done."
            return self._problem(HTTPStatus.FORBIDDEN, "This was refused", message)
        return None

    async def _route(self, request: web.BaseRequest, path: str, query: Mapping[str, str]) -> web.Response:
        writes = request.method == "POST"
        question, callback = _QUESTION.fullmatch(path), _CALLBACK.fullmatch(path)
        if path == "/":
            return await self._overview(request) if writes else self._html(self._pages.entry(self._site.viewers))
        if callback is not None:
            if writes:
                return await self._arrive(request, callback["provider"])
            return self._html(self._pages.returned(path, tuple(query.items())))
        if question is None or writes != bool(question["action"]):
            raise NoSuchQuestion("no page goes by this address")
        link = SecretValue(question["link"])
        if writes:
            return await self._act(request, link, question["action"])
        return await self._question(request, link, refreshing=query.get("refresh") != "off")

    # --- questions ----------------------------------------------------------------------------------------------------

    async def _question(self, request: web.BaseRequest, link: SecretValue, *, refreshing: bool) -> web.Response:
        question = await self._approvals.question(link, self._browsers.of(request))
        pause = REFRESH.get(question.stage) if refreshing else None
        text = self._pages.question(question, _path_of(link), self._clock(), refreshing=refreshing)
        return self._html(text, refresh="" if pause is None else str(pause))

    async def _act(self, request: web.BaseRequest, link: SecretValue, action: str) -> web.Response:
        fields = await form(request)
        browser = self._browsers.of(request) or new_browser()
        if action == "begin":
            response = self._leave(await self._approvals.begin(link, browser))
        elif action == "code":
            await self._approvals.give_code(link, browser, *_code_in(fields))
            response = self._redirect(_path_of(link))
        else:
            await self._settle(link, browser, action)
            return self._redirect(_path_of(link))
        self._browsers.set(response, browser)
        return response

    async def _settle(self, link: SecretValue, browser: SecretValue, action: str) -> None:
        if action == "confirm":
            await self._approvals.confirm(link, browser)
        elif action == "decline":
            await self._approvals.decline(link, browser)
        elif action == "again":
            await self._approvals.ask_again(link)
        else:
            raise NoSuchQuestion("no page goes by this address")

    async def _arrive(self, request: web.BaseRequest, provider: str) -> web.Response:
        fields = await form(request)
        return self._redirect(_path_of(await self._approvals.arrive(provider, self._browsers.of(request), fields)))

    def _leave(self, address: str) -> web.Response:
        if not host_of(address):
            raise KeyferryError("the provider's address for logging in is none that a browser can go to")
        return self._html(self._pages.leaving(address), refresh=f"0; url={address}")

    async def _overview(self, request: web.BaseRequest) -> web.Response:
        token = SecretValue((await form(request)).get("token", "").strip())
        try:
            identities = await self._approvals.overview(token)
        except Refused as error:
            text = self._pages.entry(self._site.viewers, error.message)
            return self._html(text, status=HTTPStatus.FORBIDDEN)
        return self._html(self._pages.overview(identities, self._clock()))

    # --- answers ------------------------------------------------------------------------------------------------------

    def _html(self, text: str, *, status: int = HTTPStatus.OK, refresh: str = "") -> web.Response:
        response = web.Response(text=text, status=status, content_type="text/html", charset="utf-8")
        response.headers.update({**headers.of(secure=self._browsers.secure), "Server": SERVER})
        if refresh:
            response.headers["Refresh"] = refresh
        return response

    def _redirect(self, path: str) -> web.Response:
        fixed = headers.of(secure=self._browsers.secure)
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={**fixed, "Location": path, "Server": SERVER})

    def _problem(self, status: int, heading: str, message: str, advice: str = "", back: str = "") -> web.Response:
        return self._html(self._pages.problem(heading, message, advice, back), status=status)


def _path_of(link: SecretValue) -> str:
    return f"/approve/{link.reveal()}"


def _code_in(fields: Mapping[str, str]) -> tuple[str, SecretValue]:
    email, code = (fields.get(name, "").strip() for name in ("email", "code"))
    if not email or not code:
        raise Unreadable("It needs an e-mail address and a code.")
    if len(email) > LONGEST_EMAIL or len(code) > LONGEST_CODE:
        raise Unreadable("The e-mail address or the code is too long.")
    return email, SecretValue(code)
