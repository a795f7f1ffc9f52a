"""``keyferry login``: a person approves what an identity needs."""

import time
from typing import Annotated, Final

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, OF_OUTCOME, ExitCode

app = typer.Typer(add_completion=False)

LONGEST: Final = 250.0
"""Seconds that one request to a running broker may wait."""


@app.command(
    help="Approve an identity: shows where to log in, and waits until it was done. Also before the session ends.\n\n"
    + EXIT_HELP
)
@opt.with_shared_options
def login(
    name: opt.Name,
    *,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Wait for the person. Without, a running `keyferry run` goes on waiting."
        ),
    ] = True,
    given: opt.Given,
) -> None:
    """Ask the running broker, or do it ourselves."""
    opt.leave(_login(given.options, name, given.patience, wait=wait))


def _login(given: opt.Options, name: str, patience: float, *, wait: bool) -> int:
    from keyferry.cli.sessions import OwnBroker, RunningBroker, ask, run_to_end  # noqa: PLC0415 - slow to import
    from keyferry.cli.showing import LAPSED, show  # noqa: PLC0415
    from keyferry.run.requests import Answer, Outcome  # noqa: PLC0415
    from keyferry.run.status_json import timestamp  # noqa: PLC0415

    settings, (key,) = given.settings(), given.keys([name])

    async def converse(broker: OwnBroker | RunningBroker) -> Answer:
        answer = await broker.login(key, patience, begin=True)
        shown = None
        while answer.outcome is Outcome.PERSON and answer.status is not None and answer.status.prompt is not None:
            prompt = answer.status.prompt
            if prompt != shown:
                show(prompt, str(key))
                shown = prompt
            if not wait or time.time() >= prompt.expires_at:
                break
            left = max(1.0, prompt.expires_at - time.time())
            answer = await broker.login(key, min(left, LONGEST), begin=False)
        return answer

    async def work() -> int:
        answer = await ask(settings, [key], converse, prompts=True)
        status = answer.status
        if answer.outcome is Outcome.DONE and status is not None and status.expiration_time:
            until = timestamp(status.expiration_time)
            typer.echo(f"{key}: approved, revision {status.revision}, good until {until}")
        elif not wait and status is not None and status.prompt is not None:
            return ExitCode.DONE  # it was shown, and a running broker goes on
        else:
            opt.complain(answer.message or f"{key}: {LAPSED}")
        return OF_OUTCOME[answer.outcome]

    return run_to_end(work())
