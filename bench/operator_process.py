"""A ``keyferry operator`` under observation."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from bench.process import Observed, cpu_seconds
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WINDOW = 0.5
"""Seconds over which processor time is watched."""
AT_REST = 0.1
"""Share of a core below which a window counts as quiet."""
QUIET_WINDOWS = 6
"""Quiet windows one after the other, until it is said to be at rest."""


class OperatorProcess(Observed):
    """``keyferry operator`` for a whole cluster."""

    def __init__(self, kubeconfig: Path, namespace: str, escrow: Path, *options: str) -> None:
        self._port = free_port()
        super().__init__(
            [
                "operator",
                *("--namespace", namespace),
                *("--escrow", escrow),
                *("--metrics", f"127.0.0.1:{self._port}"),
                *("--allow-host", "127.0.0.1"),
                *options,
            ],
            {"KUBECONFIG": str(kubeconfig)},
        )
        self.obtained = 0
        self.renewed = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Count."""
        self.obtained += event["event"] == "obtained"
        self.renewed += event["event"] == "renewed"

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

    def _answers(self) -> bool:
        url = f"http://127.0.0.1:{self._port}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
        return False
