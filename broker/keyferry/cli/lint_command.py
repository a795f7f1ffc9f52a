"""``keyferry lint``: all mistakes of all files at once."""

import enum
import json
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from keyferry.cli import options as opt
from keyferry.cli.exits import EXIT_HELP, CommandError, ExitCode

if TYPE_CHECKING:
    from keyferry.cli.lint_checks import Findings
    from keyferry.spec.problem import Problem
    from keyferry.spec.resources import Loaded

app = typer.Typer(add_completion=False)


class Format(enum.StrEnum):
    """How the findings are printed."""

    TEXT = "text"
    JSON = "json"


@app.command(help=f"Check resource files; 2 where something is wrong. Hints alone are no mistakes.\n\n{EXIT_HELP}")
def lint(
    paths: opt.Paths = None,
    *,
    output: Annotated[Format, typer.Option("--output", "-o", help="text or json.")] = Format.TEXT,
    namespace: opt.Namespace = None,
    secrets: opt.Secrets = None,
    secret_env: opt.SecretEnv = None,
) -> None:
    """Read everything, and start nothing."""
    if not paths:
        raise CommandError("name the resource files: keyferry lint PATH... (or KEYFERRY_RESOURCES)", ExitCode.INVALID)
    from keyferry.cli.lint_checks import lint as check  # noqa: PLC0415 - slow to import
    from keyferry.run.resources import ResourceFiles  # noqa: PLC0415

    given = opt.Options(namespace=namespace, secrets=secrets, secret_env=secret_env)
    loaded = ResourceFiles(paths, namespace or "default").load()
    tell(check(loaded, given.run_settings().secrets), loaded, output)


def tell(findings: "Findings", loaded: "Loaded", output: Format) -> NoReturn:
    """Print what was found, and end with the code for it."""
    counts = f"{_count(len(loaded.identities), 'identity', 'identities')}, {_count(len(loaded.providers), 'provider')}"
    if output is Format.JSON:
        typer.echo(json.dumps(_encode(findings), indent=2, ensure_ascii=False))
    else:
        _print(findings, counts)
    opt.leave(ExitCode.INVALID if findings.mistakes else ExitCode.DONE)


def _print(findings: "Findings", counts: str) -> None:
    for problem in findings.mistakes:
        typer.echo(str(problem))
    for problem in findings.hints:
        typer.echo(f"{problem} (hint)")
    mistakes = _count(len(findings.mistakes), "mistake") if findings.mistakes else "no mistakes"
    hints = f", {_count(len(findings.hints), 'hint')}" if findings.hints else ""
    typer.echo(f"{counts}: {mistakes}{hints}")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _encode(findings: "Findings") -> dict[str, Any]:
    return {
        "valid": not findings.mistakes,
        "problems": [
            *(_encode_problem(problem, "error") for problem in findings.mistakes),
            *(_encode_problem(problem, "hint") for problem in findings.hints),
        ],
    }


def _encode_problem(problem: "Problem", severity: str) -> dict[str, Any]:
    return {
        "severity": severity,
        "file": problem.source,
        "line": problem.line,
        "resource": problem.resource,
        "path": problem.path,
        "reason": problem.reason.value,
        "message": problem.message,
    }
