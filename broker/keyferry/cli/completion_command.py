"""``keyferry completion``: the script that lets a shell complete commands, options and names of identities."""

import enum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

from keyferry.cli.exits import CommandError, ExitCode

app = typer.Typer(add_completion=False)


class Shell(enum.StrEnum):
    """The shells that are known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command(
    help="Print the completion script of a shell: bash, zsh or fish.\n\n"
    "For bash: keyferry completion bash > ~/.local/share/bash-completion/completions/keyferry"
)
def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", autocompletion=lambda: list(Shell))]) -> None:
    """Print a script."""
    if shell not in list(Shell):
        raise CommandError(f"no completion is known for {shell!r}: it is one of bash, zsh, fish", ExitCode.INVALID)
    typer.echo(get_completion_script(prog_name="keyferry", complete_var="_KEYFERRY_COMPLETE", shell=shell))
