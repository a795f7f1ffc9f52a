"""kopf's connection to the API server, by which a watch goes on where our own list ended.

kopf lists a kind before it watches it. The operator has just read the same objects when it starts kopf, and for ten
thousand of them a second list costs more than the first. So the first list of each kind is answered here: nothing is
new since the version at which ours ended, and the watch tells what came after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, cast, final

import aiohttp
import kopf

if TYPE_CHECKING:
    from types import TracebackType

    from keyferry_operator.client import Object

_WATCHING: Final = "watch=true"


def connect(info: kopf.ConnectionInfo, ends: dict[str, str]) -> kopf.AiohttpSession:
    """Return a session for kopf; call it in kopf's loop, and let kopf close it.

    ``ends`` has the resourceVersion at which a list ended, by the URL path of the collection. Each is used once: kopf
    lists anew where a watch has expired, or where it was started again, and is told everything then.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
    )
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        aiohttp_session=cast("aiohttp.ClientSession", _Session(session, info.server.rstrip("/"), ends)),
    )


@final
class _Session:
    """As much of an aiohttp session as kopf uses."""

    def __init__(self, session: aiohttp.ClientSession, server: str, ends: dict[str, str]) -> None:
        self._session = session
        self._server = server
        self._ends = ends
        self.headers = session.headers
        self.close = session.close

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def request(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        path, _, query = url.removeprefix(self._server).partition("?")
        version = self._ends.pop(path, "") if method == "get" and _WATCHING not in query else ""
        if version:
            return cast("aiohttp.ClientResponse", _NothingNew(version))
        return await self._session.request(method, url, **options)


@final
class _NothingNew:
    """The answer to a list, as much of it as kopf looks at."""

    status: Final = 200

    def __init__(self, version: str) -> None:
        self._version = version

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def json(self) -> Object:
        return {"metadata": {"resourceVersion": self._version}, "items": []}
