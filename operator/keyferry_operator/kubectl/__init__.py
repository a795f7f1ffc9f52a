"""``kubectl keyferry``: people's commands against a cluster, with their own rights. Found by kubectl by its name."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys

# Nothing else is imported here: where the extra `operator` is not installed, that has to be said in a sentence.

COMPLETE_VARIABLE = "_KUBECTL_KEYFERRY_COMPLETE"
NO_FILES = 4
"""What tells kubectl that names of files are no completions (cobra's ShellCompDirectiveNoFileComp)."""


def main() -> int:
    """Run the command that the process was started with; return its exit code."""
    return _run(sys.argv[1:])


def complete() -> int:
    """Print completions as kubectl asks its plug-ins for them: ``kubectl_complete-keyferry WORD... LAST``."""
    from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415 - only for completions

    completion_init()
    words = sys.argv[1:] or [""]
    os.environ |= {
        COMPLETE_VARIABLE: "complete_bash",
        "COMP_WORDS": shlex.join(["keyferry", *words[:-1]]) + f" {shlex.quote(words[-1]) if words[-1] else ''}",
        "COMP_CWORD": str(len(words)),
    }
    with contextlib.redirect_stdout(io.StringIO()) as found:
        _run([])
    sys.stdout.writelines(f"{line}\n" for line in [*filter(None, found.getvalue().splitlines()), f":{NO_FILES}"])
    return 0


def _run(arguments: list[str]) -> int:
    try:
        from keyferry.cli.app import run_app  # noqa: PLC0415 - slow to import
        from keyferry_operator.kubectl.app import app  # noqa: PLC0415
    except ImportError as error:
        sys.stderr.write(f"keyferry: {error.name} is missing: pip install 'keyferry[operator]'\n")
        return 1
    return run_app(arguments, app, program="kubectl keyferry", variable=COMPLETE_VARIABLE)
