"""The first process of a node's PID namespace: with it ends every process of the node, and with the last, its mounts.

``unshare --pid --mount --fork --mount-proc --kill-child python node_init.py PLAN``, where PLAN is a JSON file:
``cgroup`` (a name below each hierarchy), ``containerd`` and ``kubelet`` (command lines), ``socket`` (containerd's).
However this process ends, the kernel kills all others in the namespace: containers, shims, the kubelet.
Imports the standard library only, like the guardian that starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

CGROUPS = Path("/sys/fs/cgroup")
# What containerd, runc and the kubelet would leave on the machine; hidden below file systems of the node's own.
PRIVATE = ("/run", "/var/log", "/var/lib/cni")
SOCKET_TIMEOUT = 60.0
REMOVE_TIMEOUT = 5.0


def main() -> None:
    """Read the plan, start the node's programs, and end everything when one of them ends or SIGTERM comes."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGTERM, lambda *_: _end(plan["cgroup"], 0))
    for directory in PRIVATE:
        if Path(directory).is_dir():
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", directory], check=True)
    for cgroup in _cgroups(plan["cgroup"]):
        cgroup.mkdir(exist_ok=True)
    containerd = subprocess.Popen(plan["containerd"])
    _wait_for(Path(plan["socket"]))
    kubelet = subprocess.Popen(plan["kubelet"])
    while True:
        ended, status = os.wait()  # orphans of the whole namespace come here too
        if ended in {containerd.pid, kubelet.pid}:
            print(f"{'containerd' if ended == containerd.pid else 'kubelet'} ended: {status}", flush=True)  # noqa: T201
            _end(plan["cgroup"], 1)


def _wait_for(path: Path) -> None:
    """Wait until a server listens on the socket ``path``; SystemExit if none does."""
    deadline = time.monotonic() + SOCKET_TIMEOUT
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))
            return
        time.sleep(0.05)
    sys.exit(f"nothing listens on {path}")


def _end(cgroup: str, status: int) -> NoReturn:
    """Kill every other process of the namespace, reap them, and remove the cgroups that they were in."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    for directory in _cgroups(cgroup):
        _remove(directory)
    os._exit(status)


def _cgroups(name: str) -> list[Path]:
    """Return the node's cgroup in each hierarchy (version 1), or the one (version 2)."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / name]
    return [hierarchy / name for hierarchy in CGROUPS.iterdir() if hierarchy.is_dir() and not hierarchy.is_symlink()]


def _remove(directory: Path) -> None:
    """Remove a cgroup and those below it; the kernel takes a moment to see that it is empty."""
    deadline = time.monotonic() + REMOVE_TIMEOUT
    for path, _, _ in os.walk(directory, topdown=False):
        while time.monotonic() < deadline:
            try:
                Path(path).rmdir()
            except OSError:
                time.sleep(0.05)
            else:
                break


if __name__ == "__main__":
    main()
