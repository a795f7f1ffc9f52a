"""The state directory of ``keyferry run``: who holds it, its keys, and the paths in it.

::

    STATE/                   0700
    ├── lock                 held (flock) by the one process that may spend and write
    ├── identity.json        the state's own name, and the key of the fingerprints
    ├── records/<ns>/<name>.json    private state, one file an identity
    ├── gone/<uid>.json      private state of identities that are gone: orders to revoke
    ├── seeds/<digest>       tombstones of seeds
    ├── escrow/<attempt>     answers on their way into a record
    ├── failures/<ns>/<name>.json   last failures, so that backoff survives a restart
    ├── viewer-token         whose bearer may see the overview on the approval page, where there is one
    └── control.sock         where a running broker answers the other commands
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import secrets
from typing import TYPE_CHECKING, Any, Final, Self, final

from keyferry.errors import PublishError, StoreError, StoreUnavailable
from keyferry.io.files import Folder
from keyferry.io.leftovers import sweep_temporaries

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

LOCK_NAME: Final = "lock"
IDENTITY_NAME: Final = "identity.json"
KEY_BYTES: Final = 32


class StateHeld(StoreError):
    """Another process works on this state directory."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"The state directory {path} is in use by another keyferry ({holder}). Two brokers on one state would spend"
            " the same one-time credentials, so this one does nothing. Use that one (`keyferry status`), stop it, or"
            " give this one a state of its own with --state."
        )
        self.path = path
        self.holder = holder


@final
class StateDir:
    """An opened and locked state directory."""

    def __init__(self, path: Path, lock: int, *, origin: str, digest_key: bytes, holder: str) -> None:
        self.path = path
        self.origin = origin
        """Random name of this state, by which a record that was copied here from elsewhere is told."""
        self.digest_key = digest_key
        self.holder = holder
        """Names this process in the claims that it makes."""
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Create what is missing and take the lock.

        Raises StateHeld when another process has it, StoreUnavailable when the directory cannot be used.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise unavailable("open", path, error) from error
        try:
            _take(lock, path)
            _sweep(path)
            origin, key = _identity(path)
        except BaseException:
            os.close(lock)
            raise
        return cls(
            path,
            lock,
            origin=origin,
            digest_key=key,
            holder=f"{os.uname().nodename}:{os.getpid()}:{secrets.token_hex(4)}",
        )

    def close(self) -> None:
        """Let the next process in."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def holder_of(path: Path) -> str | None:
    """Tell which process holds the state directory: None when nobody does."""
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _read_holder(lock)
    finally:
        os.close(lock)
    return None


def unavailable(doing: str, path: Path | str, error: OSError) -> StoreUnavailable:
    """Return what the system said of a state file, as a sentence for people."""
    what = os.strerror(error.errno) if error.errno else str(error)
    return StoreUnavailable(
        f"Cannot {doing} the private state {path}: {what}. Nothing that was kept is lost; Keyferry tries again."
        " Look at the free space, the owner and the mode of that directory."
    )


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateHeld(path, _read_holder(lock)) from None
    except OSError as error:
        raise unavailable("lock", path, error) from error
    with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not keep the broker from starting
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()} on {os.uname().nodename}".encode(), 0)


def _sweep(path: Path) -> None:
    """Remove what a killed holder left half-written: it may hold secrets, and the lock says that nobody writes now."""
    with contextlib.suppress(PublishError):
        sweep_temporaries(path, older_than=-math.inf)


def _read_holder(lock: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(lock, 200, 0).decode("ascii", "replace")
        if text.isprintable() and text:
            return text
    return "unknown process"


def _identity(path: Path) -> tuple[str, bytes]:
    """Return the state's name and key, made at the first start."""
    try:
        with Folder.open(path) as folder:
            raw = folder.read(IDENTITY_NAME)
            if raw is None:
                made: dict[str, Any] = {"origin": secrets.token_hex(16), "key": secrets.token_hex(KEY_BYTES)}
                raw = json.dumps(made).encode()
                folder.write(IDENTITY_NAME, raw)
                folder.sync()
    except PublishError as error:
        raise StoreUnavailable(error.message) from error
    try:
        data = json.loads(raw)
        origin, key = str(data["origin"]), bytes.fromhex(data["key"])
    except (ValueError, KeyError, TypeError):
        raise StoreUnavailable(
            f"{path / IDENTITY_NAME} is damaged. Restore it from a backup: the records need it."
        ) from None
    return origin, key
