"""Renewals that were asked for, until it is clear how they went."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.engine.settings import RENEW_INTERVAL
from keyferry.errors import RetryClass
from keyferry.run.status_json import timestamp
from keyferry.spec.durations import format_duration
from keyferry_operator.client import IDENTITIES
from keyferry_operator.kubectl.liveness import operator_trouble
from keyferry_operator.kubectl.statuses import key_of, status_of
from keyferry_operator.names import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.engine import IdentityStatus
    from keyferry_operator.client import Object
    from keyferry_operator.kubectl.api import Api

POLL: Final = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one renewal went."""

    code: ExitCode
    message: str


@dataclass(frozen=True, slots=True)
class _Asked:
    value: str
    """Of the annotation; the status repeats it when it was acted on."""
    before: IdentityStatus


def request(api: Api, body: Object, wanted: Request) -> str:
    """Ask the operator for something with a new value of an annotation; return the value. Raises CommandError."""
    key = key_of(body)
    if (body.get("spec") or {}).get("suspend"):
        raise CommandError(f"{key} is suspended (spec.suspend), so nothing is asked for it")
    value = f"{datetime.now(UTC).isoformat(timespec='milliseconds')}-{secrets.token_hex(4)}"
    api.annotate(IDENTITIES, key.namespace, key.name, {wanted.annotation: value})
    return value


class Renewing:
    """Asks for renewals in one namespace."""

    def __init__(self, api: Api, namespace: str, home: str) -> None:
        self._api = api
        self._namespace = namespace
        self._home = home
        self._asked: dict[str, _Asked] = {}

    def ask(self, name: str) -> None:
        """Ask for one. Raises CommandError."""
        body = self._get(name)
        self._asked[name] = _Asked(request(self._api, body, Request.RENEW), status_of(body))

    def outcomes(self, patience: float) -> Iterator[Outcome]:
        """Yield how each went, as soon as that is clear; after ``patience`` seconds, that it is not."""
        deadline = time.monotonic() + patience
        waiting = dict(self._asked)
        while waiting:
            late = time.monotonic() >= deadline
            for name, asked in list(waiting.items()):
                body = self._api.get(IDENTITIES, self._namespace, name)
                outcome = self._judge(name, asked, body, patience, late=late)
                if outcome is not None:
                    del waiting[name]
                    yield outcome
            if waiting:
                time.sleep(POLL)

    def _judge(self, name: str, asked: _Asked, body: Object | None, patience: float, *, late: bool) -> Outcome | None:
        key = f"{self._namespace}/{name}"
        if body is None:
            return Outcome(ExitCode.FAILED, f"{key} was deleted meanwhile")
        status = status_of(body)
        handled = (body.get("status") or {}).get(Request.RENEW.field) == asked.value
        if handled and status.revision > asked.before.revision:
            until = timestamp(status.expiration_time) if status.expiration_time is not None else "?"
            return Outcome(ExitCode.DONE, f"{key}: renewed, revision {status.revision}, good until {until}")
        if handled and status.stalled():
            code = ExitCode.PERSON if status.retry is RetryClass.NEEDS_PERSON else ExitCode.FAILED
            return Outcome(code, f"{key}: {status.message}")
        if not late:
            return None
        return Outcome(ExitCode.FAILED, f"{key}: {self._why_late(asked, body, status, patience, handled=handled)}")

    def _why_late(self, asked: _Asked, body: Object, status: IdentityStatus, patience: float, *, handled: bool) -> str:
        waited = f"(waited {format_duration(patience)})"
        if handled:
            return f"{status.message} {waited}"
        age = self._api.now() - (asked.before.issue_time or 0.0)
        if age - patience < RENEW_INTERVAL:
            return f"it was renewed less than a minute before; the operator renews it when the minute is over {waited}"
        trouble = operator_trouble(self._api, self._home, [body], [status])
        return f"{trouble or 'no operator has acted on it yet'} {waited}"

    def _get(self, name: str) -> Object:
        body = self._api.get(IDENTITIES, self._namespace, name)
        if body is None:
            raise CommandError(f"there is no ServiceIdentity {self._namespace}/{name}", ExitCode.INVALID)
        return body
