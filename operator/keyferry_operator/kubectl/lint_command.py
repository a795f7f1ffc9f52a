"""``kubectl keyferry lint``: all mistakes of resource files, also those that only the cluster can see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keyferry.cli import options as shared
from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.lint_command import Format, tell
from keyferry_operator.kubectl import options as opt
from keyferry_operator.kubectl.app import EXIT_HELP

if TYPE_CHECKING:
    from keyferry.cli.lint_checks import Findings

app = typer.Typer(add_completion=False)


@app.command(
    help="Check resource files, by themselves and against the cluster, which stores nothing of it; 2 where something"
    f" is wrong. Hints alone are no mistakes.\n\n{EXIT_HELP}"
)
@opt.with_place
def lint(
    paths: shared.Paths = None,
    *,
    output: Annotated[Format, typer.Option("--output", "-o", help="text or json.")] = Format.TEXT,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no cluster.")] = False,
    given: opt.Place,
) -> None:
    """Read everything, and change nothing."""
    if not paths:
        raise CommandError("name the resource files: kubectl keyferry lint PATH...", ExitCode.INVALID)
    from keyferry.run.resources import ResourceFiles  # noqa: PLC0415 - slow to import
    from keyferry_operator.kubectl.lint_checks import ClusterLint, lint_offline  # noqa: PLC0415

    online = not offline and _reachable(given)
    loaded = ResourceFiles(paths, given.namespace if online else given.named or "default").load()
    found: Findings | None = None
    if online:
        with given.connect() as api:
            found = ClusterLint(api, loaded, given.home).run()
    tell(found or lint_offline(loaded), loaded, output)


def _reachable(given: opt.Place) -> bool:
    """Tell whether there is a cluster to ask, with a note where there is none."""
    try:
        return bool(given.access)
    except CommandError as error:
        shared.complain(f"no cluster is asked: {error.message} (--offline leaves this note out)")
        return False
