"""Replicas of the operator that die on command: ``python -m tests.crash.cluster.worker`` forks one for each order.

A replica runs as ``keyferry operator`` does: the flags, signals and exit codes are those of the command. Only a step at
which it dies, and times of the lease that no test would like to wait for, are no flags.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keyferry.cli.outputs import LinesOutput
from keyferry.engine import Level
from keyferry.io.addresses import HostRule
from keyferry.io.file_escrow import FileEscrow
from keyferry_operator.command import find_access
from keyferry_operator.leases import Timing
from keyferry_operator.operator import Operator, OperatorSettings
from keyferry_operator.process import serve
from tests.crash import forks

if TYPE_CHECKING:
    from keyferry.ledger import Checkpoint


@dataclass(frozen=True)
class Replica:
    """What a replica is to do; it dies at a passing of a step where one is named."""

    kubeconfig: str
    home: str
    """The operator's own namespace."""
    team: str
    """The namespace that it looks after."""
    instance: str
    escrow: str
    log: str
    lease: tuple[float, float, float, float]
    """Its `Timing`."""
    margin: float
    """Its `settle_margin`."""
    step: str = ""
    passing: int = 1

    @property
    def settings(self) -> OperatorSettings:
        return OperatorSettings(
            namespace=self.home,
            instance=self.instance,
            watch_namespaces=(self.team,),
            allowed_hosts=(HostRule.parse("127.0.0.1"),),
            leader_election=True,
            lease=Timing(*self.lease),
            settle_margin=self.margin,
            escrow=Path(self.escrow),
        )

    def fate(self) -> Checkpoint:
        """Return what ends the process at its step."""
        passed: Counter[str] = Counter()

        def pass_by(step: str) -> None:
            passed[step] += 1
            if step == self.step and passed[step] == self.passing:
                forks.die()

        return pass_by


async def live(fields: dict[str, Any]) -> int:
    """Carry out one order in a process of its own."""
    replica = Replica(**fields)
    log = os.open(replica.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.environ["KUBECONFIG"] = replica.kubeconfig
    settings = replica.settings
    output = LinesOutput(Level.INFO)
    logging.getLogger("keyferry_operator").setLevel(logging.INFO)
    with ThreadPoolExecutor(4) as executor:
        escrow = FileEscrow(settings.escrow, executor)
        process = Operator(settings, lambda: find_access().info, escrow, checkpoint=replica.fate())
        return await serve(process, None, output)


if __name__ == "__main__":
    forks.serve(live)
