"""``keyferry demo``: see tokens being renewed, without any set-up."""

import asyncio
import logging
from typing import Annotated

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import CommandError, ExitCode
from keyferry.engine.status import Level

app = typer.Typer(add_completion=False)

_SHORTEST = 2.0
"""Seconds; a token that lives less would expire while it is being renewed."""


@app.command(help="Watch four identities being renewed, against an issuer of its own on the loopback.")
def demo(
    *,
    keep: Annotated[
        bool | None,
        typer.Option("--keep/--no-keep", help="Go on until stopped. Default: on a terminal, yes.", show_default=False),
    ] = None,
    lifetime: Annotated[str, typer.Option(metavar="DURATION", help="How long the access tokens live.")] = "6s",
) -> None:
    """Run the demo."""
    seconds = opt.duration(lifetime, "--lifetime")
    if seconds < _SHORTEST:
        raise CommandError(f"--lifetime must be at least {_SHORTEST:.0f}s", ExitCode.INVALID)
    from keyferry.demo.command import run_demo  # noqa: PLC0415 - slow to import

    # What the demo has to say it says itself; a log would only tear its table.
    opt.set_up_logging(logging.NullHandler(), Level.ERROR)
    opt.leave(asyncio.run(run_demo(keep=keep, lifetime=seconds)))
