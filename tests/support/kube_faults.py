"""Faults between a client and the Kubernetes API: what goes wrong, for which requests, and how often."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NO_REASON = "Unknown"
REASONS = {
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
WRITES = frozenset({"create", "update", "patch", "apply", "delete", "deletecollection"})


class ApiFaultKind(StrEnum):
    """What goes wrong. "Before" and "after" are told from the moment when the API server carries the request out."""

    PASS = "pass"
    """Nothing; for the sake of the hook, which is called before."""
    DELAY = "delay"
    """`delay` seconds pass first; then the next fault that matches, or the ordinary answer."""
    ANSWER_BEFORE = "answer_before"
    """A Status object with the HTTP status `status` in place of the request."""
    ANSWER_AFTER = "answer_after"
    """The same in place of the answer: the API server did as it was asked."""
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    """The API server did as it was asked, and its answer is lost."""
    STALL_BEFORE = "stall_before"
    """No answer until the client gives up; the API server never hears of it."""
    STALL_AFTER = "stall_after"
    GARBAGE = "garbage"
    """Half of the answer's body, as if that were all."""
    STALE = "stale"
    """A list as it was at the resource version `version`."""
    GONE = "gone"
    """A watch tells `skip_events` events, then that it has to begin anew: an ERROR event with code 410."""
    CUT = "cut"
    """A watch tells `skip_events` events, then its connection ends in good order after `delay` seconds in which
    nothing is told, whatever happens."""
    BREAK = "break"
    """The same, ended by a reset."""
    SILENT = "silent"
    """A watch tells `skip_events` events, then nothing more, and stays open."""
    MUFFLE = "muffle"
    """A watch tells `skip_events` events, drops `drop` of those that follow, and goes on as if nothing had been."""


WATCH_KINDS = frozenset(
    {ApiFaultKind.GONE, ApiFaultKind.CUT, ApiFaultKind.BREAK, ApiFaultKind.SILENT, ApiFaultKind.MUFFLE}
)
_NOT_FORWARDED = frozenset({ApiFaultKind.ANSWER_BEFORE, ApiFaultKind.RESET_BEFORE, ApiFaultKind.STALL_BEFORE})
_LATE_HOOK = frozenset({ApiFaultKind.ANSWER_AFTER, ApiFaultKind.RESET_AFTER, ApiFaultKind.STALL_AFTER})
_ADDING = frozenset({ApiFaultKind.PASS, ApiFaultKind.DELAY})


@dataclass(slots=True)
class ApiRequest:
    """One request, from its arrival on; how it went is filled in as it happens."""

    at: float
    """Seconds of the monotonic clock."""
    method: str
    path: str
    query: Mapping[str, str]
    verb: str
    """As RBAC has it, but `apply` for a server-side apply."""
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    body: bytes = b""
    faults: tuple[ApiFaultKind, ...] = ()
    forwarded: bool = False
    """Whether the API server got it."""
    status: int | None = None
    """What the client was answered; None while there is no answer, or where there was none."""

    @property
    def is_write(self) -> bool:
        """Tell whether it changes something, or would."""
        return self.verb in WRITES

    @property
    def selector(self) -> str:
        """The label selector of a list or watch."""
        return self.query.get("labelSelector", "")


@dataclass(frozen=True, slots=True)
class ApiFault:
    """One fault and the requests that it befalls.

    It befalls requests of `verb`, `resource`, `subresource` (`None`: any; `""`: none), in namespaces and with names
    and label selectors that fit the patterns (`fnmatch`), for which `when` is true; after the first `skip` that fit,
    `times` times (`None`: always), each with `probability`, drawn from a generator seeded by `seed`. A list that names
    its objects in its body only, as a create does, has the name that is in the body.

    `hook` is called with each request that it befalls, in the proxy's own thread, at the moment of the fault: before
    the API server gets the request, or after it has answered.
    """

    kind: ApiFaultKind
    verb: str | tuple[str, ...] | None = None
    resource: str | None = None
    subresource: str | None = None
    namespace: str = "*"
    name: str = "*"
    selector: str = "*"
    when: Callable[[ApiRequest], bool] = lambda _request: True
    times: int | None = 1
    skip: int = 0
    probability: float = 1.0
    seed: int = 0
    hook: Callable[[ApiRequest], None] = lambda _request: None
    status: int = 503
    reason: str = ""
    retry_after: int | None = None
    delay: float = 0.0
    version: str = ""
    skip_events: int = 0
    drop: int = 1

    def fits(self, request: ApiRequest) -> bool:
        """Tell whether a request is one of those that it befalls."""
        verbs = (self.verb,) if isinstance(self.verb, str) else self.verb
        return (
            (verbs is None or request.verb in verbs)
            and self.resource in (None, request.resource)
            and self.subresource in (None, request.subresource)
            and fnmatchcase(request.namespace, self.namespace)
            and fnmatchcase(request.name, self.name)
            and fnmatchcase(request.selector, self.selector)
            and (self.kind not in WATCH_KINDS or request.verb == "watch")
            and (self.kind is not ApiFaultKind.STALE or request.verb == "list")
            and self.when(request)
        )

    @property
    def forwards(self) -> bool:
        """Tell whether the API server gets the request."""
        return self.kind not in _NOT_FORWARDED

    @property
    def hooks_late(self) -> bool:
        """Tell whether the hook is called after the API server's answer."""
        return self.kind in _LATE_HOOK

    @property
    def cause(self) -> str:
        """The `reason` of the Status object."""
        return self.reason or REASONS.get(self.status, NO_REASON)


def refused(status: int, retry_after: int | None = None, **where: object) -> ApiFault:
    """Return the fault of being answered `status` in place of what was asked."""
    fault = ApiFault(ApiFaultKind.ANSWER_BEFORE, status=status, retry_after=retry_after)
    return replace(fault, **where)  # type: ignore[arg-type]


def lost(**where: object) -> ApiFault:
    """Return the fault of a request that is carried out and whose answer does not arrive."""
    return replace(ApiFault(ApiFaultKind.RESET_AFTER), **where)  # type: ignore[arg-type]


@dataclass(slots=True)
class _Planned:
    fault: ApiFault
    draw: random.Random
    met: int = 0
    used: int = 0


@dataclass(slots=True)
class ApiFaultPlan:
    """The faults that are to come; they may be added and taken by different threads."""

    _planned: dict[int, _Planned] = field(default_factory=dict)
    _used: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _number: int = 0

    def add(self, *faults: ApiFault) -> list[int]:
        """Plan faults; return their numbers. The first that fits a request and is not used up befalls it."""
        with self._lock:
            numbers = []
            for fault in faults:
                self._number += 1
                self._planned[self._number] = _Planned(fault, random.Random(fault.seed))  # noqa: S311 - no secret
                self._used[self._number] = 0
                numbers.append(self._number)
            return numbers

    def clear(self) -> None:
        """Forget what is to come."""
        with self._lock:
            self._planned.clear()

    def used(self, number: int) -> int:
        """Return how often a fault befell a request."""
        return self._used[number]

    def left(self) -> list[ApiFault]:
        """Return the faults that are not used up."""
        with self._lock:
            return [planned.fault for planned in self._planned.values()]

    def take(self, request: ApiRequest) -> list[ApiFault]:
        """Return what befalls a request: delays and hooks that fit, and at the end one fault of another kind."""
        taken: list[ApiFault] = []
        with self._lock:
            for number, planned in list(self._planned.items()):
                if not planned.fault.fits(request):
                    continue
                planned.met += 1
                if planned.met <= planned.fault.skip or planned.draw.random() >= planned.fault.probability:
                    continue
                planned.used += 1
                self._used[number] = planned.used
                if planned.used == planned.fault.times:
                    del self._planned[number]
                taken.append(planned.fault)
                if planned.fault.kind not in _ADDING:
                    break
        return taken
