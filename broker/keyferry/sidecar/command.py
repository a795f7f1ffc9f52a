"""``keyferry sidecar``: from its command line to its end."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

OK, FAILED, INVALID = 0, 1, 2


def main(arguments: list[str]) -> int:
    """Run the sidecar, or with ``--check`` the probe; return the exit code."""
    if "--check" in arguments:
        from keyferry.sidecar.check import main as check  # noqa: PLC0415 - the probe must be light

        return check(arguments)
    _end_when_told()
    from keyferry.errors import KeyferryError  # noqa: PLC0415 - see above
    from keyferry.sidecar.settings import parse  # noqa: PLC0415
    from keyferry.web.arguments import UsageError  # noqa: PLC0415

    try:
        settings = parse(arguments)
    except UsageError as error:
        sys.stderr.write(f"keyferry sidecar: {error}. Try `keyferry sidecar --help`.\n")
        return INVALID
    except SystemExit as leaving:
        return int(leaving.code or OK)
    import asyncio  # noqa: PLC0415 - after what may end the process

    from keyferry.sidecar.service import serve  # noqa: PLC0415

    try:
        asyncio.run(serve(settings))
    except (KeyferryError, ValueError) as error:
        sys.stderr.write(f"keyferry sidecar: {error}\n")
        return FAILED
    return OK


def _end_when_told() -> None:
    """Leave with 0 at SIGTERM and SIGINT, at once: files are whole at any time, and nothing else is ours to keep.

    It is set before all else, for the first process of a container gets no signal that it has no handler for.
    """
    import signal  # noqa: PLC0415 - the probe does without

    def leave(number: int, frame: FrameType | None) -> None:
        del number, frame
        os._exit(OK)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
