"""Whoever can answer a command: the broker that holds the state, else one of our own while the command lasts."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.io.state_dir import StateHeld
from keyferry.run import signing
from keyferry.run.broker import LocalBroker
from keyferry.run.control import ControlClient, ControlServer, NobodyAnswersError, place
from keyferry.run.requests import login, renew, want
from keyferry.spec.loaded import IDENTITY_KIND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence

    from keyferry.model import ObjectKey
    from keyferry.run.requests import Answer
    from keyferry.run.settings import RunSettings
    from keyferry.run.signing import Call
    from keyferry.spec.loaded import Loaded

T = TypeVar("T")

POLL: Final = 0.1
HELD_FOR: Final = 10.0
"""Seconds that a broker may hold the state without answering: it is starting, or stopping."""


class Session(Protocol):
    """What commands ask of a broker. Raises NobodyAnswersError when it is gone."""

    async def want(self, key: ObjectKey, minimum: float | None, patience: float) -> Answer:
        """Wait for a token that lives long enough."""

    async def renew(self, key: ObjectKey, patience: float) -> Answer:
        """Renew now, and wait for it."""

    async def login(self, key: ObjectKey, patience: float, *, begin: bool) -> Answer:
        """Have a person asked, or wait for what they say."""

    async def place(self, key: ObjectKey) -> dict[str, Any]:
        """Tell where an identity's files are, and their formats."""

    async def labarchives(self, key: ObjectKey, call: Call, method: str) -> dict[str, Any]:
        """Do what the loopback endpoint of a LabArchives identity needs."""


class RunningBroker:
    """The broker that holds the state, over its control socket: a connection for each request."""

    def __init__(self, settings: RunSettings) -> None:
        self._state = settings.state

    async def want(self, key: ObjectKey, minimum: float | None, patience: float) -> Answer:
        """Wait for a token that lives long enough."""
        answer: Answer = await self._ask(lambda client: client.want(key, minimum, patience))
        return answer

    async def renew(self, key: ObjectKey, patience: float) -> Answer:
        """Renew now, and wait for it."""
        answer: Answer = await self._ask(lambda client: client.renew(key, patience))
        return answer

    async def login(self, key: ObjectKey, patience: float, *, begin: bool) -> Answer:
        """Have a person asked, or wait for what they say."""
        answer: Answer = await self._ask(lambda client: client.login(key, patience, begin=begin))
        return answer

    async def place(self, key: ObjectKey) -> dict[str, Any]:
        """Tell where an identity's files are, and their formats; also a way to see that it still answers."""
        found: dict[str, Any] = await self._ask(lambda client: client.place(key))
        return found

    async def labarchives(self, key: ObjectKey, call: Call, method: str) -> dict[str, Any]:
        """Do what the loopback endpoint of a LabArchives identity needs."""
        found: dict[str, Any] = await self._ask(lambda client: client.labarchives(key, call, method))
        return found

    async def check(self) -> None:
        """Raise NobodyAnswersError where nobody answers."""
        await self._ask(lambda _client: None)

    async def _ask(self, work: Callable[[ControlClient], Any]) -> Any:
        def ask() -> Any:
            with ControlClient(self._state) as client:
                return work(client)

        return await asyncio.to_thread(ask)


class OwnBroker:
    """A broker of our own, for a few identities; it answers others on the control socket while it lasts."""

    def __init__(self, broker: LocalBroker) -> None:
        self.broker = broker

    async def want(self, key: ObjectKey, minimum: float | None, patience: float) -> Answer:
        """Wait for a token that lives long enough."""
        return await want(self.broker, key, minimum, patience)

    async def renew(self, key: ObjectKey, patience: float) -> Answer:
        """Renew now, and wait for it."""
        return await renew(self.broker, key, patience, just_started=True)

    async def login(self, key: ObjectKey, patience: float, *, begin: bool) -> Answer:
        """Have a person asked, or wait for what they say."""
        return await login(self.broker, key, patience, begin=begin)

    async def place(self, key: ObjectKey) -> dict[str, Any]:
        """Tell where an identity's files are, and their formats."""
        return place(self.broker, key)

    async def labarchives(self, key: ObjectKey, call: Call, method: str) -> dict[str, Any]:
        """Do what the loopback endpoint of a LabArchives identity needs."""
        return await signing.answer(self.broker, key, call, method)


@contextlib.asynccontextmanager
async def own_broker(
    settings: RunSettings, keys: Sequence[ObjectKey], *, keep_watch: bool = False, prompts: bool = False
) -> AsyncIterator[OwnBroker]:
    """Hold the state and work on ``keys``. Raises StateHeld, StoreError, and CommandError where one is not declared."""
    if not settings.paths:
        raise CommandError(
            f"no keyferry runs on {settings.state}, and it is not known which resource files to use:"
            " start `keyferry run PATH`, or name them with --resources PATH",
            ExitCode.INVALID,
        )
    async with LocalBroker(settings, only=keys, keep_watch=keep_watch, prompts=prompts) as broker:
        _check_declared(await broker.load(), keys)
        await broker.start()
        async with ControlServer(broker):
            yield OwnBroker(broker)


@contextlib.asynccontextmanager
async def session(
    settings: RunSettings, keys: Sequence[ObjectKey], *, keep_watch: bool = False, prompts: bool = False
) -> AsyncIterator[RunningBroker | OwnBroker]:
    """Reach the broker that holds the state, or become it. Raises CommandError, and what ``own_broker`` raises.

    ``prompts`` tells whether the command would show a person what they are asked.
    """
    deadline = time.monotonic() + HELD_FOR
    async with contextlib.AsyncExitStack() as stack:
        while True:
            running = RunningBroker(settings)
            try:
                await running.check()
            except NobodyAnswersError:
                pass
            else:
                yield running
                return
            try:
                own = await stack.enter_async_context(
                    own_broker(settings, keys, keep_watch=keep_watch, prompts=prompts)
                )
            except StateHeld as error:
                if time.monotonic() > deadline:
                    raise CommandError(f"{error.message} It does not answer.", ExitCode.HELD) from error
                await asyncio.sleep(POLL)
            else:
                yield own
                return


async def ask(
    settings: RunSettings,
    keys: Sequence[ObjectKey],
    work: Callable[[RunningBroker | OwnBroker], Awaitable[T]],
    *,
    prompts: bool = False,
) -> T:
    """Do ``work`` with whoever answers; once more where a broker ended meanwhile. Raises as ``session``."""
    deadline = time.monotonic() + HELD_FOR
    while True:
        async with session(settings, keys, prompts=prompts) as broker:
            try:
                return await work(broker)
            except NobodyAnswersError as error:
                if time.monotonic() > deadline:
                    raise CommandError(error.message, ExitCode.HELD) from error
        await asyncio.sleep(POLL)


def run_to_end(work: Coroutine[Any, Any, int]) -> int:
    """Run a command's coroutine; SIGINT and SIGTERM cancel it, so that a spend under way is still finished."""

    async def main() -> int:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate, task)
        try:
            return await task
        except asyncio.CancelledError:
            if not terminated:
                raise
            return 128 + signal.SIGTERM

    terminated: list[bool] = []

    def terminate(task: asyncio.Future[int]) -> None:
        terminated.append(True)
        task.cancel()

    return asyncio.run(main())


def _check_declared(loaded: Loaded, keys: Sequence[ObjectKey]) -> None:
    declared = {identity.key for identity in loaded.identities}
    missing = [key for key in keys if key not in declared]
    if not missing:
        return
    invalid = [key for key in missing if (IDENTITY_KIND, key) in loaded.invalid]
    if invalid or (loaded.problems and not loaded.identities):
        lines = "\n".join(f"  {problem}" for problem in loaded.problems)
        raise CommandError(f"the resources have mistakes:\n{lines}", ExitCode.INVALID)
    names = ", ".join(sorted(str(key) for key in declared)[:20]) or "none"
    raise CommandError(
        f"no ServiceIdentity {', '.join(map(str, missing))} is declared in the resource files (declared: {names})",
        ExitCode.INVALID,
    )
