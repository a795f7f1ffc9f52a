"""``kubectl keyferry status``: how the identities of a cluster are."""

from __future__ import annotations

import enum
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from keyferry.cli import options as shared
from keyferry.cli.exits import CommandError, ExitCode
from keyferry_operator.kubectl import options as opt
from keyferry_operator.kubectl.app import EXIT_HELP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyferry.engine import IdentityStatus
    from keyferry_operator.client import Object
    from keyferry_operator.kubectl.api import Api

app = typer.Typer(add_completion=False)

_PIPE_WIDTH = 200
"""Columns of the table where nobody looks at it."""


class Format(enum.StrEnum):
    """How the statuses are printed."""

    JSON = "json"
    YAML = "yaml"
    WIDE = "wide"


@app.command(
    help="Show how the identities are; with NAME each in detail, and what to do next."
    f" 0 if all that are shown are ready, else 1.\n\n{EXIT_HELP}"
)
@opt.with_place
def status(
    names: opt.SomeNames = None,
    *,
    output: Annotated[
        Format | None, typer.Option("--output", "-o", help="json, yaml or wide.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing what changes, until stopped.")] = False,
    all_namespaces: opt.AllNamespaces = False,
    given: opt.Place,
) -> None:
    """Read the status subresources, which the operator keeps."""
    if all_namespaces and (names or given.named):
        raise CommandError("-A shows every namespace: leave out the names and -n", ExitCode.INVALID)
    scope = None if all_namespaces else given.namespace
    with given.connect() as api:
        if watch:
            from keyferry_operator.kubectl.watching import follow  # noqa: PLC0415 - slow to import

            follow(api, scope, names or (), output.value if output is not None else "")
            shared.leave(ExitCode.DONE)
        shared.leave(_show(api, scope, names or [], output, given.home))


def _show(api: Api, scope: str | None, names: list[str], output: Format | None, home: str) -> int:
    """Print what was asked for; return the exit code."""
    from keyferry_operator.kubectl.liveness import operator_trouble  # noqa: PLC0415 - slow to import
    from keyferry_operator.kubectl.statuses import status_of  # noqa: PLC0415

    bodies = gather(api, scope, names)
    statuses = [status_of(body) for body in bodies]
    if output in (Format.JSON, Format.YAML):
        print_objects(bodies, yaml=output is Format.YAML)
    elif names and output is None:
        from keyferry_operator.kubectl.details import print_details  # noqa: PLC0415

        for body, found in zip(bodies, statuses, strict=True):
            print_details(api, body, found)
    else:
        _print_table(statuses, api.now(), wide=output is Format.WIDE, scope=scope)
    trouble = operator_trouble(api, home, bodies, statuses) if output in (None, Format.WIDE) else ""
    if trouble:
        shared.complain(trouble)
    ready = bool(statuses) and all(found.ready(api.now()) for found in statuses)
    return ExitCode.DONE if ready else ExitCode.FAILED


def gather(api: Api, scope: str | None, names: Sequence[str]) -> list[Object]:
    """Return the identities of a namespace or of all, or those that are named. Raises CommandError."""
    from keyferry_operator.client import IDENTITIES  # noqa: PLC0415 - slow to import

    found = sorted(
        api.items(IDENTITIES, scope)[1],
        key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]),
    )
    by_name = {body["metadata"]["name"]: body for body in found}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise CommandError(f"there is no ServiceIdentity {', '.join(missing)} in namespace {scope}", ExitCode.INVALID)
    return [by_name[name] for name in dict.fromkeys(names)] if names else found


def print_objects(bodies: Sequence[Object], *, yaml: bool) -> None:
    """Print identities as the API server has them, without its bookkeeping of fields."""
    items = [bare(body) for body in bodies]
    listed = {"apiVersion": "keyferry.dev/v1alpha1", "kind": "ServiceIdentityList", "items": items}
    if yaml:
        from yaml import safe_dump  # noqa: PLC0415 - only where it is wanted

        typer.echo(safe_dump(listed, sort_keys=False, allow_unicode=True), nl=False)
    else:
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))


def bare(body: Object) -> Object:
    """Return an identity for print."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {"apiVersion": "keyferry.dev/v1alpha1", "kind": "ServiceIdentity", **body, "metadata": metadata}


def _print_table(statuses: Sequence[IdentityStatus], now: float, *, wide: bool, scope: str | None) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow to import

    from keyferry.run.table import render  # noqa: PLC0415

    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    console.print(render(statuses, now, width=console.width, wide=wide, namespaces=scope is None))
    if not statuses:
        where = f"in namespace {scope}; -A shows all namespaces" if scope is not None else "in this cluster"
        shared.complain(f"there are no ServiceIdentities {where}")
