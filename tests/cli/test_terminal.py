"""The live table, on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.cli.workshop import IDENTITY, PATIENCE, Workshop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

GREEN = re.compile(r"\x1b\[(?:\d+;)*32m")


class Terminal:
    def __init__(self, columns: int) -> None:
        self.ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.text = ""

    def read_until(self, *wanted: str) -> str:
        """Read until all of these were seen."""
        deadline = time.monotonic() + PATIENCE
        while not all(word in self.text for word in wanted):
            assert time.monotonic() < deadline, f"{wanted} not in {self.text!r}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.text += os.read(self.ours, 65536).decode("utf-8", "replace")
        return self.text

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)


@contextmanager
def on_terminal(
    workshop: Workshop, columns: int, **environment: str
) -> Iterator[tuple[Terminal, subprocess.Popen[str]]]:
    terminal = Terminal(columns)
    settings = {name: value for name, value in workshop.environment.items() if name != "COLUMNS"} | environment
    try:
        with workshop.start(
            "run",
            str(workshop.resources),
            *workshop.broker_options,
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
            env=settings,
        ) as process:
            yield terminal, process
    finally:
        terminal.close()


def test_a_live_table_is_shown(workshop: Workshop) -> None:
    workshop.identities("one", "two")
    workshop.write("wrong.yaml", IDENTITY.format(name="three", grant="{type: Nonsense}", more=""))
    with on_terminal(workshop, 140) as (terminal, process):
        text = terminal.read_until("IDENTITY", "PROVIDER", "LAST ERROR", "Fresh", "2 identities: 2 fresh")
        assert "ClientCredentials" in text
        assert re.search(r"in \d+m \d+s", text)
        assert text.index("wrong.yaml:") < text.index("keyferry token") < text.index("2 fresh")
        assert GREEN.search(text)
        assert '{"time"' not in text
        process.send_signal(signal.SIGINT)
        terminal.read_until("stopping", "\x1b[?25h")
        assert process.wait(PATIENCE) == 130


def test_a_narrow_terminal_gets_fewer_columns_and_colours_can_be_off(workshop: Workshop) -> None:
    workshop.identities("one")
    with on_terminal(workshop, 50, NO_COLOR="1") as (terminal, process):
        text = terminal.read_until("IDENTITY", "Fresh", "1 identity: 1 fresh")
        assert "PROVIDER" not in text
        assert not GREEN.search(text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


def test_a_key_on_the_terminal_reaches_the_command_once(workshop: Workshop) -> None:
    workshop.identities("one")
    assert workshop.once().returncode == 0
    script = (
        "import signal, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('up', flush=True)\n"
        "while not seen: time.sleep(0.05)\n"
        "time.sleep(1)\n"
        "print('interrupted', len(seen), 'times', open('/dev/tty').isatty(), flush=True)\n"
    )
    terminal = Terminal(100)
    command = ["exec", "one", "--", sys.executable, "-c", script]
    # The terminal's keys go to those whose controlling terminal it is.
    options = {"preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), "start_new_session": True}
    try:
        with workshop.start(
            *command, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs, **options
        ) as process:
            terminal.read_until("up")
            os.write(terminal.ours, b"\x03")
            terminal.read_until("interrupted 1 times True")
            assert process.wait(PATIENCE) == 0
    finally:
        terminal.close()
