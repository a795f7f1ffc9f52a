"""The HTTPS server of the operator: the broker API, and what else the cluster calls (the admission webhook)."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

from keyferry.errors import KeyferryError
from keyferry.io.tls import use_small_buffers
from keyferry.web.serving import Server, base_url, listen, port_of
from keyferry.wire import ProblemReason
from keyferry_operator.api.answers import Denied, unavailable, unexpected
from keyferry_operator.api.routes import Routes

if TYPE_CHECKING:
    from types import TracebackType

    from aiohttp import web

    from keyferry_operator.api.certificates import Certificates

log = logging.getLogger(__name__)

MOST_HEADERS: Final = 64
LONGEST_LINE: Final = 16 * 1024
"""Bytes of the request line, and of one header: a service-account token is about 1.2 kB long."""
IDLE: Final = 75.0
"""Seconds for which a connection without a request is kept."""
START_PAUSE: Final = 5.0
"""Seconds until a certificate is looked for again, where there was none."""


class ApiServer:
    """Serves ``routes`` on one address. Use it in ``async with``; it listens from there on."""

    def __init__(self, certificates: Certificates, host: str, port: int, *, start_pause: float = START_PAUSE) -> None:
        """Port 0 lets the system choose."""
        self._start_pause = start_pause
        self.routes = Routes()
        """What is served; add to it before it listens."""
        self.certificates = certificates
        self._host, self._port = host, port
        self._runner: web.ServerRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return base_url(self._host, self._port, "https")

    @property
    def listening(self) -> bool:
        """Whether it can be asked."""
        return self._runner is not None

    async def __aenter__(self) -> Self:
        """Listen as soon as there is a certificate. Raises KeyferryError where the address cannot be had."""
        try:
            await self.certificates.start()
        except KeyferryError as error:
            # The API is not what keeps Secrets fresh: the operator works without it meanwhile.
            log.error("the broker API cannot be served yet: %s", error)  # noqa: TRY400 - its place says nothing
            self._tasks.append(asyncio.create_task(self._start_later(), name="broker-api"))
            return self
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def drain(self) -> None:
        """Ask every connection to be closed after its next answer, so that its client goes to another replica."""
        self._draining = True

    async def _start_later(self) -> None:
        while True:
            await asyncio.sleep(self._start_pause)
            try:
                await self.certificates.start()
                await self._listen()
            except KeyferryError as error:
                log.error("the broker API cannot be served yet: %s", error)  # noqa: TRY400
            else:
                return

    async def _listen(self) -> None:
        use_small_buffers()
        server = Server(
            self._handle,
            cancels=True,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            keepalive_timeout=IDLE,
        )
        self._runner = await listen(
            server,
            self._host,
            self._port,
            what="The broker API",
            advice="Name another address with --broker, or stop what uses this one.",
            tls=self.certificates.context,
        )
        self._port = port_of(self._runner)
        self._tasks.append(asyncio.create_task(self.certificates.run(), name="certificates"))
        log.info("the broker API is at %s", self.url)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._answer(request)
        except Denied as denied:
            response = denied.response()
        except KeyferryError as error:
            log.warning("a request could not be answered: %s", error)
            response = unavailable("the broker cannot answer just now; ask again", START_PAUSE).response()
        except Exception as error:  # noqa: BLE001 - a defect of ours; what it says may hold anything
            log.error("a request could not be answered: unexpected %s", type(error).__name__)  # noqa: TRY400
            response = unexpected().response()
        if self._draining:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if len(request.headers) > MOST_HEADERS:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise Denied(status, ProblemReason.BAD_REQUEST, "there are too many headers")
        return await self.routes.handle(request)
