"""Where commands tell what happens: a live table on a terminal, JSON lines elsewhere, plain lines on stderr."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Final, Protocol

from keyferry.cli.options import PlainFormatter, complain, set_up_logging
from keyferry.engine import Event, Level
from keyferry.run.json_lines import LEVELS, JsonLines, JsonLogHandler, LineWriter

if TYPE_CHECKING:
    from keyferry.engine import IdentityStatus
    from keyferry.model import ObjectKey
    from keyferry.run.broker import LocalBroker
    from keyferry.run.table import LiveTable

FRAME: Final = 1.0
"""Seconds between two frames of the table."""
SMOOTH: Final = 500
"""Identities beyond which frames come more rarely, so that looking costs no more than a few per cent of a core."""
STYLES: Final = {Level.ERROR: "red", Level.WARNING: "yellow"}


class Output(Protocol):
    """Takes what happens; also a ``keyferry.run.reporter.Listener``."""

    def report(self, status: IdentityStatus) -> None:
        """Take note of a status."""

    def forget(self, key: ObjectKey) -> None:
        """Take note that an identity is gone."""

    def event(self, event: Event) -> None:
        """Tell an event."""

    async def watch(self, broker: LocalBroker) -> None:
        """Keep showing until cancelled."""

    def close(self) -> None:
        """Finish."""


class LinesOutput(JsonLines):
    """JSON lines on stdout; the program's own log among them."""

    def __init__(self, level: Level) -> None:
        self._lines = LineWriter(sys.stdout.fileno())
        super().__init__(self._lines, level)
        set_up_logging(JsonLogHandler(self._lines), level)

    async def watch(self, broker: LocalBroker) -> None:
        """Events say it all."""

    def close(self) -> None:
        """Write what waits to be written."""
        self._lines.close()


class TableOutput:
    """The live table; events that matter scroll by above it."""

    def __init__(self, table: LiveTable, level: Level) -> None:
        self._table = table
        self._threshold = LEVELS[level]
        handler = _Say(table)
        handler.setFormatter(PlainFormatter("%(levelname)s: %(message)s"))
        set_up_logging(handler, level)

    def report(self, status: IdentityStatus) -> None:
        """Do nothing: the next frame shows it."""

    def forget(self, key: ObjectKey) -> None:
        """Do nothing: the next frame does without it."""

    def event(self, event: Event) -> None:
        """Say what is at least as grave as was asked for, and what is said once."""
        if LEVELS[event.level] >= self._threshold or event.event in ("started", "stopping", "finished", "page"):
            self._table.say(line_of(event), STYLES.get(event.level, ""))

    async def watch(self, broker: LocalBroker) -> None:
        """Draw a frame a second."""
        try:
            while True:
                statuses = broker.engine.statuses()
                self._table.show(statuses, broker.clock.now())
                await asyncio.sleep(FRAME * max(1.0, len(statuses) / SMOOTH))
        finally:
            self._table.show(broker.engine.statuses(), broker.clock.now())

    def close(self) -> None:
        """Leave the last table on the screen."""
        self._table.close()


class PlainOutput:
    """Lines for people on stderr, of warnings and errors unless asked for more."""

    def __init__(self, level: Level) -> None:
        self._threshold = LEVELS[level]

    def report(self, status: IdentityStatus) -> None:
        """Events say it."""

    def forget(self, key: ObjectKey) -> None:
        """Nothing is kept."""

    def event(self, event: Event) -> None:
        """Write a line."""
        if LEVELS[event.level] >= self._threshold:
            complain(line_of(event))


class _Say(logging.Handler):
    def __init__(self, table: LiveTable) -> None:
        super().__init__()
        self._table = table

    def emit(self, record: logging.LogRecord) -> None:
        self._table.say(self.format(record), "dim")


def line_of(event: Event) -> str:
    """Return an event as a line for people."""
    if event.key is None:
        return event.message
    subject = str(event.key)
    return event.message if subject in event.message else f"{subject}: {event.message}"


def make_output(level: Level | None) -> Output:
    """Return what suits stdout; without a level a table says only what is wrong, and lines say what happens."""
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from keyferry.run.table import LiveTable  # noqa: PLC0415 - rich is for terminals

        return TableOutput(LiveTable(), level or Level.WARNING)
    return LinesOutput(level or Level.INFO)
