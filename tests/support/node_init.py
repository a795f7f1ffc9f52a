"""Runs a node's programs in namespaces of their own, and ends every process, mount and cgroup of it with itself.

``python node_init.py PLAN``, where PLAN is a JSON file: ``cgroup`` (a name below each hierarchy), ``containerd`` and
``kubelet`` (command lines), ``socket`` (containerd's). The first process of the PID namespace is this module again.
However that ends, the kernel kills all others in the namespace (containers, shims, the kubelet), and the mounts, which
nobody else sees, go with the last of them. Imports the standard library only, like the guardian that starts it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
# What containerd, runc and the kubelet would leave on the machine; hidden below file systems of the node's own.
PRIVATE = ("/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet")
INSIDE = "--inside"
NAMESPACES = ("unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child=SIGKILL")
SOCKET_TIMEOUT = 60.0
END_TIMEOUT = 5.0  # seconds; the guardian waits for ten
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def main() -> None:
    """Carry out the plan, outside or inside the namespaces."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    if INSIDE in sys.argv:
        inside(plan)
    else:
        outside(plan)


def outside(plan: dict[str, Any]) -> None:
    """Start the namespaces; end them on SIGTERM, and remove the cgroups."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cgroups = _cgroups(plan["cgroup"])
    libc = ctypes.CDLL(None)

    def end_with_this_process() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    for cgroup in cgroups:
        cgroup.mkdir(exist_ok=True)
    command = [*NAMESPACES, sys.executable, "-I", __file__, sys.argv[1], INSIDE]
    # A preexec_fn is unsafe beside threads only, and there are none.
    namespaces = subprocess.Popen(command, preexec_fn=end_with_this_process)  # noqa: PLW1509
    try:
        sys.exit(namespaces.wait())
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # unshare ignores it; it ends when the namespace's last process has
        try:
            namespaces.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            namespaces.kill()
        for cgroup in cgroups:
            _remove(cgroup)


def inside(plan: dict[str, Any]) -> None:
    """Start the node's programs as the first process of the PID namespace; end when one of them ends, or on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for directory in PRIVATE:
        Path(directory).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", directory], check=True)
    containerd = subprocess.Popen(plan["containerd"])
    _wait_for(Path(plan["socket"]))
    kubelet = subprocess.Popen(plan["kubelet"])
    while True:
        ended, status = os.wait()  # orphans of the whole namespace come here too
        if ended in {containerd.pid, kubelet.pid}:
            sys.exit(f"{'containerd' if ended == containerd.pid else 'the kubelet'} ended: {status}")


def _wait_for(path: Path) -> None:
    """Wait until a server listens on the socket ``path``; SystemExit if none does."""
    deadline = time.monotonic() + SOCKET_TIMEOUT
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))
            return
        time.sleep(0.05)
    sys.exit(f"nothing listens on {path}")


def _cgroups(name: str) -> list[Path]:
    """Return the node's cgroup in each hierarchy (version 1), or the one (version 2)."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS / name]
    return [hierarchy / name for hierarchy in CGROUPS.iterdir() if hierarchy.is_dir() and not hierarchy.is_symlink()]


def _remove(directory: Path) -> None:
    """Remove a cgroup and those below it; the kernel takes a moment to see that it is empty."""
    deadline = time.monotonic() + END_TIMEOUT
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
