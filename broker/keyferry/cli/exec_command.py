"""``keyferry exec``: run a command with fresh tokens."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, CommandError, ExitCode
from keyferry.engine.status import Level

if TYPE_CHECKING:
    from keyferry.cli.child import Signals
    from keyferry.cli.keeper import Keeper
    from keyferry.model import ObjectKey
    from keyferry.run.settings import RunSettings

app = typer.Typer(add_completion=False)


@app.command(
    name="exec",
    help="Run CMD with the token files of the identities, and keep them fresh until it ends:"
    " keyferry exec NAME... -- CMD [ARG...]"
    "\n\nThe exit code is CMD's; 128 + n if signal n ended it; 126 or 127 if it cannot be started.\n\n"
    f"{EXIT_HELP}",
)
@opt.with_shared_options
def execute(
    ctx: typer.Context,
    names: opt.Names,
    *,
    minimum_remaining: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long the tokens must live on when CMD starts. Default: renewal.minimumRemaining.",
            show_default=False,
        ),
    ] = None,
    env: Annotated[
        bool, typer.Option("--env", help="Also set the variables in Env files, as they are when CMD starts.")
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="HOME of CMD, for clients that look for their files there (format AIoD).",
            show_default=False,
        ),
    ] = None,
    given: opt.Given,
) -> None:
    """Wait for good tokens, start CMD, and end as it ends."""
    command = ctx.obj
    if not command:
        raise CommandError("name the command after two dashes: keyferry exec NAME... -- CMD [ARG...]", ExitCode.INVALID)
    minimum = opt.duration(minimum_remaining, "--minimum-remaining") if minimum_remaining is not None else None
    options = given.options
    work = _Execution(options.settings(), options.keys(names), given.level, command, home)
    opt.leave(work.run(minimum, given.patience, with_env=env))


class _Execution:
    """One command and its tokens."""

    def __init__(
        self,
        settings: "RunSettings",
        keys: "list[ObjectKey]",
        level: Level,
        command: list[str],
        home: Path | None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._level = level
        self._command = command
        self._home = home.absolute() if home is not None else None
        self._interrupted = 0

    def run(self, minimum: float | None, patience: float, *, with_env: bool) -> int:
        """Run it; return the exit code."""
        return asyncio.run(self._run(minimum, patience, with_env=with_env))

    async def _run(self, minimum: float | None, patience: float, *, with_env: bool) -> int:
        from keyferry.cli.child import Signals  # noqa: PLC0415 - slow to import
        from keyferry.cli.keeper import Keeper  # noqa: PLC0415

        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def interrupted(number: int) -> None:
            self._interrupted = number
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)

        signals = Signals(interrupted)
        try:
            async with Keeper(self._settings, self._keys, self._level) as keeper:
                return await self._execute(keeper, signals, minimum, patience, with_env=with_env)
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            return 128 + self._interrupted
        finally:
            signals.close()

    async def _execute(
        self, keeper: "Keeper", signals: "Signals", minimum: float | None, patience: float, *, with_env: bool
    ) -> int:
        from keyferry.cli.child import Child  # noqa: PLC0415
        from keyferry.cli.client_environment import ClientEnvironment  # noqa: PLC0415
        from keyferry.cli.environment import environment  # noqa: PLC0415

        places = await keeper.good_tokens(minimum, patience)
        inherited = dict(os.environ) | ({"HOME": str(self._home)} if self._home is not None else {})
        clients = ClientEnvironment(self._settings, self._keys, lambda: keeper.broker, self._home)
        async with clients.within(places, inherited):
            child = Child(self._command, environment(inherited, places, with_env=with_env), signals.before)
            signals.forward_to(child)
            keeper.watch()
            return await asyncio.to_thread(child.wait)
