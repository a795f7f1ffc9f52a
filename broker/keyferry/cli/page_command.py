"""``keyferry page`` as the help lists it; what runs is ``keyferry.web.page.command``, which needs no typer."""

from typing import Annotated

import typer

from keyferry.cli.options import leave
from keyferry.web.page.command import main

app = typer.Typer(add_completion=False)


@app.command(
    help="Serve the page on which people approve and log in, in a cluster.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
def page(arguments: Annotated[list[str] | None, typer.Argument(metavar="...")] = None) -> None:
    """Leave everything to the command that the cluster runs."""
    leave(main(arguments or []))
