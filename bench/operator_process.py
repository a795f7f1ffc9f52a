"""A ``keyferry operator`` under observation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from bench.process import KEYFERRY, PATIENCE, cpu_seconds
from tests.support.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

WINDOW = 0.5
"""Seconds over which processor time is watched."""
AT_REST = 0.1
"""Share of a core below which a window counts as quiet."""
QUIET_WINDOWS = 6
"""Quiet windows one after the other, until it is said to be at rest."""


class OperatorProcess:
    """``keyferry operator`` for a whole cluster; `with` starts it and ends it by SIGTERM."""

    def __init__(self, kubeconfig: Path, namespace: str, escrow: Path) -> None:
        self._kubeconfig = kubeconfig
        self._port = free_port()
        self._command: list[str | Path] = [
            KEYFERRY,
            "operator",
            *("--namespace", namespace),
            *("--escrow", escrow),
            *("--metrics", f"127.0.0.1:{self._port}"),
            *("--allow-host", "127.0.0.1"),
        ]
        self.begun = time.monotonic()
        self.troubles: list[str] = []
        """Its events of level warning and above."""
        self.obtained = 0
        self.renewed = 0

    def __enter__(self) -> Self:
        self.begun = time.monotonic()
        environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, env=environment)
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

    def wait_until_ready(self) -> float:
        """Wait until it has read everything and works; return when (monotonic). Raises RuntimeError where it ended."""
        while not self._answers():
            self.check()
            time.sleep(0.05)
        return time.monotonic()

    def wait_until_at_rest(self) -> float:
        """Wait until it uses next to nothing of a core for a while; return when (monotonic) that began."""
        quiet_since, quiet = time.monotonic(), 0
        before = cpu_seconds(self.pid)
        while quiet < QUIET_WINDOWS:
            self.check()
            begun = time.monotonic()
            time.sleep(WINDOW)
            now = cpu_seconds(self.pid)
            if (now - before) / (time.monotonic() - begun) < AT_REST:
                quiet_since = begun if quiet == 0 else quiet_since
                quiet += 1
            else:
                quiet = 0
            before = now
        return quiet_since

    def check(self) -> None:
        """Raise RuntimeError where it ended, or takes longer than anybody would wait."""
        if self._process.poll() is not None:
            raise RuntimeError(f"keyferry operator ended with code {self._process.returncode}: {self.troubles[:3]}")
        if time.monotonic() - self.begun > PATIENCE:
            raise RuntimeError(f"keyferry operator took longer than {PATIENCE:.0f} s: {self.troubles[:3]}")

    def _answers(self) -> bool:
        url = f"http://127.0.0.1:{self._port}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
        return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            self.obtained += event["event"] == "obtained"
            self.renewed += event["event"] == "renewed"
            if event["level"] in ("warning", "error"):
                self.troubles.append(line)
