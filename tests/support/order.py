"""A plugin for pytest: side by side, the workers of pytest-xdist begin with what takes longest.

``--dist worksteal`` gives each worker a part of the tests in their order; who is done takes over from the end of
another's part. So the long ones stand at the beginning of each part, and what is taken over at the end is short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = {
    "tests/node/": 560,
    "tests/operator/live/test_rights.py": 480,
    "tests/crash/cluster/test_random_kills.py": 290,
    "tests/operator/faults/test_matrix.py": 270,
    "tests/providers/test_tiled_server.py": 270,
    "tests/crash/cluster/test_requests.py": 230,
    "tests/crash/cluster/test_steps.py": 210,
    "tests/crash/test_random_kills.py": 180,
    "tests/operator/faults/test_outage.py": 160,
    "tests/real/test_tiled_person.py": 160,
    "tests/engine/test_canary.py": 120,
    "tests/real/test_aiod.py": 110,
    "tests/real/test_tiled_engine.py": 100,
    "tests/operator/faults/test_gaps.py": 90,
    "tests/crash/test_steps.py": 80,
    "tests/operator/live/test_shards.py": 70,
    "tests/operator/test_bench.py": 70,
    "tests/operator/live/test_wakes.py": 60,
    "tests/crash/cluster/test_handover.py": 50,
    "tests/operator/live/test_leases.py": 50,
    "tests/sidecar/test_unmodified_clients.py": 50,
    "tests/cli/test_labarchives.py": 50,
    "tests/real/test_fixtures.py": 50,
    "tests/cli/test_exec.py": 40,
    "tests/engine/test_outage.py": 40,
}
"""What takes long, by the beginning of its name: seconds on two cores, roughly. The rest is short."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort in the workers, all of which come to the same order; who runs one process keeps the order of the files."""
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        names = [item.nodeid for item in items]
        items[:] = [items[place] for place in order(names, int(worker["workercount"]))]


def order(names: Sequence[str], workers: int) -> list[int]:
    """Return the places of tests in the order in which they are to be handed out; a file's tests stay together."""
    long: dict[str, list[int]] = {}
    short: list[int] = []
    for place, name in enumerate(names):
        beginning = next((known for known in SECONDS if name.startswith(known)), None)
        (short if beginning is None else long.setdefault(beginning, [])).append(place)
    parts: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for beginning in sorted(long, key=SECONDS.__getitem__, reverse=True):
        least = loads.index(min(loads))
        loads[least] += SECONDS[beginning]
        parts[least] += long[beginning]
    ordered: list[int] = []
    for number, part in enumerate(parts):
        size = (len(names) - len(ordered)) // (workers - number)
        room = max(0, size - len(part))
        ordered += part + short[:room]
        short = short[room:]
    return ordered + short
