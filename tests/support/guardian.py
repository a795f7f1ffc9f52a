"""Keeps one server running for as long as somebody holds its lease, and not a moment longer.

``python guardian.py DIRECTORY NAME LEASE COMMAND…`` puts itself into the background and starts COMMAND in a process
group of its own. Users hold a shared lock on the file LEASE; the kernel lets go of it however they end, SIGKILL
included, so no process is left behind. While the guardian lives it holds a lock on ``DIRECTORY/NAME.alive``.
The output goes to ``DIRECTORY/NAME.log``. Imports the standard library only, because it starts with every server.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOK_EVERY = 0.2  # seconds
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def main() -> None:
    """Read the command line, go into the background, and guard."""
    directory, name, lease, *command = sys.argv[1:]
    alive = os.open(Path(directory, f"{name}.alive"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fork():
        os._exit(0)  # the child keeps the lock
    os.setsid()
    _redirect_output(Path(directory, f"{name}.log"))
    guard(command, Path(lease))


def guard(command: list[str], lease: Path) -> None:
    """Run ``command`` until it ends by itself or nobody holds ``lease`` any more."""
    libc = ctypes.CDLL(None)

    def end_with_guardian() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    # A preexec_fn is unsafe beside threads only, and the guardian has none.
    server = subprocess.Popen(command, process_group=0, preexec_fn=end_with_guardian)  # noqa: PLW1509
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_stop(server)))
    watched = lease.open("rb")
    while server.poll() is None:
        try:
            fcntl.flock(watched, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_EVERY)
        else:
            break
    watched.close()  # or the guardians of other servers with this lease would wait until this one has ended
    _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> int:
    """End the server's whole process group, whose leader may have ended already."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    return 0


def _redirect_output(log: Path) -> None:
    """Send standard output and error to ``log``, and read nothing."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)


if __name__ == "__main__":
    main()
