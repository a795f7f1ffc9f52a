from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.operator.kubectl.test_status import declare, fresh, rejected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

PROGRAM = Path(sys.executable).with_name("kubectl-keyferry")
PATIENCE = 180.0


@contextmanager
def watching(cluster: Cluster, home: Path, *arguments: str) -> Iterator[queue.Queue[str]]:
    """Run `status --watch` as a process of its own; its lines come one by one."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(cluster.kubeconfig)}
    command = [str(PROGRAM), "status", "--watch", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            for line in process.stdout or ():
                lines.put(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield lines
        finally:
            process.terminate()
            reader.join(PATIENCE)


def test_each_change_is_a_line(cluster: Cluster, people: str, tmp_path: Path) -> None:
    declare(cluster, people, "nightly", fresh())
    with watching(cluster, tmp_path, "-n", people) as lines:
        assert lines.get(timeout=PATIENCE).startswith(f"{people}/nightly: Fresh, Issued, revision 3, expires in ")
        declare(cluster, people, "person", rejected())
        said = [lines.get(timeout=PATIENCE), lines.get(timeout=PATIENCE)]
        assert said[-1] == f"{people}/person: Stalled, ApprovalRequired: log in again\n"
        cluster.api.delete(declare(cluster, people, "person"))
        while "gone" not in (line := lines.get(timeout=PATIENCE)):
            pass
        assert line == f"{people}/person: gone\n"


def test_each_change_of_a_name_is_an_object(cluster: Cluster, people: str, tmp_path: Path) -> None:
    declare(cluster, people, "other", fresh())
    declare(cluster, people, "nightly", fresh())
    with watching(cluster, tmp_path, "nightly", "-n", people, "-o", "json") as lines:
        assert json.loads(lines.get(timeout=PATIENCE))["metadata"]["name"] == "nightly"
        declare(cluster, people, "other", fresh(revision=4))
        declare(cluster, people, "nightly", fresh(revision=4))
        found = json.loads(lines.get(timeout=PATIENCE))
        assert (found["metadata"]["name"], found["status"]["revision"]) == ("nightly", 4)
