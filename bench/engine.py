"""Measures the engine with many identities, and prints each figure beside its aim: ``python -m bench.engine``.

The broker is the real ``keyferry run``, the issuer a process of its own on the loopback, the disk the one of the
temporary directory. All of them share two cores. Beside the broker's rate stand those of plain programs that do the
same requests and the same writes in the same run. Nothing here fails for being slow: the figures are for people.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.process import KEYFERRY, Broker, cpu_seconds, memory
from bench.table import Aim, Figure, print_table
from bench.world import NAMESPACE, World, start_issuer

if TYPE_CHECKING:
    from tests.support.issuer_process import IssuerProcess

IDENTITIES = 10_000
IDLE = 30.0
CORES = 2
PAIRS = 20


@dataclass(frozen=True, slots=True)
class ColdStart:
    """From nothing to the last file."""

    rate: float
    """Exchanges a second, from the moment the schedule is built."""
    total: float
    """Seconds from the start of the process."""
    broker_cpu: float
    """Milliseconds of processor time for each exchange."""
    issuer_cpu: float
    had: float
    """How much of a core the broker had, on the average."""
    load: float
    """Load average at the end."""
    peak: float
    troubles: int


@dataclass(frozen=True, slots=True)
class Restart:
    """From a stored state to rest."""

    settled: float
    cpu: float
    """Seconds of processor time until then."""
    exchanges: int
    writes: int
    resident: float
    peak: float
    idle: float
    """Per cent of a core."""
    troubles: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--identities", type=int, default=IDENTITIES)
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds over which the idle broker is watched")
    parser.add_argument("--dir", type=Path, help="where to write (default: the system's temporary directory)")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # and so all that is started from here
    load = os.getloadavg()[0]
    print(
        f"{options.identities} identities; {len(cores)} cores of {platform.machine()}, Python"
        f" {platform.python_version()}; load average {load:.1f} before the start"
        f"{' (others are at work on this machine)' if load > 0.5 else ''}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="keyferry-bench-", dir=options.dir) as base:
        print_table(_measure(World(Path(base), options.identities), options.idle))


def _measure(world: World, idle: float) -> list[Figure]:
    with start_issuer() as issuer:
        posts = _plain("post", f"{issuer.url}/token", world.identities)
        writes = _plain("write", str(world.base / "plain"), world.identities)
        issuer.clear_requests()
        world.write_resources(issuer.issuer)
        cold = _cold_start(world, issuer)
        issuer.clear_requests()
        restart = _restart(world, issuer, idle)
        token, bare = _token(world)
    return [
        *_cold_figures(cold, posts, writes),
        *_restart_figures(restart, cold.peak),
        Figure(
            "`keyferry token NAME` beside `python -c pass`",
            token / bare,
            "x",
            Aim(most=3.0),
            f"{token * 1000:.0f} ms and {bare * 1000:.0f} ms, medians of {PAIRS} pairs",
        ),
    ]


def _cold_start(world: World, issuer: IssuerProcess) -> ColdStart:
    issuer_before = cpu_seconds(issuer.pid)
    with Broker(world) as broker:
        broker.wait_until_started()
        before = cpu_seconds(broker.pid)
        broker.wait_until_published()
        finished = time.monotonic()
        spent = cpu_seconds(broker.pid) - before
        _, peak = memory(broker.pid)
        time.sleep(1.0)  # its last lines
    each = 1000 / world.identities
    return ColdStart(
        rate=world.identities / (finished - broker.started),
        total=finished - broker.begun,
        broker_cpu=spent * each,
        issuer_cpu=(cpu_seconds(issuer.pid) - issuer_before) * each,
        had=spent / (finished - broker.started),
        load=os.getloadavg()[0],
        peak=peak,
        troubles=len(broker.troubles),
    )


def _restart(world: World, issuer: IssuerProcess, idle: float) -> Restart:
    """Start again with all tokens valid. It is settled when its schedule is built, if nothing happens after that."""
    stamps = world.stamps()
    with Broker(world) as broker:
        broker.wait_until_started()
        spent = cpu_seconds(broker.pid)
        time.sleep(2.0)
        before, since = cpu_seconds(broker.pid), time.monotonic()
        time.sleep(idle)
        used = (cpu_seconds(broker.pid) - before) / (time.monotonic() - since)
        resident, peak = memory(broker.pid)
    after = world.stamps()
    return Restart(
        settled=broker.started - broker.begun,
        cpu=spent,
        exchanges=sum(request.path.endswith("/token") for request in issuer.requests),
        writes=sum(stamps.get(path) != stamp for path, stamp in after.items()) + len(stamps.keys() - after.keys()),
        resident=resident,
        peak=peak,
        idle=used * 100,
        troubles=len(broker.troubles),
    )


def _token(world: World) -> tuple[float, float]:
    """Return the medians of `keyferry token NAME` and of a bare Python, measured in turn (seconds)."""
    command = [str(KEYFERRY), "token", world.name(0), "-n", NAMESPACE, "--state", str(world.state)]
    bare = [sys.executable, "-c", "pass"]
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(PAIRS):
        for times, arguments in zip(taken, (command, bare), strict=True):
            begun = time.perf_counter()
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begun)
    return statistics.median(taken[0]), statistics.median(taken[1])


def _plain(kind: str, where: str, number: int) -> float:
    command = [sys.executable, "-m", "bench.plain", kind, where, str(number)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _cold_figures(cold: ColdStart, posts: float, writes: float) -> list[Figure]:
    both = 1 / (1 / posts + 1 / writes)
    used = (
        f"{cold.broker_cpu:.1f} ms of a core each, and {cold.issuer_cpu:.1f} ms the issuer's; the broker had"
        f" {cold.had * 100:.0f} % of a core, the load average was {cold.load:.1f}"
    )
    return [
        Figure(
            "cold start",
            cold.rate,
            "exchanges/s",
            Aim(least=300.0),
            f"{used}; {cold.total:.0f} s from the start of the process; {cold.troubles} warnings",
        ),
        Figure("- beside a plain client's token requests", cold.rate / posts, "x", None, f"which made {posts:.0f}/s"),
        Figure("- beside a plain program's writes", cold.rate / writes, "x", None, f"which made {writes:.0f}/s"),
        Figure("- beside the two of them in turn", cold.rate / both, "x", None, f"which made {both:.0f}/s"),
    ]


def _restart_figures(restart: Restart, cold_peak: float) -> list[Figure]:
    share = restart.cpu / restart.settled * 100
    return [
        Figure("restart: exchanges", restart.exchanges, "", Aim(most=0), f"{restart.troubles} warnings"),
        Figure("restart: files written", restart.writes, "", Aim(most=0), "of token files and private records"),
        Figure(
            "restart: settled after",
            restart.settled,
            "s",
            Aim(most=5.0),
            f"from the start of the process; {restart.cpu:.1f} s of processor time, so it had {share:.0f} % of a core",
        ),
        Figure(
            "resident",
            max(cold_peak, restart.peak),
            "MB",
            Aim(most=200.0),
            f"the peak of both; {restart.resident:.0f} MB at rest after the restart",
        ),
        Figure("idle", restart.idle, "% of a core", Aim(most=2.0), "user and system time"),
    ]


if __name__ == "__main__":
    main()
