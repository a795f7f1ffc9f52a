"""What happens, one JSON object a line: for log collectors, and wherever nobody is looking at a terminal.

Lines are written by a thread of their own from a bounded queue: a reader that does not read must not keep tokens from
being renewed. Lines that found no room are counted, and the count is told.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from keyferry.engine.status import Event, IdentityStatus, Level
from keyferry.run.status_json import timestamp

if TYPE_CHECKING:
    from keyferry.model import ObjectKey

LEVELS: Final = {Level.DEBUG: 10, Level.INFO: 20, Level.WARNING: 30, Level.ERROR: 40}
"""Levels as the logging module counts them."""
WAITING_LINES: Final = 10_000
TOGETHER: Final = 1000
"""Lines that are written at once where so many wait."""
PAUSE: Final = 0.02
"""Seconds in which lines gather after some were written: to wake the thread costs more than to write a line."""
LAST_WORDS: Final = 2.0
"""Seconds that the lines still waiting are given when the program ends."""


class LineWriter:
    """Writes lines to a file descriptor in a thread; a reader that is gone costs the lines and nothing else.

    Not to Python's own stdout: its lock, held by a thread that cannot go on, would keep the program from ending.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0  # counted by those who write, and never set back: the thread remembers what it has told
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="keyferry-lines", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Write a line some time soon."""
        if self._lines.qsize() < WAITING_LINES:
            self._lines.put(line)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for a short while."""
        self._ending.set()
        self._lines.put(None)
        self._thread.join(LAST_WORDS)

    def _work(self) -> None:
        told, ended = 0, False
        while not ended:
            dropped = self._dropped  # before the next lines are taken: those had room after these had none
            waiting = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while len(waiting) < TOGETHER:
                    waiting.append(self._lines.get_nowait())
            ended = None in waiting
            lines = [line for line in waiting if line is not None]
            if dropped > told and lines:
                message = f"{dropped - told} lines had no reader"
                lines.insert(0, _line(Level.WARNING, "lines_dropped", message=message))
                told = dropped
            data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):  # the reader is gone
                while data:
                    data = data[os.write(self._descriptor, data) :]
            if not ended:
                self._ending.wait(PAUSE)


class JsonLines:
    """A ``keyferry.run.reporter.Listener`` that writes each event as a line."""

    def __init__(self, writer: LineWriter, threshold: Level = Level.INFO) -> None:
        self._writer = writer
        self._threshold = threshold

    def report(self, status: IdentityStatus) -> None:
        """Statuses are for tables; the events say the same once."""

    def forget(self, key: ObjectKey) -> None:
        """Nothing is kept."""

    def event(self, event: Event) -> None:
        """Write an event."""
        if LEVELS[event.level] < LEVELS[self._threshold]:
            return
        self._writer.write(event_line(event))


class JsonLogHandler(logging.Handler):
    """Writes log records in the form of events. Of an exception only its type: its text may hold anything."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        message = record.getMessage()
        if record.exc_info is not None and record.exc_info[0] is not None:
            message = f"{message} ({record.exc_info[0].__name__})"
        name = {logging.DEBUG: Level.DEBUG, logging.INFO: Level.INFO, logging.WARNING: Level.WARNING}
        level = name.get(record.levelno, Level.ERROR)
        self._writer.write(_line(level, "log", message=message, at=record.created, logger=record.name))


def event_line(event: Event) -> str:
    """Return an event as the contract's JSON object, on one line."""
    times: dict[str, Any] = {
        name: timestamp(at)
        for name, at in (("expirationTime", event.expiration_time), ("nextAttemptTime", event.next_attempt_time))
        if at is not None
    }
    key = event.key
    return _line(
        event.level,
        event.event,
        namespace=key.namespace if key is not None else "",
        identity=key.name if key is not None else "",
        reason=event.reason.value,
        message=event.message,
        **times,
    )


def _line(level: Level, event: str, *, at: float | None = None, **fields: Any) -> str:
    head = {"time": timestamp(time.time() if at is None else at), "level": level.value, "event": event}
    empty = {"namespace": "", "identity": "", "reason": "", "message": ""}
    return json.dumps({**head, **empty, **fields}, ensure_ascii=False, separators=(",", ":"))
