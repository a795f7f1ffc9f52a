"""Requests to LabArchives whose bodies are streamed: no redirects, no cookies, no second try, no proxy of the user's.

``keyferry.io.http`` holds whole answers in memory, which is right for tokens and wrong for attachments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import aiohttp
from yarl import URL

from keyferry import __version__
from keyferry.io.addresses import GuardedResolver
from keyferry.io.tls import TlsSettings, build_context

if TYPE_CHECKING:
    import ssl

    from keyferry.io.addresses import AddressPolicy

CONNECTIONS: Final = 16
"""At once to a region."""
TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=30.0, sock_connect=10.0, sock_read=120.0)
CONTEXTS: Final = 16


class NotSentTwiceError(aiohttp.ClientError):
    """Wraps an error that aiohttp would answer with a second try of its own: even GET changes things there."""


class Upstream:
    """The connections; construct it anywhere, use it in one event loop."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str | None, ssl.SSLContext] = {}

    async def send(
        self, method: str, url: str, *, headers: dict[str, str], data: Any, authorities: str | None
    ) -> aiohttp.ClientResponse:
        """Return the answer once its head came. Raises NotSent for a closed address, CredentialError, ClientError."""
        target = self._policy.check_url(url)
        return await self._client().request(
            method,
            URL(target.url, encoded=True),
            headers={"User-Agent": f"keyferry/{__version__}", "Accept-Encoding": "identity", **headers},
            skip_auto_headers=("Content-Type",),
            data=data,
            ssl=self._context(authorities),
            allow_redirects=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = GuardedResolver(self._policy, aiohttp.ThreadedResolver())
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, limit_per_host=CONNECTIONS, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=TIMEOUT,
                middlewares=[_without_second_try],
            )
        return self._session

    def _context(self, authorities: str | None) -> ssl.SSLContext:
        context = self._contexts.get(authorities)
        if context is None:
            if len(self._contexts) >= CONTEXTS:
                self._contexts.clear()
            context = self._contexts[authorities] = build_context(TlsSettings(authorities))
        return context


async def _without_second_try(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise NotSentTwiceError from error
