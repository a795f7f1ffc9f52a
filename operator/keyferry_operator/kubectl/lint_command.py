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
    from collections.abc import Callable

    from keyferry.cli.lint_checks import Findings
    from keyferry_operator.kubectl.access import Access

app = typer.Typer(add_completion=False)


@app.command(
    help="Check resource files, by themselves and against the cluster, which stores nothing of it; 2 where something"
    f" is wrong. Hints alone are no mistakes.\n\n{EXIT_HELP}"
)
def lint(
    paths: shared.Paths = None,
    *,
    output: Annotated[Format, typer.Option("--output", "-o", help="text or json.")] = Format.TEXT,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no cluster.")] = False,
    namespace: opt.Namespace = None,
    operator_namespace: opt.OperatorNamespace = opt.DEFAULT_HOME,
    kubeconfig: opt.Kubeconfig = None,
    context: opt.Context = None,
    as_user: opt.AsUser = None,
    as_group: opt.AsGroup = None,
) -> None:
    """Read everything, and change nothing."""
    if not paths:
        raise CommandError("name the resource files: kubectl keyferry lint PATH...", ExitCode.INVALID)
    from keyferry.run.resources import ResourceFiles  # noqa: PLC0415 - slow to import
    from keyferry_operator.kubectl.lint_checks import ClusterLint, lint_offline  # noqa: PLC0415

    where = None if offline else _reachable(lambda: opt.access(kubeconfig, context, as_user, as_group))
    loaded = ResourceFiles(paths, namespace or (where.namespace if where is not None else "default")).load()
    found: Findings | None = None
    if where is not None:
        with opt.connect(where) as api:
            found = ClusterLint(api, loaded, operator_namespace).run()
    tell(found or lint_offline(loaded), loaded, output)


def _reachable(access: Callable[[], Access]) -> Access | None:
    """Return the access; None, with a note, where there is no cluster to ask."""
    try:
        return access()
    except CommandError as error:
        shared.complain(f"no cluster is asked: {error.message} (--offline leaves this note out)")
        return None
