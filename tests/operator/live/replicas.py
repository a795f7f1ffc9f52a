"""`keyferry operator` as processes of their own, several of them over one cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.operator.live.conftest import Field

PROGRAM = "import sys; from keyferry_operator.command import app; app(args=sys.argv[1:])"
LEASES = "coordination.k8s.io/v1"


class Replica:
    """A `keyferry operator` of its own process."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self.process = process
        self.name = name
        self.log = log

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def says(self, words: str) -> bool:
        return any(words in line["message"] for line in self.lines())

    def leads(self) -> bool:
        return self.says("this replica leads")

    def obtained(self) -> list[str]:
        """Return the identities of which this replica obtained or renewed a token, as often as it did."""
        return [line["identity"] for line in self.lines() if line.get("event") in {"obtained", "renewed"}]

    async def kill(self) -> None:
        """End it at once and without a word."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """End it in good order; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ends()

    async def ends(self) -> int:
        async with asyncio.timeout(300):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def replica(field: Field, name: str, directory: Path, *flags: str) -> AsyncIterator[Replica]:
    """Start a replica, and kill it at the end."""
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM),
            *("--namespace", field.home, "--instance", name, "--watch-namespace", field.namespace),
            *("--allow-host", "127.0.0.1", "--escrow", str(directory / name), *flags),
            stdout=output,
            stderr=output,
            env={**os.environ, "KUBECONFIG": str(field.cluster.kubeconfig)},
        )
    try:
        yield Replica(process, name, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def holder(field: Field, lease: str) -> str:
    """Return who holds a Lease, by the name that the replica was given."""
    found = field.cluster.api.find(LEASES, "Lease", lease, field.home)
    return str(((found or {}).get("spec") or {}).get("holderIdentity") or "").rpartition("_")[0]
