"""``keyferry sidecar`` as the help lists it; what pods run is ``keyferry.sidecar.command``, which needs no typer."""

from typing import Annotated

import typer

from keyferry.cli.options import leave
from keyferry.sidecar.command import main

app = typer.Typer(add_completion=False)


@app.command(
    help="Keep the token files and loopback endpoints of one pod fresh, from the broker API. Pods get it injected.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
def sidecar(arguments: Annotated[list[str] | None, typer.Argument(metavar="...")] = None) -> None:
    """Leave everything to the command that pods run."""
    leave(main(arguments or []))
