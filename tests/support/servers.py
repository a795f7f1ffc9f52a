"""Real servers for tests: installed once into a cache, started on the loopback, shared, and never left behind.

A server belongs to a lease, a file that its users lock. When the last of them lets go, or dies, its guardian process
(see ``guardian.py``) ends it. ``SharedRun`` is the lease of one test run, whose pytest-xdist workers share the servers.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

GUARDIAN = Path(__file__).with_name("guardian.py")
# Below the range that Linux gives to outgoing connections, so that none of them takes the port before the server does.
FIRST_PORT, PORTS = 20_000, 12_000
STOP_TIMEOUT = 40.0
LOG_LINES = 30


class InstallError(Exception):
    """A server could not be installed here; the message is one line for a person."""


class StartError(Exception):
    """A server did not become ready; the message holds the end of its log."""


def cache_dir() -> Path:
    """Return the directory, outside the source tree, for what is expensive to download or to build."""
    configured = os.environ.get("KEYFERRY_TEST_CACHE")
    if configured:
        return Path(configured).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "keyferry-test"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, between processes, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install_once(name: str, install: Callable[[Path], None]) -> Path:
    """Return the cached directory ``name``, which ``install`` fills unless an earlier run completed it.

    ``name`` must change whenever what is installed does. A stamp is written last: a broken install is never used.
    """
    target = cache_dir() / name
    stamp = target / ".complete"
    with exclusive(cache_dir() / f"{name}.lock"):
        if not stamp.exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            install(target)
            stamp.write_text(f"{name}\n")
    return target


def environment_with(package: str, version: str, *, extra: str = "") -> Path:
    """Return the Python of a virtual environment of its own that has a package from PyPI, made once."""

    def install(target: Path) -> None:
        run_installer([sys.executable, "-m", "venv", target], what=f"making a virtual environment for {package}")
        wanted = f"{package}[{extra}]=={version}" if extra else f"{package}=={version}"
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted]
        run_installer([target / "bin" / "python", *pip], what=f"installing {package} {version} with pip")

    name = f"{package}-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    return install_once(name, install) / "bin" / "python"


def problem_with(install: Callable[[], Path]) -> str | None:
    """Say in one line why something cannot be installed here, or None once it is."""
    try:
        install()
    except InstallError as error:
        return str(error)
    return None


def run_installer(argv: Sequence[str | Path], *, what: str, cwd: Path | None = None) -> None:
    """Run a program that installs something; raise InstallError with its last line of output if it fails."""
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InstallError(f"{what} failed: {lines[-1][:300] if lines else f'exit status {done.returncode}'}")


def free_port() -> int:
    """Return a TCP port on which nothing listens on 127.0.0.1."""
    while True:
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Lease:
    """A hold on a file: the servers started with it live until the last holder lets go or dies."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self.path = path
        self._file = path.open("rb")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go. Doing so again changes nothing."""
        self._file.close()


@dataclass(frozen=True)
class Server:
    """A started server, seen from any process of the test run."""

    directory: Path
    name: str

    @property
    def log(self) -> Path:
        """The file that its output goes to."""
        return self.directory / f"{self.name}.log"

    def alive(self) -> bool:
        """Tell whether its guardian, and so the server, still runs."""
        return is_locked(self.directory / f"{self.name}.alive")

    def log_tail(self) -> str:
        """Return the last lines of its output."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-LOG_LINES:])

    def wait_stopped(self) -> None:
        """Wait until the server has ended, which it does once its lease is released; raise StartError if it stays."""
        deadline = time.monotonic() + STOP_TIMEOUT
        while self.alive():
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not stop within {STOP_TIMEOUT:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)


def is_locked(path: Path) -> bool:
    """Tell whether some process holds an exclusive lock on ``path``."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start_server(
    name: str,
    command: Sequence[str | Path],
    *,
    directory: Path,
    lease: Lease,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    timeout: float = 300.0,
) -> Server:
    """Start ``command`` and return once ``ready()`` is true.

    It runs in ``directory`` with ``environment`` on top of this process's own. Raises StartError if it ends or is not
    ready within ``timeout`` seconds; where it is merely slow, it ends with its lease.
    """
    server = Server(directory, name)
    guardian = [sys.executable, "-I", GUARDIAN, directory, name, lease.path, *command]
    subprocess.run(guardian, cwd=directory, env={**os.environ, **(environment or {})}, check=True)
    deadline = time.monotonic() + timeout
    while not ready():
        if not server.alive():
            raise StartError(f"{name} ended while it started:\n{server.log_tail()}")
        if time.monotonic() > deadline:
            raise StartError(f"{name} was not ready after {timeout:.0f} s:\n{server.log_tail()}")
        time.sleep(0.1)
    return server


class SharedRun:
    """The servers that all processes of one test run share, and the private directory in which they say where they are.

    The process that was started by the person creates it; workers join it. Servers end with the last of them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lease = Lease(directory / "lease")

    @classmethod
    def create(cls) -> SharedRun:
        """Begin a run, and clear away what runs that were killed left in the cache."""
        root = cache_dir() / "run"
        with exclusive(root / "lock"):
            for old in root.iterdir():
                if old.is_dir() and not _in_use(old):
                    shutil.rmtree(old, ignore_errors=True)
            directory = root / secrets.token_hex(8)
            directory.mkdir(mode=0o700)
            return cls(directory)

    def shared(self, name: str, start: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what ``start`` returned (plain JSON values) in whichever process needed ``name`` first.

        A failed start is not tried again by every worker: each gets the same StartError.
        """
        record, failure = self.directory / f"{name}.json", self.directory / f"{name}.failed"
        with exclusive(self.directory / f"{name}.lock"):
            if failure.exists():
                raise StartError(failure.read_text())
            if not record.exists():
                try:
                    answer = start()
                except Exception as error:
                    failure.write_text(f"{name} could not be started: {error}")
                    raise
                record.write_text(json.dumps(answer))
            found: dict[str, Any] = json.loads(record.read_text())
            return found

    def close(self) -> None:
        """End the run: wait until its servers have stopped, then remove its directory."""
        self.lease.release()
        for alive in self.directory.glob("*.alive"):
            Server(self.directory, alive.stem).wait_stopped()
        shutil.rmtree(self.directory, ignore_errors=True)


def _in_use(directory: Path) -> bool:
    """Tell whether a process of that run, or one of its servers, still lives."""
    if any(is_locked(alive) for alive in directory.glob("*.alive")):
        return True
    lease = directory / "lease"
    if not lease.exists():
        return False
    with lease.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
