"""One child process that takes our place as far as a caller can tell: its input and terminal, signals, exit code."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from keyferry.cli.exits import CommandError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

FORWARDED: Final = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
FROM_TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT})
SI_KERNEL: Final = 0x80
"""``si_code`` of a signal that the kernel itself sent (sigaction(2)): a key on the terminal, for the child as well."""
_RESTORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Ignored by Python, which a child would inherit."""
_LOOK: Final = 0.5


class Signals:
    """Takes the signals out of the process's hands into a thread, where it is known who sent them.

    They must be blocked before any other thread begins, so make it first of all. While no child runs, ``interrupted``
    is called with a signal.
    """

    def __init__(self, interrupted: Callable[[int], None]) -> None:
        self.before: Final = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        """The mask that the child is to have."""
        self._interrupted = interrupted
        self._child: Child | None = None
        self._closed = False
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="keyferry-signals", daemon=True).start()

    def forward_to(self, child: Child) -> None:
        """Send the child what comes from now on."""
        with self._lock:
            self._child = child

    def close(self) -> None:
        """Take no more."""
        self._closed = True

    def _work(self) -> None:
        while not self._closed:
            info = signal.sigtimedwait(FORWARDED, _LOOK)
            if info is None:
                continue
            with self._lock:
                child = self._child
            if child is None:
                self._interrupted(info.si_signo)
            elif not (info.si_code == SI_KERNEL and info.si_signo in FROM_TERMINAL):
                child.send(info.si_signo)


class Child:
    """A started process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], mask: Iterable[int]) -> None:
        """Start it in our process group. Raises CommandError where it cannot be started."""
        self._lock = threading.Lock()
        self._ended = False
        try:
            self.pid = os.posix_spawnp(command[0], list(command), environment, setsigmask=mask, setsigdef=_RESTORED)
        except FileNotFoundError:
            raise CommandError(f"{command[0]}: there is no such command", ExitCode.NOT_FOUND) from None
        except OSError as error:
            raise CommandError(
                f"{command[0]} cannot be started: {os.strerror(error.errno or 0)}", ExitCode.NOT_EXECUTABLE
            ) from None

    def send(self, number: int) -> None:
        """Send it a signal, as long as it is there."""
        with self._lock:
            if not self._ended:
                os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; return its exit code, 128 + n where signal n ended it. Blocks."""
        # Its number stays taken until it is reaped, so that no signal can reach somebody else.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._ended = True
            _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
