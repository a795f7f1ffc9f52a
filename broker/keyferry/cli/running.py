"""The life of a ``keyferry run``: from reading the resources to the last commit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.options import complain
from keyferry.cli.sessions import OwnBroker
from keyferry.cli.settling import Settling
from keyferry.engine import Event, Level
from keyferry.errors import KeyferryError, Reason
from keyferry.io.state_dir import StateHeld
from keyferry.run.broker import LocalBroker
from keyferry.run.control import ControlServer
from keyferry.run.last_run import remember
from keyferry.run.viewers import TOKEN_NAME
from keyferry.spec.check import check_loaded
from keyferry.web.page.peers import DIRECT, Peers
from keyferry.web.presented import key_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from keyferry.cli.outputs import Output
    from keyferry.run.settings import RunSettings
    from keyferry.spec.problem import Problem

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR: Final = "\x1b[?25h"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What ``run`` does beside what the settings say."""

    once: float | None = None
    """Seconds in which every token must be fresh; None runs on."""
    metrics: str | None = None
    """Address of the metrics."""
    loopback: tuple[str, int] | None = None
    """Where the loopback endpoints are served."""
    page: tuple[str, int] | None = None
    """Where the approval page is served; people find it at ``RunSettings.page_url``."""
    peers: Peers = DIRECT
    """Knows the proxies in front of the page."""


class Stopping:
    """Hears the signals that end a run: the first one asks for an orderly end, a second SIGINT ends at once."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.requested = asyncio.Event()
        self.signal: int | None = None

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to the signals meanwhile."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._hear, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def _hear(self, number: int) -> None:
        if self.signal is not None and number == signal.SIGINT:
            self._output.close()
            os._exit(128 + number)
        if self.signal is None:
            self.signal = number
            again = "; press Ctrl-C again to end at once" if number == signal.SIGINT else ""
            message = f"stopping: what is under way is finished first, for at most a minute{again}"
            self._output.event(Event(Level.INFO, "stopping", Reason.SUSPENDED, message))
        self.requested.set()


async def run_broker(settings: RunSettings, options: RunOptions, output: Output) -> int:
    """Run until a signal, or with ``once`` until it is clear how it went; return the exit code. Raises CommandError."""
    stopping = Stopping(output)
    with stopping.heard():
        try:
            async with LocalBroker(settings, prompts=options.once is None) as broker:
                return await _Run(settings, options, output, stopping, broker).go()
        except StateHeld as error:
            raise CommandError(error.message, ExitCode.HELD) from error


class _Run:
    def __init__(
        self, settings: RunSettings, options: RunOptions, output: Output, stopping: Stopping, broker: LocalBroker
    ) -> None:
        self._settings = settings
        self._options = options
        self._output = output
        self._stopping = stopping
        self._broker = broker
        self._faulty = False

    async def go(self) -> int:
        """Live."""
        if not await self._load():
            return ExitCode.INVALID
        trouble = remember(self._settings)
        if trouble:
            self._say(Level.WARNING, "not_remembered", trouble)
        async with self._loopback():
            return await self._work()

    async def _work(self) -> int:
        await self._broker.start()
        self._broker.reporter.listeners.append(self._output)
        async with ControlServer(self._broker), self._metrics(), self._page():
            self._say(Level.INFO, "started", self._greeting())
            watching = asyncio.create_task(self._output.watch(self._broker))
            try:
                return await self._until_end()
            finally:
                self._broker.stop()
                await asyncio.gather(self._broker.run(), return_exceptions=True)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    async def _load(self) -> bool:
        """Read the resources and tell every mistake; False where there is nothing left to do."""
        loaded = await self._broker.load()
        problems = [*loaded.problems, *check_loaded(loaded)]
        self._faulty = bool(problems)
        self._tell(problems)
        if loaded.identities:
            return True
        where = ", ".join(str(path) for path in self._settings.paths)
        if not problems and self._options.once is None:
            self._say(Level.WARNING, "no_resources", f"there is no ServiceIdentity under {where} yet")
            return True
        complain(f"there is no valid ServiceIdentity under {where}, so nothing was started")
        return False

    def _tell(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self._output.event(Event(Level.ERROR, "invalid_resource", problem.reason, str(problem)))

    async def _until_end(self) -> int:
        working = asyncio.ensure_future(self._broker.run())
        tasks: list[asyncio.Future[Any]] = [working, asyncio.ensure_future(self._stopping.requested.wait())]
        settling: asyncio.Task[ExitCode] | None = None
        if self._options.once is not None:
            settling = asyncio.create_task(self._settle(self._options.once))
            tasks.append(settling)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.signal is not None:
                return 128 + self._stopping.signal
            if working.done():
                working.result()
                raise CommandError("the engine ended by itself", ExitCode.FAILED)
            return settling.result() if settling is not None else ExitCode.FAILED
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle(self, patience: float) -> ExitCode:
        settling = Settling(self._broker)
        code = await settling.wait(patience)
        if self._faulty:
            code = ExitCode.INVALID
        level = Level.INFO if code is ExitCode.DONE else Level.ERROR
        self._say(level, "finished", settling.summary())
        return code

    @contextlib.asynccontextmanager
    async def _loopback(self) -> AsyncIterator[None]:
        """Serve the endpoints; before the start, for token files name them."""
        if self._options.loopback is None:
            yield
            return
        from keyferry.cli.endpoints import SessionSource, loopback  # noqa: PLC0415 - only where they are wanted

        broker, session = self._broker, OwnBroker(self._broker)

        def lookup(part: str) -> SessionSource | None:
            key = key_of(part, self._settings.default_namespace)
            endpoint = broker.endpoint(key) if key in broker.engine.roster.entries else None
            if endpoint is None:
                return None
            return SessionSource(lambda: session, self._settings.state, key, endpoint.placeholder)

        host, port = self._options.loopback
        async with loopback(self._settings, lookup, host=host, port=port) as server:
            broker.loopback = server.url
            self._say(Level.INFO, "loopback", f"loopback endpoints are below {server.url}")
            yield

    @contextlib.asynccontextmanager
    async def _metrics(self) -> AsyncIterator[None]:
        if self._options.metrics is None:
            yield
            return
        from keyferry.run.metrics import MetricsServer  # noqa: PLC0415 - only where they are wanted

        server = MetricsServer(self._broker.engine, self._options.metrics, clock=self._broker.clock)
        self._broker.reporter.listeners.append(server)
        await server.start()
        try:
            self._say(Level.INFO, "metrics", f"metrics are at {server.url}")
            yield
        finally:
            await server.close()

    @contextlib.asynccontextmanager
    async def _page(self) -> AsyncIterator[None]:
        if self._options.page is None:
            yield
            return
        from keyferry.web.page.site import ApprovalPage, Site  # noqa: PLC0415 - only where it is wanted

        token = self._settings.state / TOKEN_NAME
        viewers = f"It is in the file {token} of the machine that runs Keyferry."
        site = Site(self._settings.page_url, viewers, self._options.peers)
        async with ApprovalPage(self._broker.engine.approvals, site, *self._options.page):
            self._say(Level.INFO, "page", f"the approval page is at {site.url}; the token for its list is in {token}")
            yield

    def _greeting(self) -> str:
        first = min(self._broker.engine.roster.entries, default=None)
        name = first.name if first is not None else "NAME"
        flags = "" if first is None or first.namespace == "default" else f" -n {first.namespace}"
        return (
            f"token files are in {self._settings.out}/NAMESPACE/NAME; `keyferry token {name}{flags}` prints a token,"
            f" `keyferry exec {name}{flags} -- CMD` runs a command with it"
        )

    def _say(self, level: Level, word: str, message: str) -> None:
        with contextlib.suppress(KeyferryError):
            self._output.event(Event(level, word, Reason.ISSUED, message))
