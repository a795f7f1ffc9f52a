"""The life of an operator's process: from the first connection to the last status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from keyferry.cli.exits import ExitCode
from keyferry.run.metrics import MetricsServer
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from keyferry.cli.outputs import LinesOutput
    from keyferry_operator.operator import Operator

log = logging.getLogger(__name__)

CONNECT_PAUSE: Final = 5.0
"""Seconds until the API server is tried again at the start."""


async def serve(process: Operator, metrics: str | None, output: LinesOutput) -> int:
    """Run ``process``, with probes at ``metrics``, until a signal; return the exit code."""
    stopping = asyncio.Event()
    with _signals(stopping):
        async with contextlib.AsyncExitStack() as stack:
            if not await _connect(process, stopping):
                return ExitCode.DONE
            stack.push_async_exit(process.__aexit__)
            process.reporter.listeners.append(output)
            await stack.enter_async_context(_metrics(process, metrics))
            running = asyncio.create_task(process.run())
            asked = asyncio.create_task(stopping.wait())
            await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            process.stop()
            await running
    return ExitCode.DONE


async def _connect(process: Operator, stopping: asyncio.Event) -> bool:
    """Wait until the API server answers; False where a signal came first.

    To end instead would have Kubernetes wait longer and longer before each start, and answers in escrow with it.
    """
    while not stopping.is_set():
        try:
            await process.__aenter__()
        except ApiError as error:
            log.error("the operator cannot start yet: %s; trying again in %.0f s", error.message, CONNECT_PAUSE)  # noqa: TRY400 - its place says nothing
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_PAUSE):
                    await stopping.wait()
        else:
            return True
    return False


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT ask for an orderly end; a second SIGINT ends at once."""
    loop = asyncio.get_running_loop()

    def hear(number: int) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            os._exit(128 + number)
        if not stopping.is_set():
            log.info("stopping: what is being spent and committed is finished first, for at most a minute")
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class Probes(MetricsServer):
    """Metrics, among them whose the shards are, ``/healthz``, and ``/readyz``: a standby is ready too, for rollouts."""

    def __init__(self, process: Operator, address: str) -> None:
        super().__init__(process.engine, address)
        self._process = process
        self._count = process.settings.shards

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if request.path != "/readyz" or request.method not in {"GET", "HEAD"}:
            answer = await super()._handle(request)
            if request.path == "/metrics" and isinstance(answer.body, bytes) and answer.status == HTTPStatus.OK:
                answer.body += self._more()
            return answer
        ready = self._process.ready
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "not ready\n")

    def _more(self) -> bytes:
        """Return the series that the engine does not know of, in the Prometheus text format."""
        held = self._process.engine.held_shards
        lines = [
            "# HELP keyferry_shard_held 1 where this replica works on the shard, else 0.",
            "# TYPE keyferry_shard_held gauge",
            *(f'keyferry_shard_held{{shard="{each}"}} {int(each in held)}' for each in range(self._count)),
            *(self._process.broker.series() if self._process.broker is not None else ()),
            *(self._process.webhook.series() if self._process.webhook is not None else ()),
        ]
        return ("\n".join(lines) + "\n").encode()


@contextlib.asynccontextmanager
async def _metrics(process: Operator, address: str | None) -> AsyncIterator[None]:
    if address is None:
        yield
        return
    server = Probes(process, address)
    await server.start()
    process.reporter.listeners.append(server)
    try:
        log.info("metrics are at %s", server.url)
        yield
    finally:
        process.reporter.listeners.remove(server)
        await server.close()
