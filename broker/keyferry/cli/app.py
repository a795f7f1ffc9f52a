"""The commands by name. A command's module is imported when it is called, and imports what it needs when it runs."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from keyferry import __version__
from keyferry.cli.exits import EXIT_HELP, CommandError
from keyferry.cli.options import complain
from keyferry.errors import KeyferryError

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Final = {
    "run": "keyferry.cli.run_command:app",
    "token": "keyferry.cli.token_command:app",
    "exec": "keyferry.cli.exec_command:app",
    "status": "keyferry.cli.status_command:app",
    "renew": "keyferry.cli.renew_command:app",
    "login": "keyferry.cli.login_command:app",
    "lint": "keyferry.cli.lint_command:app",
    "page": "keyferry.cli.page_command:app",
    "demo": "keyferry.cli.demo_command:app",
    "sidecar": "keyferry.cli.sidecar_command:app",
    "completion": "keyferry.cli.completion_command:app",
}
"""What is built in. Other distributions add theirs as entry points of the group below: a ``typer.Typer`` each."""
ENTRY_POINTS: Final = "keyferry.commands"
COMPLETE_VARIABLE: Final = "_KEYFERRY_COMPLETE"


class LazyGroup(TyperGroup):
    """A group of commands that imports the one that is called; another program's group names others."""

    places: ClassVar[Mapping[str, str]] = COMMANDS
    entry_points: ClassVar[str] = ENTRY_POINTS
    """Where other distributions add commands; empty where they cannot."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the context decides nothing
        """Return the names for the help and for completion."""
        return list(self.places)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Return a command, or None where there is none of that name."""
        place = self.places.get(cmd_name)
        if place is not None:
            module, _, attribute = place.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            points = tuple(metadata.entry_points(group=self.entry_points, name=cmd_name)) if self.entry_points else ()
            if not points:
                return None
            found = points[0].load()
        command = get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def show_version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    """Print the version and end, where ``--version`` was given."""
    if value:
        typer.echo(f"keyferry {__version__}")
        raise typer.Exit


@app.callback(help=f"Keeps the tokens of workloads fresh.\n\n{EXIT_HELP}")
def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def run_app(
    arguments: list[str], group: typer.Typer = app, *, program: str = "keyferry", variable: str = COMPLETE_VARIABLE
) -> int:
    """Run a command of a group; return its exit code. ``variable`` is what asks the program for completions."""
    # What follows `--` belongs to the command that `exec` starts and is no business of the parser.
    rest: list[str] | None = None
    if arguments[:1] == ["exec"] and "--" in arguments:
        split = arguments.index("--")
        arguments, rest = arguments[:split], arguments[split + 1 :]
    command = get_command(group)
    try:
        result = command.main(args=arguments, prog_name=program, complete_var=variable, standalone_mode=True, obj=rest)
    except CommandError as error:
        complain(error.message)
        return int(error.code)
    except KeyferryError as error:
        complain(error.message)
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0
