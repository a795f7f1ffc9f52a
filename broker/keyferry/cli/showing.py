"""Shows a person on this terminal what they are asked: on stderr, since stdout is for outcomes."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

import typer

from keyferry.run.prompt import lines, qr_code
from keyferry.run.table import clean

if TYPE_CHECKING:
    from keyferry.engine.status import Prompt

AROUND: Final = 8
"""Lines of a terminal that the words around a QR code take."""
LAPSED: Final = "nobody answered before the question lapsed; the same command asks again"


def _clock_time(at: float) -> str:
    """Return a time (Unix seconds) by the clock of this machine; with its day where that is another."""
    form = "%H:%M" if time.localtime(at)[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(at))


def show(prompt: Prompt, name: str) -> None:
    """Print the question, and as a QR code where stderr is a terminal with room for one."""
    for line in lines(prompt, name):
        typer.echo(clean(line), err=True)
    typer.echo(f"It lapses at {_clock_time(prompt.expires_at)}.", err=True)
    if sys.stderr.isatty():
        size = shutil.get_terminal_size()
        code = qr_code(prompt, size.columns, size.lines - AROUND)
        if code:
            typer.echo(f"\n{code}\n", err=True)
