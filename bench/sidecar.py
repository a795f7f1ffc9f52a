"""Measures a sidecar, and prints each figure beside its aim: ``python -m bench.sidecar``.

The sidecar is the real ``keyferry sidecar``, its files lie in memory as they do in a pod, and a broker in this process
answers it over TLS. Nothing here fails for being slow: the figures are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.process import fine_cpu_seconds, memory
from bench.table import Aim, Figure, print_table
from tests.sidecar.pod import PodPlace, until
from tests.support.fake_broker import FakeBroker
from tests.support.pki import Authority
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

RENEWALS = 200
STARTS = 10
IDLE = 120.0
"""Seconds: two held requests, one after the other."""
HOUR = 3600.0
_SHM = Path("/dev/shm")  # noqa: S108 - the directory in it is ours
MEMORY = _SHM if _SHM.is_dir() else None
"""A file system in memory, which is what pods have."""
TILED = ".tiled/tokens/https%3A%2F%2Ftiled.example.org%2Fapi%2Fv1%2F/access_token"
LOOK = 0.0005
"""Seconds between looks at a file that is about to be replaced."""
SIZE = 1200
"""Characters of a token, as issuers of JWTs make them."""


@dataclass
class Results:
    """What was measured: seconds, and MB of 10^6 bytes."""

    starts: list[float] = field(default_factory=list)
    start_cpu: list[float] = field(default_factory=list)
    """Processor time of each start."""
    probes: list[float] = field(default_factory=list)
    deliveries: list[float] = field(default_factory=list)
    resident: float = 0.0
    resident_serving: float = 0.0
    idle: float = 0.0
    """Processor seconds per hour."""
    idle_watching: float = 0.0
    """The same, with a directory that is watched."""


@dataclass
class Place(PodPlace):
    """A pod, and the broker that it asks."""

    broker: FakeBroker = field(kw_only=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.sidecar", description=__doc__)
    parser.add_argument("--renewals", type=int, default=RENEWALS, help="how many are delivered")
    parser.add_argument("--starts", type=int, default=STARTS, help="how often the sidecar and its probe are started")
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds over which the idle sidecar is watched")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, Python {platform.python_version()}; load average {load:.1f} before the start"
        f"{' (others are at work on this machine)' if load > 0.5 else ''}\n",
        flush=True,
    )
    results = asyncio.run(measure(options.renewals, options.starts, options.idle))
    print_table(figures(results))


async def measure(renewals: int, starts: int, idle: float) -> Results:
    """Measure everything."""
    results = Results()
    for _ in range(starts):
        async with _place() as place:
            elapsed, used = await _start(place)
            results.starts.append(elapsed)
            results.start_cpu.append(used)
    async with _place() as place:
        await _deliver(place, results, renewals)
    async with _place() as place, place.running() as process:
        results.idle = await _idle(place, process.pid, idle)
        results.resident = memory(process.pid)[0]
        for _ in range(starts):
            begun = time.perf_counter()
            code, said = await place.check()
            results.probes.append(time.perf_counter() - begun)
            assert code == 0, said
    async with _place(TILED) as place, place.running("--clients", "tiled") as process:
        results.idle_watching = await _idle(place, process.pid, idle)
    async with _place() as place, place.running("--clients", "aiod", "--port", str(free_port())) as process:
        await until(lambda: "the containers may start" in place.log, "the endpoints")
        results.resident_serving = memory(process.pid)[0]
    return results


def figures(results: Results) -> list[Figure]:
    """Return the rows of the table."""
    starts, probes = (statistics.median(times) for times in (results.starts, results.probes))
    count = len(results.deliveries)
    return [
        Figure("resident memory, files alone", results.resident, "MB", Aim(most=30), ""),
        Figure(
            "resident memory with loopback endpoints", results.resident_serving, "MB", None, "a web server comes along"
        ),
        Figure("start to first file", starts, "s", Aim(most=0.5), f"median of {len(results.starts)}"),
        Figure(
            "the same, processor time", statistics.median(results.start_cpu), "s", None, "what a busy machine leaves"
        ),
        Figure("the probe", probes * 1000, "ms", None, f"median of {len(results.probes)}"),
        Figure("processor time per hour, idle", results.idle, "s", None, "a request is held 55 s"),
        Figure("the same, with a Tiled token directory", results.idle_watching, "s", None, "looked at twice a second"),
        Figure("renewed to written, p50", _percentile(results.deliveries, 50) * 1000, "ms", None, f"{count} renewals"),
        Figure("renewed to written, p99", _percentile(results.deliveries, 99) * 1000, "ms", Aim(most=1000), ""),
    ]


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


@contextlib.asynccontextmanager
async def _place(path: str = "token") -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="keyferry-bench-", dir=MEMORY) as directory:
        async with FakeBroker(Authority.create(), Path(directory)) as broker:
            broker.publish("nightly", files={path: _token(1)})
            yield Place(Path(directory), broker.url, broker.authority.certificate, broker=broker)


def _token(revision: int) -> str:
    return f"{revision}.".ljust(SIZE, "x")


async def _start(place: Place) -> tuple[float, float]:
    """Return how long a start takes until the first file is there, and how much of a processor."""
    begun = time.perf_counter()
    async with place.running() as process:
        await _shows(place, _token(1))
        return time.perf_counter() - begun, fine_cpu_seconds(process.pid)


async def _deliver(place: Place, results: Results, renewals: int) -> None:
    """Renew often, each time once the last renewal is there and a request is held again."""
    async with place.running():
        for revision in range(2, renewals + 2):
            await until(lambda: place.broker.held, "a held request")
            begun = time.perf_counter()
            place.broker.publish("nightly", files={"token": _token(revision)})
            await _shows(place, _token(revision))
            results.deliveries.append(time.perf_counter() - begun)


async def _shows(place: Place, token: str) -> None:
    while place.read() != token:  # noqa: ASYNC110 - the file is what is watched, as a workload would
        await asyncio.sleep(LOOK)


async def _idle(place: Place, pid: int, seconds: float) -> float:
    """Return the processor seconds that an hour of doing nothing costs."""
    await until(lambda: place.broker.held, "a held request")
    await asyncio.sleep(2.0)
    before, begun = fine_cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (fine_cpu_seconds(pid) - before) / (time.monotonic() - begun) * HOUR


if __name__ == "__main__":
    main()
