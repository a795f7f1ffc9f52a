"""Failures of ``keyferry run``, kept in the state directory so that backoff, and what must not be retried, survive."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from keyferry.errors import KeyferryError, Reason, RetryClass
from keyferry.io.files import Folder
from keyferry.model import ObjectKey
from keyferry.plan import Failure

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY: Final = "failures"


class FailureFiles:
    """One small file for each identity that fails. Blocks: call it in a thread."""

    def __init__(self, state: Path) -> None:
        self._directory = state / DIRECTORY

    def write(self, key: ObjectKey, failure: Failure) -> None:
        """Keep a failure. Raises PublishError when the disk does not take it."""
        data = json.dumps(encode(failure)).encode()
        with Folder.open(self._directory / key.namespace) as folder:
            # A failure that is lost with the power only means one more try.
            folder.write(f"{key.name}.json", data, fsync=False)

    def clear(self, key: ObjectKey) -> None:
        """Forget a failure."""
        try:
            with Folder.open(self._directory, key.namespace, create=False) as folder:
                folder.remove(f"{key.name}.json")
        except FileNotFoundError:
            pass

    def read(self) -> dict[ObjectKey, Failure]:
        """Return every failure that was kept; a damaged file is as good as none."""
        found: dict[ObjectKey, Failure] = {}
        for path in self._directory.glob("*/*.json"):
            try:
                failure = decode(json.loads(path.read_bytes()))
            except (OSError, ValueError, KeyError, TypeError, KeyferryError):
                continue
            found[ObjectKey(path.parent.name, path.stem)] = failure
        return found


def encode(failure: Failure) -> dict[str, Any]:
    """Return a failure as JSON-ready values; none of them is a secret."""
    return {
        "count": failure.count,
        "nextAttempt": failure.next_attempt if math.isfinite(failure.next_attempt) else None,
        "reason": failure.reason.value,
        "retry": failure.retry.value,
        "code": failure.code,
        "message": failure.message,
        "cause": failure.cause,
    }


def decode(data: dict[str, Any]) -> Failure:
    """Return what ``encode`` made. Raises KeyError, TypeError or ValueError for anything else."""
    at = data["nextAttempt"]
    return Failure(
        count=int(data["count"]),
        next_attempt=math.inf if at is None else float(at),
        reason=Reason(data["reason"]),
        retry=RetryClass(data["retry"]),
        code=str(data["code"]),
        message=str(data["message"]),
        cause=str(data["cause"]),
    )
