"""The commands of ``kubectl keyferry`` by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from keyferry.cli.app import LazyGroup, show_version

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Final = {
    "status": "keyferry_operator.kubectl.status_command:app",
    "renew": "keyferry_operator.kubectl.renew_command:app",
    "login": "keyferry_operator.kubectl.login_command:app",
    "lint": "keyferry_operator.kubectl.lint_command:app",
}

EXIT_HELP: Final = (
    "Exit codes: 0 done · 1 failed, refused or not ready · 2 wrong resources or usage, or no such identity"
    " · 3 a person is needed · 128 + n ended by signal n"
)


class KubectlGroup(LazyGroup):
    """What a person can do with a cluster."""

    places: ClassVar[Mapping[str, str]] = COMMANDS
    entry_points: ClassVar[str] = ""


app = typer.Typer(
    cls=KubectlGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(help=f"ServiceIdentities of a cluster, with your own rights.\n\n{EXIT_HELP}")
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
