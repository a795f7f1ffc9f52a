"""Faults of an authorization server: what goes wrong, for which requests, and how often."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

HTML = "<!DOCTYPE html>\n<html><head><title>Attention</title></head><body><h1>Please wait</h1></body></html>\n"


class FaultKind(StrEnum):
    """What goes wrong. "Before" and "after" are told from the moment when the grant is spent."""

    LATENCY = "latency"
    """`delay` seconds pass first; then the next fault that matches, or the ordinary answer. The grant is spent even
    if the client has hung up meanwhile, as real servers do."""
    STALL_BEFORE = "stall_before"
    """No answer, and the grant is not spent (with `delay`: as `LATENCY`)."""
    STALL_AFTER = "stall_after"
    """The grant is spent, and no answer comes (with `delay`: it comes so late)."""
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    CLOSE_BEFORE = "close_before"
    """The connection ends in the ordinary way, without an answer."""
    CLOSE_AFTER = "close_after"
    REFUSE = "refuse"
    """The connection is reset before, and new ones are refused for `delay` seconds."""
    ERROR = "error"
    """A well-formed OAuth error `error` with `status`."""
    STATUS = "status"
    """`status` with a plain text, as a proxy or a framework would answer."""
    HTML = "html"
    """`status` with a page."""
    BODY = "body"
    """`status` with the text `body`, as `content_type`."""
    REDIRECT = "redirect"
    """`status` to `location`."""
    HUGE = "huge"
    """A body of `size` bytes, well-formed JSON that holds the answer; `chunked`: without Content-Length."""
    TRUNCATED = "truncated"
    """Content-Length as it should be, but only the first half arrives before the connection ends."""
    TRUNCATED_RESET = "truncated_reset"
    """The same, ended by a reset."""
    MALFORMED = "malformed"
    """The first half of the JSON, with a Content-Length that fits it."""
    DRIP = "drip"
    """One byte every `delay` seconds."""
    SET_FIELD = "set_field"
    """The answer with `name` set to `value`."""
    DROP_FIELD = "drop_field"
    """The answer without `name`."""
    REPLACE = "replace"
    """The JSON `value` in place of the answer."""


_SPENT = frozenset(
    {
        FaultKind.STALL_AFTER,
        FaultKind.RESET_AFTER,
        FaultKind.CLOSE_AFTER,
        FaultKind.HUGE,
        FaultKind.TRUNCATED,
        FaultKind.TRUNCATED_RESET,
        FaultKind.MALFORMED,
        FaultKind.DRIP,
        FaultKind.SET_FIELD,
        FaultKind.DROP_FIELD,
        FaultKind.REPLACE,
    }
)
_NEEDS_ANSWER = _SPENT - {FaultKind.STALL_AFTER, FaultKind.RESET_AFTER, FaultKind.CLOSE_AFTER, FaultKind.REPLACE}
_NEVER_SPENT = frozenset(
    {FaultKind.STALL_BEFORE, FaultKind.RESET_BEFORE, FaultKind.CLOSE_BEFORE, FaultKind.REFUSE, FaultKind.LATENCY}
)
_DEFAULT_STATUS = {
    FaultKind.ERROR: 400,
    FaultKind.STATUS: 503,
    FaultKind.HTML: 502,
    FaultKind.REDIRECT: 302,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and the requests that it befalls.

    It befalls requests to `path` (`None`: any), of `client` and `grant` (`None`: any), after the first `skip` that
    match, `times` times (`None`: always), each with `probability`, drawn from a generator seeded by `seed`.
    `spend` says whether the grant is processed before the fault; `None` is what the kind implies.
    `retry_after` is sent as it is: seconds as a text, or an HTTP-date.
    """

    kind: FaultKind
    times: int | None = None
    client: str | None = None
    grant: str | None = None
    path: str | None = "/token"
    skip: int = 0
    probability: float = 1.0
    seed: int = 0
    delay: float | None = None
    spend: bool | None = None
    status: int | None = None
    error: str = "server_error"
    description: str = ""
    retry_after: str | None = None
    location: str = "/elsewhere"
    body: str = ""
    content_type: str = "application/json"
    size: int = 16 * 1024 * 1024
    chunked: bool = False
    name: str = ""
    value: Any = None

    def __post_init__(self) -> None:
        if self.spend is True and self.kind in _NEVER_SPENT:
            raise ValueError(f"{self.kind} comes before the grant is spent")
        if self.spend is False and self.kind in _NEEDS_ANSWER:
            raise ValueError(f"{self.kind} changes an answer, so the grant has to be spent")

    @property
    def spent(self) -> bool:
        """Whether the grant is processed although the client gets no good answer."""
        return self.kind in _SPENT if self.spend is None else self.spend

    @property
    def http_status(self) -> int:
        return self.status if self.status is not None else _DEFAULT_STATUS.get(self.kind, 200)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Fault:
        """Make a fault from JSON; raises `TypeError` or `ValueError` where a field is unknown or wrong."""
        return cls(**{**fields, "kind": FaultKind(fields["kind"])})


@dataclass(frozen=True, slots=True)
class Target:
    """What of a request decides whether a fault befalls it."""

    path: str
    client: str | None
    grant: str | None


@dataclass(slots=True)
class _Armed:
    fault: Fault
    seen: int = 0
    used: int = 0
    dice: random.Random = field(default_factory=random.Random)

    @property
    def spent(self) -> bool:
        return self.fault.times is not None and self.used >= self.fault.times

    def befalls(self, target: Target) -> bool:
        fault = self.fault
        if (
            self.spent
            or fault.path not in {None, target.path}
            or fault.client not in {None, target.client}
            or fault.grant not in {None, target.grant}
        ):
            return False
        self.seen += 1
        if self.seen <= fault.skip or self.dice.random() >= fault.probability:
            return False
        self.used += 1
        return True


class FaultPlan:
    """The faults that are armed, in the order in which they were added."""

    def __init__(self) -> None:
        self._armed: dict[int, _Armed] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return sum(not armed.spent for armed in self._armed.values())

    def __bool__(self) -> bool:
        return bool(self._armed)

    def add(self, fault: Fault) -> int:
        """Arm a fault and return a number by which it can be removed."""
        number = next(self._numbers)
        self._armed[number] = _Armed(fault, dice=random.Random(fault.seed))  # noqa: S311 -- repeatable, not secret
        return number

    def remove(self, number: int) -> None:
        """Disarm one fault; no error where it is gone."""
        self._armed.pop(number, None)

    def clear(self) -> None:
        """Disarm all."""
        self._armed.clear()

    def used(self, number: int) -> int:
        """Return how many requests a fault has befallen."""
        return self._armed[number].used

    def listing(self) -> list[dict[str, Any]]:
        """Return the armed faults and how often each was used."""
        return [
            {"number": number, "used": armed.used, "spent": armed.spent, "fault": armed.fault.to_json()}
            for number, armed in self._armed.items()
        ]

    def take(self, target: Target) -> list[Fault]:
        """Return the faults of one request: any latencies, and then at most one that changes the answer."""
        taken: list[Fault] = []
        for armed in self._armed.values():
            if armed.befalls(target):
                taken.append(armed.fault)
                if armed.fault.kind is not FaultKind.LATENCY:
                    break
        return taken


def change(payload: object, fault: Fault) -> object:
    """Return an answer's JSON as a fault leaves it."""
    if fault.kind is FaultKind.REPLACE:
        return fault.value
    if not isinstance(payload, dict):
        return payload
    if fault.kind is FaultKind.SET_FIELD:
        return {**payload, fault.name: fault.value}
    if fault.kind is FaultKind.DROP_FIELD:
        return {name: value for name, value in payload.items() if name != fault.name}
    return payload


def padded(payload: object, size: int) -> bytes:
    """Return an answer's JSON, brought to `size` bytes by one more field."""
    fields = dict(payload) if isinstance(payload, dict) else {"answer": payload}
    bare = len(json.dumps({**fields, "padding": ""}))
    return json.dumps({**fields, "padding": "x" * max(0, size - bare)}).encode()
