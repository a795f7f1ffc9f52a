"""``kubectl keyferry renew``: new tokens now, and how it went."""

from __future__ import annotations

from typing import Annotated

import typer

from keyferry.cli import options as shared
from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.settling import GRAVITY
from keyferry_operator.kubectl import options as opt
from keyferry_operator.kubectl.app import EXIT_HELP

app = typer.Typer(add_completion=False)


@app.command(help=f"Have identities renewed now: each once a minute at most.\n\n{EXIT_HELP}")
@opt.with_place
def renew(
    names: opt.Names,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the outcome and tell it.")] = True,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait.")] = "2m",
    given: opt.Place,
) -> None:
    """Set the annotation that asks for a renewal, and wait for the status that tells of it."""
    from keyferry_operator.kubectl.renewing import Renewing  # noqa: PLC0415 - slow to import

    patience = shared.duration(timeout, "--timeout")
    codes = set()
    with given.connect() as api:
        renewing = Renewing(api, given.namespace, given.home)
        for name in dict.fromkeys(names):
            try:
                renewing.ask(name)
                if not wait:
                    typer.echo(f"{given.namespace}/{name}: asked")
            except CommandError as error:
                shared.complain(error.message)
                codes.add(error.code)
        for outcome in renewing.outcomes(patience) if wait else ():
            codes.add(outcome.code)
            if outcome.code is ExitCode.DONE:
                typer.echo(outcome.message)
            else:
                shared.complain(outcome.message)
    shared.leave(next((code for code in GRAVITY if code in codes), ExitCode.DONE))
