"""A `keyferry run` under observation, and what the kernel says of a process."""

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


def memory(pid: int) -> tuple[float, float]:
    """Return how much is resident now, and was at the most (MB of 10^6 bytes)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, most = (int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, most


class Broker:
    """`keyferry run` on a world; `with` starts it and ends it by SIGTERM."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.begun = time.monotonic()
        self.started = 0.0
        """When (monotonic) its first line said that the schedule is built."""
        self.troubles: list[str] = []
        """Its events of level warning and above."""
        self.renewals = 0
        """Its events that tell of an exchange."""
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        world = self._world
        command: list[str | Path] = [KEYFERRY, "run", world.resources, "--out", world.out, "--state", world.state]
        self.begun = time.monotonic()
        self._process = subprocess.Popen([*command, "--allow-host", "127.0.0.1"], stdout=subprocess.PIPE, text=True)
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

    def wait_until_started(self) -> None:
        """Wait for its first word. Raises RuntimeError where it ended instead."""
        while not self._ready.wait(0.05):
            self._check()

    def wait_until_published(self) -> None:
        """Wait until every identity has its files, which appear all at once in a directory of their own."""
        directory = self._world.published
        while sum(not name.startswith(".") for name in _names(directory)) < self._world.identities:
            self._check()
            time.sleep(0.05)

    def _check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"keyferry run ended with exit code {self._process.returncode}: {self.troubles[:3]}")
        if time.monotonic() - self.begun > PATIENCE:
            raise RuntimeError(f"keyferry run took longer than {PATIENCE:.0f} s: {self.troubles[:3]}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "started":
                self.started = time.monotonic()
                self._ready.set()
            self.renewals += event["event"] in ("obtained", "renewed")
            if event["level"] in ("warning", "error"):
                self.troubles.append(line)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - twenty times a second
    except FileNotFoundError:
        return []
