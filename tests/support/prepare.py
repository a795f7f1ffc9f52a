"""``python -m tests.support.prepare``: build and install what the tests start, once, so that no test waits for it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tests.support import aiod, cluster, keycloak, kube_node, node_images, tiled
from tests.support.servers import InstallError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _node() -> str | None:
    found = kube_node.problem()
    if found is None:
        node_images.base()
    return found


TIERS: Mapping[str, Callable[[], str | None]] = {
    "a Kubernetes API": cluster.problem,
    "its controllers": cluster.controllers_problem,
    "a node": _node,
    "Keycloak": keycloak.problem,
    "Tiled": tiled.problem,
    "AI-on-Demand's client": aiod.problem,
}
"""What the tests start, and what makes it ready, or says in one line why it cannot be had here."""


def main() -> int:
    """Make everything ready; what cannot be had is told, and is for the tests to judge."""
    for name, ready in TIERS.items():
        begun = time.monotonic()
        try:
            problem = ready()
        except InstallError as error:
            problem = str(error)
        print(f"{name}: {problem or 'ready'} ({time.monotonic() - begun:.0f} s)", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
