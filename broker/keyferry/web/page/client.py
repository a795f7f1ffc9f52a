"""The page's way to the broker API: implements ``keyferry.question.Approvals`` over HTTPS.

Behind a headless Service there are several replicas. The one that looks after an identity answers for it; the others
say 421, or that they know no such link, and then the next is asked. The one that answered last is asked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from keyferry import __version__
from keyferry.errors import KeyferryError, Misdirected, NoSuchQuestion
from keyferry.io.tls import TlsSettings, build_context
from keyferry.secret import SecretValue
from keyferry.web.page.wire import PATH, MalformedError, decode_error, decode_overview, decode_question

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from keyferry.model import ObjectKey
    from keyferry.question import Overview, Question

TIMEOUT: Final = aiohttp.ClientTimeout(total=60.0, connect=5.0, sock_connect=5.0)
"""Seconds; a login's exchange with its provider happens within one request."""
LONGEST_ANSWER: Final = 16 << 20
LONGEST_TOKEN: Final = 64 << 10

_AWAY: Final = "The broker cannot be reached just now."
_SILENT: Final = "The broker did not answer in time; what you asked for may have been done all the same. Look again."
_UNHEARD: Final = (Misdirected, NoSuchQuestion)
"""Answers after which another replica may still know better."""


class BrokerApprovals:
    """Asks the broker API as the page's own service account; construct it anywhere, use it in one event loop."""

    def __init__(
        self,
        broker: str,
        *,
        token_file: Path,
        authorities_file: Path | None = None,
        resolve: Callable[[str, int], Awaitable[Sequence[str]]] | None = None,
    ) -> None:
        """``broker`` is the API's URL; both files are read afresh, for both are replaced while we run.

        ``resolve`` returns the addresses of a host (and port), by default what the system knows; OSError where none.
        """
        self._url = URL(broker.rstrip("/"))
        self._token_file, self._authorities_file = token_file, authorities_file
        self._resolve = resolve or _resolved
        self._session: aiohttp.ClientSession | None = None
        self._context: tuple[str, ssl.SSLContext] | None = None
        self._last = ""

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    # --- Approvals ----------------------------------------------------------------------------------------------------

    async def question(self, link: SecretValue, browser: SecretValue | None) -> Question:
        """See ``Approvals``."""
        return await self._ask_question("question", link, browser)

    async def begin(self, link: SecretValue, browser: SecretValue) -> str:
        """See ``Approvals``."""
        return _text(await self._ask("begin", {"link": link.reveal(), "browser": browser.reveal()}), "address")

    async def arrive(
        self, provider_uid: str, browser: SecretValue | None, parameters: Mapping[str, str]
    ) -> SecretValue:
        """See ``Approvals``."""
        body = {"provider": provider_uid, "browser": _revealed(browser), "parameters": dict(parameters)}
        return SecretValue(_text(await self._ask("arrive", body), "link"))

    async def give_code(self, link: SecretValue, browser: SecretValue, email: str, code: SecretValue) -> Question:
        """See ``Approvals``."""
        return await self._ask_question("code", link, browser, email=email, code=code.reveal())

    async def confirm(self, link: SecretValue, browser: SecretValue) -> Question:
        """See ``Approvals``."""
        return await self._ask_question("confirm", link, browser)

    async def decline(self, link: SecretValue, browser: SecretValue) -> Question:
        """See ``Approvals``."""
        return await self._ask_question("decline", link, browser)

    async def ask_again(self, link: SecretValue) -> Question:
        """See ``Approvals``."""
        return await self._ask_question("again", link, None)

    async def overview(self, viewer: SecretValue) -> list[Overview]:
        """Put together what every replica says: each tells of the identities that it looks after."""
        found: dict[ObjectKey, Overview] = {}
        heard = False
        async for answer in self._ask_each("overview", {"viewer": viewer.reveal()}):
            heard = True
            identities = answer.get("identities") if isinstance(answer, dict) else None
            if not isinstance(identities, list):
                raise _strange()
            try:
                found |= {one.identity: one for one in map(decode_overview, identities)}
            except MalformedError:
                raise _strange() from None
        if not heard:
            raise KeyferryError(_AWAY)
        return [found[key] for key in sorted(found)]

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _ask_question(
        self, operation: str, link: SecretValue, browser: SecretValue | None, **more: str
    ) -> Question:
        answer = await self._ask(operation, {"link": link.reveal(), "browser": _revealed(browser), **more})
        try:
            return decode_question(answer)
        except MalformedError:
            raise _strange() from None

    async def _ask(self, operation: str, body: Mapping[str, Any]) -> Any:
        """Ask one replica after the other; raise what the last one said where none of them knows."""
        headers, context = await asyncio.to_thread(self._prepare)
        unheard: KeyferryError | None = None
        away = False
        for address in await self._addresses():
            try:
                answer = await self._send(address, operation, body, headers, context)
            except aiohttp.ClientConnectorError:
                away = True
                continue
            except _UNHEARD as error:
                unheard = error
                continue
            self._last = address
            return answer
        if unheard is None or away or isinstance(unheard, Misdirected):
            # Whoever could not be reached may be the one that knows.
            raise KeyferryError(_AWAY)
        raise unheard

    async def _ask_each(self, operation: str, body: Mapping[str, Any]) -> AsyncIterator[Any]:
        """Yield what each replica answers; one that is away has handed its work over, or will within seconds."""
        headers, context = await asyncio.to_thread(self._prepare)
        for address in await self._addresses():
            with contextlib.suppress(aiohttp.ClientConnectorError, Misdirected):
                yield await self._send(address, operation, body, headers, context)

    async def _send(
        self, address: str, operation: str, body: Mapping[str, Any], headers: Mapping[str, str], context: Any
    ) -> Any:
        host = self._url.host or ""
        try:
            async with self._client().post(
                self._url.with_host(address).with_path(PATH + operation),
                data=json.dumps(body).encode(),
                headers={**headers, "Host": urlsplit(str(self._url)).netloc},
                ssl=context,
                server_hostname=host if self._url.scheme == "https" else None,
                allow_redirects=False,
            ) as answer:
                text = await answer.content.read(LONGEST_ANSWER)
                while len(text) < LONGEST_ANSWER and (more := await answer.content.readany()):
                    text += more
                return _understood(answer.status, text)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise KeyferryError(_SILENT) from None

    async def _addresses(self) -> list[str]:
        """Return the addresses of all replicas, the one that answered last first."""
        try:
            addresses = await self._resolve(self._url.host or "", self._url.port or 443)
        except OSError:
            raise KeyferryError(_AWAY) from None
        return sorted(addresses, key=lambda address: address != self._last)

    def _prepare(self) -> tuple[dict[str, str], ssl.SSLContext | bool]:
        """Read the files. Raises KeyferryError."""
        try:
            with self._token_file.open("rb") as file:
                token = file.read(LONGEST_TOKEN).decode("ascii").strip()
            authorities = None if self._authorities_file is None else self._authorities_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise KeyferryError("The page cannot show the broker who it is; whoever runs it must look.") from None
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"keyferry/{__version__}",
        }
        if self._url.scheme != "https":
            return headers, True
        if self._context is None or self._context[0] != (authorities or ""):
            self._context = authorities or "", build_context(TlsSettings(authorities))
        return headers, self._context[1]

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # A kept connection may be one to a replica that is gone, which a POST would learn too late.
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                timeout=TIMEOUT,
                auto_decompress=False,
            )
        return self._session


async def _resolved(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _understood(status: int, text: bytes) -> Any:
    """Return the JSON of an answer. Raises the error that it tells of."""
    if status == HTTPStatus.MISDIRECTED_REQUEST:
        raise Misdirected(_AWAY)
    try:
        data = json.loads(text)
        if status == HTTPStatus.OK:
            return data
        error = decode_error(status, data)
    except (ValueError, RecursionError, MalformedError):
        # What stands before a broker, or one that stops or is busy, says so in words of its own.
        later = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
        raise (KeyferryError(_AWAY) if later else _strange()) from None
    raise error


def _text(answer: Any, name: str) -> str:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise _strange()
    return value


def _revealed(browser: SecretValue | None) -> str | None:
    return None if browser is None else browser.reveal()


def _strange() -> KeyferryError:
    return KeyferryError("The broker answered in a way that the page does not understand; whoever runs them must look.")
