"""The process that forks brokers, as its orderer sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import DataclassInstance

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0


class Zygote:
    """Starts brokers of one kind within milliseconds; ``with`` ends it, and them. ``module`` is what they run."""

    def __init__(self, module: str = "tests.crash.worker") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give one order and return its answer."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the zygote has no pipes")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote is gone")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, order: DataclassInstance) -> Broker:
        """Start a broker."""
        return Broker(self, int(self.ask({"run": dataclasses.asdict(order)})["pid"]))

    def close(self) -> None:
        """End it, and all brokers that still run."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Broker:
    """One broker process."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid
        self.status: int | None = None
        """Its exit status once it has ended; minus the signal that killed it."""

    def kill(self) -> None:
        """Send SIGKILL; nothing where it has ended."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Tell whether it has ended, by itself or not."""
        if self.status is not None:
            return True
        descriptor = os.pidfd_open(self.pid)
        try:
            return bool(select.select([descriptor], [], [], 0)[0])
        finally:
            os.close(descriptor)

    def terminate(self) -> None:
        """Send SIGTERM: it ends in good order."""
        os.kill(self.pid, signal.SIGTERM)

    async def ended(self, patience: float = PATIENCE) -> int:
        """Wait for its end; return its exit status. Raises TimeoutError."""
        if self.status is None:
            loop = asyncio.get_running_loop()
            done = asyncio.Event()
            # It stays a zombie until it is reaped, so its process id cannot be another's by now.
            descriptor = os.pidfd_open(self.pid)
            loop.add_reader(descriptor, done.set)
            try:
                async with asyncio.timeout(patience):
                    await done.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            if self.status is None:
                self.status = int(self._zygote.ask({"reap": self.pid})["status"])
        return self.status
