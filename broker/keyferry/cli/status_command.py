"""``keyferry status``: how all identities are, from the running broker or from what it left."""

import enum
import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, CommandError, ExitCode

if TYPE_CHECKING:
    from keyferry.engine import IdentityStatus
    from keyferry.model import ObjectKey
    from keyferry.run.settings import RunSettings

app = typer.Typer(add_completion=False)

_PIPE_WIDTH = 200
"""Columns of the table where nobody looks at it."""


class Format(enum.StrEnum):
    """How the statuses are printed."""

    JSON = "json"
    WIDE = "wide"


@app.command(help=f"Show how the identities are; 0 if all of them are ready, else 1.\n\n{EXIT_HELP}")
def status(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Identities; without any, all of them.", show_default=False),
    ] = None,
    *,
    output: Annotated[Format | None, typer.Option("--output", "-o", help="json or wide.", show_default=False)] = None,
    namespace: opt.Namespace = None,
    state: opt.State = None,
    resources: opt.Resources = None,
    log_level: opt.LogLevel = None,
) -> None:
    """Ask the running broker, or look for ourselves."""
    given = opt.Options(namespace=namespace, state=state, resources=resources)
    opt.set_up_stderr(log_level)
    settings = given.settings()
    found, running = _gather(settings)
    wanted = _wanted(found, given, names or [], namespace)
    _print(wanted, output)
    if output is None and not running:
        opt.complain(f"no keyferry runs on {settings.state}; this is what is stored there")
    now = time.time()
    ready = bool(wanted) and all(status.ready(now) for status in wanted)
    opt.leave(ExitCode.DONE if ready else ExitCode.FAILED)


def _gather(settings: "RunSettings") -> "tuple[dict[ObjectKey, IdentityStatus], bool]":
    """Return the statuses, and whether they are all from a running broker."""
    from keyferry.cli.stored_status import stored_statuses  # noqa: PLC0415 - slow to import
    from keyferry.run.control import ControlClient, NobodyAnswersError  # noqa: PLC0415
    from keyferry.run.status_json import decode_status  # noqa: PLC0415

    try:
        with ControlClient(settings.state) as client:
            answer = client.statuses()
    except NobodyAnswersError:
        return stored_statuses(settings), False
    statuses = [decode_status(item) for item in answer["identities"]]
    found = {status.key: status for status in statuses}
    # A broker that only serves `exec` or `token` knows of few; the others are as they were left.
    return ({**stored_statuses(settings), **found}, True) if answer["selective"] else (found, True)


def _wanted(
    found: "dict[ObjectKey, IdentityStatus]", given: opt.Options, names: list[str], namespace: str | None
) -> "list[IdentityStatus]":
    if not names:
        return [status for key, status in found.items() if namespace is None or key.namespace == namespace]
    keys = given.keys(names)
    missing = [str(key) for key in keys if key not in found]
    if missing:
        raise CommandError(f"there is no ServiceIdentity {', '.join(missing)}", ExitCode.INVALID)
    return [found[key] for key in keys]


def _print(statuses: "list[IdentityStatus]", output: Format | None) -> None:
    from keyferry.run.status_json import status_list  # noqa: PLC0415 - slow to import

    if output is Format.JSON:
        typer.echo(json.dumps(status_list(statuses, time.time()), indent=2, ensure_ascii=False))
        return
    from rich.console import Console  # noqa: PLC0415

    from keyferry.run.table import render  # noqa: PLC0415

    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    console.print(render(statuses, time.time(), width=console.width, wide=output is Format.WIDE))
