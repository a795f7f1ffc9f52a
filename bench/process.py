"""Processes under observation, among them a `keyferry run`, and what the kernel says of a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from bench.world import World

KEYFERRY = Path(sys.executable).with_name("keyferry")
PATIENCE = 900.0
"""Seconds that one phase may take on a slow machine."""
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def fine_cpu_seconds(pid: int) -> float:
    """Return the same of its living threads alone, which the kernel counts by the nanosecond instead of by ticks."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def memory(pid: int) -> tuple[float, float]:
    """Return how much is resident now, and was at the most (MB of 10^6 bytes)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, most = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, most


class Observed:
    """A Keyferry process that writes an event as JSON in each line; `with` starts it and ends it by SIGTERM."""

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """``environment`` is on top of this process's own."""
        self._command = [KEYFERRY, *command]
        self._environment = {**os.environ, **(environment or {})}
        self.begun = time.monotonic()
        self.troubles: list[str] = []
        """Its events of level warning and above."""

    def __enter__(self) -> Self:
        self.begun = time.monotonic()
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=self._environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise RuntimeError where it ended, or takes longer than anybody would wait."""
        command = f"keyferry {self._command[1]}"
        if self._process.poll() is not None:
            raise RuntimeError(f"{command} ended with exit code {self._process.returncode}: {self.troubles[:3]}")
        if time.monotonic() - self.begun > PATIENCE:
            raise RuntimeError(f"{command} took longer than {PATIENCE:.0f} s: {self.troubles[:3]}")

    def take(self, event: Mapping[str, Any]) -> None:
        """Take note of an event."""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            self.take(event)
            if event["level"] in ("warning", "error"):
                self.troubles.append(line)


class Broker(Observed):
    """`keyferry run` on a world."""

    def __init__(self, world: World) -> None:
        super().__init__(
            ["run", world.resources, "--out", world.out, "--state", world.state, "--allow-host", "127.0.0.1"]
        )
        self._world = world
        self.started = 0.0
        """When (monotonic) its first line said that the schedule is built."""
        self.renewals = 0
        """Its events that tell of an exchange."""
        self._ready = threading.Event()

    def wait_until_started(self) -> None:
        """Wait for its first word. Raises RuntimeError where it ended instead."""
        while not self._ready.wait(0.05):
            self.check()

    def wait_until_published(self) -> None:
        """Wait until every identity has its files, which appear all at once in a directory of their own."""
        directory = self._world.published
        while sum(not name.startswith(".") for name in _names(directory)) < self._world.identities:
            self.check()
            time.sleep(0.05)

    def take(self, event: Mapping[str, Any]) -> None:
        """Count."""
        if event["event"] == "started":
            self.started = time.monotonic()
            self._ready.set()
        self.renewals += event["event"] in ("obtained", "renewed")


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - twenty times a second
    except FileNotFoundError:
        return []
