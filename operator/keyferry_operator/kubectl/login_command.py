"""``kubectl keyferry login``: a person approves what an identity of the cluster needs."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer

from keyferry.cli import options as shared
from keyferry.cli.exits import CommandError, ExitCode
from keyferry_operator.kubectl import options as opt
from keyferry_operator.kubectl.app import EXIT_HELP

app = typer.Typer(add_completion=False)

POLL: Final = 1.0


@app.command(
    help="Approve an identity: shows where to log in, and waits until it was done. Also before the session ends.\n\n"
    + EXIT_HELP
)
@opt.with_place
def login(
    name: opt.Name,
    *,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the person has approved.")] = True,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait for a question to show.")] = "2m",
    given: opt.Place,
) -> None:
    """Show the question that the status holds, asking for one where there is none."""
    from keyferry.cli.showing import LAPSED, show  # noqa: PLC0415 - slow to import
    from keyferry.run.status_json import timestamp  # noqa: PLC0415
    from keyferry_operator.kubectl.approving import Approving  # noqa: PLC0415

    patience = shared.duration(timeout, "--timeout")
    with given.connect() as api:
        approving = Approving(api, given.namespace, given.home, name)
        prompt = approving.question(patience)
        if prompt is not None:
            show(prompt, approving.key)
            if not wait:
                shared.leave(ExitCode.DONE)
        while (status := approving.look()).prompt is not None and status.prompt == prompt:
            if time.time() >= status.prompt.expires_at:
                break
            time.sleep(POLL)
        if status.unapproved and status.ready(api.now()):
            raise CommandError(f"{approving.key}: {status.login_failure}", ExitCode.PERSON)
        if status.prompt is not None and status.prompt == prompt:
            raise CommandError(f"{approving.key}: {LAPSED}", ExitCode.PERSON)
        if status.prompt is not None or status.stalled() or not status.ready(api.now()):
            raise CommandError(f"{approving.key}: {status.message}", ExitCode.PERSON)
        until = timestamp(status.expiration_time) if status.expiration_time is not None else "?"
        typer.echo(f"{approving.key}: approved, revision {status.revision}, good until {until}")
