"""Measures the operator with many identities, and prints each figure beside its aim: ``python -m bench.operator``.

The operator is the real ``keyferry operator``, the API server a real kube-apiserver with etcd, the issuer a process of
its own on the loopback. All of them share two cores. Beside the operator's rate stands what a plain client makes of the
same writes in the same run. Nothing here fails for being slow: the figures are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
from pathlib import Path

from bench.operator_figures import figures
from bench.operator_run import Run, Sizes
from bench.table import print_table
from bench.world import start_issuer
from tests.support.cluster import start_cluster
from tests.support.kube_servers import Options

IDENTITIES = 10_000
IDLE = 30.0
CORES = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator", description=__doc__)
    parser.add_argument("--count", type=int, default=IDENTITIES, help="how many identities")
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds over which the idle operator is watched")
    parser.add_argument("--fsync", action="store_true", help="let etcd wait for the disk, which then sets the pace")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # and so all that is started from here
    load = os.getloadavg()[0]
    print(
        f"{options.count} identities; {len(cores)} cores of {platform.machine()}, Python {platform.python_version()};"
        f" load average {load:.1f} before the start{' (others are at work on this machine)' if load > 0.5 else ''}\n",
        flush=True,
    )
    sizes = Sizes(count=options.count, idle=options.idle)
    with tempfile.TemporaryDirectory(prefix="keyferry-bench-") as base, start_issuer() as issuer:
        cluster = start_cluster(Path(base), Options(audit=False, fsync=options.fsync))
        try:
            print_table(figures(asyncio.run(Run(cluster, issuer, Path(base), sizes).measure())))
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
