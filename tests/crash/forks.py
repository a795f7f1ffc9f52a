"""Processes that are forked on command, from one that has all imported.

An order is a JSON line on stdin, its answer a JSON line on stdout: ``{"run": …}`` forks a process that carries the
order out and answers its id, ``{"reap": PID}`` waits for its end and answers its exit status. At the end of stdin all
are killed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Work = Callable[[dict[str, Any]], Coroutine[Any, Any, int]]


def die() -> None:
    """End this process as the kernel would, at once and without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is on its way


def serve(work: Work) -> None:
    """Take orders until stdin ends; ``work`` returns the exit status of its process."""
    gc.freeze()
    alive: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "run" in order:
            pid = _fork(work, order["run"])
            alive.add(pid)
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(order["reap"], 0)
            alive.discard(order["reap"])
            answer = {"status": os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(work: Work, order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        status = asyncio.run(work(order))
    except BaseException as error:  # noqa: BLE001 - whatever it is must be seen, and must not return to the parent's loop
        sys.stderr.write(f"the broker of {order} failed: {error!r}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
