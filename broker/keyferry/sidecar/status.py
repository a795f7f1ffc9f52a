"""How each identity stands: in ``status.json`` for the probe and for people, and a line in the pod's log per change."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyferry.errors import PublishError
from keyferry.light_json import read_json
from keyferry.sidecar.check import STATUS, age
from keyferry.spec.durations import format_duration
from keyferry.wire import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyferry.sidecar.files import PodFiles

TOLERANCE: Final = 2.0
"""Seconds that a token may fall short of what was asked: the answer took a while to come."""
_SCHEMA: Final = 1


@dataclass(slots=True)
class Trouble:
    """Why there is no newer token."""

    reason: str
    message: str
    since: float


@dataclass(slots=True)
class Standing:
    """One identity. Times are Unix seconds."""

    revision: int = 0
    issued_at: float | None = None
    expires_at: float | None = None
    """None where nothing expires, or nobody knows when."""
    written_at: float | None = None
    """When its files were last written; None: they never were."""
    confirmed_at: float | None = None
    """When the broker last said that this is current."""
    origin: str = ""
    """``Broker``, or ``MountedSecret`` where the broker could not be asked."""
    files: list[str] = field(default_factory=list)
    problem: Trouble | None = None


class Board:
    """Writes the status, tells the log, and keeps the gate: the containers start once every token is good enough."""

    def __init__(
        self,
        files: PodFiles,
        names: Sequence[str],
        minimum: float,
        *,
        now: Callable[[], float] = time.time,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """``minimum`` is for how many seconds every token must be good when the containers start."""
        self._files = files
        self._minimum = minimum
        self._now = now
        self._tell = tell or _to_stderr
        self._expired: set[str] = set()
        self._unwritable = ""
        self.serving = True
        """The endpoints are there, or nobody wants them."""
        self.passed = False
        """The containers may start, and stay so."""
        self.standings = {name: Standing() for name in names}
        self._load()

    def written(self, name: str, standing: Standing) -> None:
        """Take note of new files."""
        before = self.standings[name]
        changed = (before.revision, before.expires_at) != (standing.revision, standing.expires_at)
        self.standings[name] = standing
        self._expired.discard(name)
        if changed or before.problem is not None:
            until = f", good for {age(standing.expires_at - self._now())}" if standing.expires_at is not None else ""
            source = "" if standing.origin == "Broker" else " from the mounted Secret, for the broker cannot be asked"
            self.tell(f"{name}: revision {standing.revision} is in its files{source}{until}")
        self.save()

    def confirmed(self, name: str) -> None:
        """Take note that the broker has nothing newer."""
        standing = self.standings[name]
        standing.confirmed_at = self._now()
        if standing.problem is not None:
            standing.problem = None
            self.tell(f"{name}: the broker answers again; revision {standing.revision} is current")
        self.save()

    def troubled(self, name: str, reason: str, message: str) -> None:
        """Take note of why there is no newer token."""
        standing = self.standings[name]
        before = standing.problem
        if before is None or (before.reason, before.message) != (reason, message):
            since = self._now() if before is None else before.since
            standing.problem = Trouble(reason, message, since)
            kept = ""
            if standing.written_at is not None:
                kept = f" (its files stay as they are: revision {standing.revision}, {self._left(standing)})"
            self.tell(f"{name}: {reason}: {message}{kept}")
            self.save()
        if standing.expires_at is not None and standing.expires_at <= self._now() and name not in self._expired:
            self._expired.add(name)
            self.tell(f"{name}: its token has expired, and there is no newer one: {reason}: {message}")

    def tell(self, line: str) -> None:
        """Write a line into the pod's log."""
        self._tell(line)

    def save(self) -> None:
        """Write the status, and open the gate if it is time."""
        waiting = self._waiting()
        if not self.passed and not waiting:
            self.passed = True
            self.tell("every token is good: the containers may start")
        body = {
            "schema": _SCHEMA,
            "gate": {
                "passed": self.passed,
                "minimum_remaining": format_duration(self._minimum),
                "waiting": "" if self.passed else waiting,
            },
            "identities": {name: self._shown(standing) for name, standing in self.standings.items()},
        }
        try:
            self._files.write_own(STATUS.rpartition("/")[2], json.dumps(body, indent=1).encode() + b"\n")
            self._unwritable = ""
        except PublishError as error:
            if self._unwritable != error.message:
                self._unwritable = error.message
                self.tell(error.message)

    def _waiting(self) -> str:
        """Say what the containers wait for; nothing where they need not."""
        if not self.serving:
            return "the loopback endpoints are being set up"
        for name, standing in self.standings.items():
            if standing.written_at is None:
                return f"{name} has no token yet"
            if standing.expires_at is None:
                if standing.origin != "Broker" and self._minimum > 0:
                    return f"nobody knows how long the token of {name} in the mounted Secret is good"
            elif standing.expires_at - self._now() < max(self._minimum - TOLERANCE, 0.001):
                asked = f", and {format_duration(self._minimum)} is asked for" if self._minimum else ""
                return f"the token of {name} is {self._left(standing)}{asked}"
        return ""

    def _left(self, standing: Standing) -> str:
        if standing.expires_at is None:
            return "good"
        left = standing.expires_at - self._now()
        return f"good for {age(left)}" if left > 0 else f"expired {age(-left)} ago"

    @staticmethod
    def _shown(standing: Standing) -> dict[str, Any]:
        expires = None if standing.expires_at is None else timestamp(standing.expires_at)
        return {"expires": expires, **asdict(standing)}

    def _load(self) -> None:
        """Take over what a sidecar of this pod wrote down before its container was started again."""
        try:
            body = read_json(f"{self._files.root}/{STATUS}")
            self.passed = body["gate"]["passed"] is True
            for name, each in body["identities"].items():
                if name in self.standings and each["written_at"] is not None:
                    self.standings[name] = _standing(each)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration):
            return  # it is written anew


def _standing(each: dict[str, Any]) -> Standing:
    times = (each["issued_at"], each["expires_at"], each["written_at"], each["confirmed_at"])
    issued, expires, written, confirmed = (None if at is None else float(at) for at in times)
    paths = [str(path) for path in each["files"]]
    return Standing(int(each["revision"]), issued, expires, written, confirmed, str(each["origin"]), paths)


def _to_stderr(line: str) -> None:
    try:
        sys.stderr.write(f"{timestamp(time.time())} {line}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens
