"""Keeps identities fresh while another program runs, whatever becomes of the broker that did so at first."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, Self

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.options import complain
from keyferry.cli.outputs import PlainOutput
from keyferry.cli.sessions import HELD_FOR, POLL, OwnBroker, RunningBroker, own_broker, session
from keyferry.errors import KeyferryError
from keyferry.io.state_dir import StateHeld
from keyferry.run.control import NobodyAnswersError
from keyferry.run.requests import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from keyferry.engine import Level
    from keyferry.model import ObjectKey
    from keyferry.run.settings import RunSettings

LOOK: Final = 2.0
"""Seconds between looks whether a broker is still there."""


class Keeper:
    """Use it in ``async with``: then a broker works on the identities, somebody else's or ours."""

    def __init__(self, settings: RunSettings, keys: Sequence[ObjectKey], level: Level) -> None:
        self._settings = settings
        self._keys = keys
        self._output = PlainOutput(level)
        self._stack = contextlib.AsyncExitStack()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._broker = await self._stack.enter_async_context(session(self._settings, self._keys, keep_watch=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        try:
            await self._stack.aclose()
        except KeyferryError as trouble:
            complain(trouble.message)

    async def good_tokens(self, minimum: float | None, patience: float) -> list[dict[str, Any]]:
        """Wait until every identity has a token that lives long enough; return their places. Raises CommandError."""
        deadline = time.monotonic() + HELD_FOR
        while True:
            try:
                answers = await asyncio.gather(*(self._broker.want(key, minimum, patience) for key in self._keys))
                for answer in answers:
                    if answer.outcome is not Outcome.DONE:
                        raise CommandError.of(answer)
                return [await self._broker.place(key) for key in self._keys]
            except NobodyAnswersError as error:
                if time.monotonic() > deadline:
                    raise CommandError(error.message, ExitCode.HELD) from error
            await self._take_over()
            await asyncio.sleep(POLL)

    @property
    def broker(self) -> RunningBroker | OwnBroker:
        """Who works on the identities just now."""
        return self._broker

    def watch(self) -> None:
        """From now on, tell what goes wrong, and take over from a broker that is gone."""
        self._listen()
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - whatever happens here, the command goes on
                complain(f"the tokens may not be renewed for now ({type(error).__name__}); keyferry tries again")
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        match self._broker:
            case OwnBroker(broker=broker):
                await broker.run()
                complain("the engine ended by itself; the tokens are no longer renewed")
                await asyncio.Event().wait()
            case RunningBroker() as running:
                try:
                    await running.place(self._keys[0])
                except NobodyAnswersError:
                    await self._take_over()

    async def _take_over(self) -> None:
        """Become the broker, unless somebody else does."""
        try:
            self._broker = await self._stack.enter_async_context(
                own_broker(self._settings, self._keys, keep_watch=True)
            )
        except StateHeld:
            return  # somebody is starting, or stopping
        if self._watching is not None:
            complain("the broker that kept the tokens fresh is gone; this keyferry goes on by itself")
            self._listen()

    def _listen(self) -> None:
        if isinstance(self._broker, OwnBroker):
            self._broker.broker.reporter.listeners.append(self._output)
