"""``keyferry token``: one token on stdout, and nothing else."""

from pathlib import Path
from typing import Annotated

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, CommandError, ExitCode
from keyferry.cli.fast import NOT_A_TOKEN, print_token, stored_token
from keyferry.model import ObjectKey

app = typer.Typer(add_completion=False)

_LEAST = 0.001
"""Seconds that a token must have left once it was renewed for this request: it has to be alive, at least."""


@app.command(help=f"Print the identity's token and a line end; on any failure nothing is printed.\n\n{EXIT_HELP}")
@opt.with_shared_options
def token(
    name: opt.Name,
    *,
    minimum_remaining: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long the token must live on. Default: renewal.minimumRemaining, and at least a few seconds.",
            show_default=False,
        ),
    ] = None,
    given: opt.Given,
) -> None:
    """Print what is stored if it will do, else have it renewed."""
    minimum = opt.duration(minimum_remaining, "--minimum-remaining") if minimum_remaining is not None else None
    options = given.options
    key = options.keys([name])[0]
    text = stored_token(str(options.state), key.namespace, key.name, minimum)
    if text is None:
        trouble = _renew(options, name, minimum, given.patience)
        # Where only the files could not be written there is a token all the same.
        text = stored_token(
            str(options.state), key.namespace, key.name, minimum if trouble is not None else minimum or _LEAST
        )
        if text is None and trouble is not None:
            raise trouble
    if text is None:
        raise _nothing_to_print(options.state, key)
    print_token(text)


def _nothing_to_print(state: Path, key: ObjectKey) -> CommandError:
    """Return why there is no token although all is well."""
    from keyferry.run.stored_token import read_record  # noqa: PLC0415 - only where there is something to explain

    record = read_record(state, key)
    if record is not None and record.token is not None and record.token.token_type == NOT_A_TOKEN:
        return CommandError(
            f"{key} is a LabArchives login, which is no token: use `keyferry exec {key.name} -- CMD`",
            ExitCode.FAILED,
        )
    return CommandError(f"the token of {key} is gone again before it could be read; ask once more", ExitCode.FAILED)


def _renew(given: opt.Options, name: str, minimum: float | None, patience: float) -> CommandError | None:
    """Have the token renewed; return what there is to say where that failed. Raises CommandError."""
    from keyferry.cli.sessions import ask, run_to_end  # noqa: PLC0415 - only where a broker is needed
    from keyferry.run.requests import Outcome  # noqa: PLC0415

    settings, key = given.settings(), given.keys([name])[0]

    answers = []

    async def work() -> int:
        answers.append(await ask(settings, [key], lambda broker: broker.want(key, minimum, patience)))
        return 0

    code = run_to_end(work())
    if code:
        opt.leave(code)
    return None if answers[0].outcome is Outcome.DONE else CommandError.of(answers[0])
