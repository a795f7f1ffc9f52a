"""``keyferry renew``: new tokens now."""

import asyncio

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, OF_OUTCOME, ExitCode

app = typer.Typer(add_completion=False)


@app.command(help=f"Renew now: each identity once a minute at most.\n\n{EXIT_HELP}")
@opt.with_shared_options
def renew(
    names: opt.Names,
    *,
    given: opt.Given,
) -> None:
    """Ask the running broker, or do it ourselves."""
    opt.leave(_renew(given.options, names, given.patience))


def _renew(given: opt.Options, names: list[str], patience: float) -> int:
    from keyferry.cli.sessions import OwnBroker, RunningBroker, ask, run_to_end  # noqa: PLC0415 - slow to import
    from keyferry.run.requests import Answer, Outcome  # noqa: PLC0415
    from keyferry.run.status_json import timestamp  # noqa: PLC0415

    settings, keys = given.settings(), given.keys(names)

    async def renew_all(broker: OwnBroker | RunningBroker) -> list[Answer]:
        return list(await asyncio.gather(*(broker.renew(key, patience) for key in keys)))

    async def work() -> int:
        codes = set()
        for key, answer in zip(keys, await ask(settings, keys, renew_all), strict=True):
            codes.add(OF_OUTCOME[answer.outcome])
            if answer.outcome is Outcome.DONE and answer.status is not None and answer.status.expiration_time:
                until = timestamp(answer.status.expiration_time)
                typer.echo(f"{key}: renewed, revision {answer.status.revision}, good until {until}")
            elif answer.outcome is not Outcome.DONE:
                opt.complain(answer.message)
        order = (ExitCode.INVALID, ExitCode.PERSON, ExitCode.FAILED, ExitCode.DONE)
        return next(code for code in order if code in codes)

    return run_to_end(work())
