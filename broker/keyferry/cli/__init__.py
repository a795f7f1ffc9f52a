"""The command line. Importing this imports nothing else: ``keyferry token`` answers in the time of a bare Python."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command that the process was started with; return its exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["token"]:
        from keyferry.cli.fast import answer  # noqa: PLC0415 - only for the command that must be fast

        if answer(arguments[1:]):
            return 0
    if arguments[:1] == ["sidecar"]:
        from keyferry.sidecar.command import main as sidecar  # noqa: PLC0415 - what others need is too much for a pod

        return sidecar(arguments[1:])
    if arguments[:1] == ["page"]:
        from keyferry.web.page.command import main as page  # noqa: PLC0415 - it has no use for the engine

        return page(arguments[1:])
    from keyferry.cli.app import run_app  # noqa: PLC0415 - everything else may take its time

    return run_app(arguments)
