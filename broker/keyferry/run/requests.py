"""What people ask of a working broker: a token that lives long enough, and a renewal. It waits for the outcome."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyferry.engine.settings import RENEW_INTERVAL
from keyferry.engine.status import APPROVAL_PENDING
from keyferry.errors import Reason, RetryClass
from keyferry.freshness import LONGEST_LEEWAY, leeway
from keyferry.spec.durations import format_duration

if TYPE_CHECKING:
    from keyferry.engine.status import IdentityStatus
    from keyferry.model import ObjectKey
    from keyferry.run.broker import LocalBroker


class Outcome(enum.StrEnum):
    """How a request ended."""

    DONE = "Done"
    FAILED = "Failed"
    """There is no such token now; the message says why."""
    PERSON = "PersonNeeded"
    TOO_SOON = "TooSoon"
    """A renewal was made less than a minute ago."""
    UNKNOWN = "Unknown"
    """No such identity is declared."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a request, for people. Never a token."""

    outcome: Outcome
    message: str = ""
    wait: float = 0.0
    """Seconds until it may be asked again, where it came too soon."""
    status: IdentityStatus | None = None


async def want(broker: LocalBroker, key: ObjectKey, minimum: float | None, patience: float) -> Answer:
    """Wait up to ``patience`` seconds for a token that lives for ``minimum`` seconds more; have it renewed if need be.

    ``None`` is the identity's own ``renewal.minimumRemaining``, and at least a few seconds.
    """
    if not await broker.include(key):
        return _unknown(key)
    return await _Waiting(broker, key, minimum, patience).go_on()


async def renew(broker: LocalBroker, key: ObjectKey, patience: float, *, just_started: bool = False) -> Answer:
    """Renew now, at most once a minute, and wait up to ``patience`` seconds for it.

    ``just_started`` tells that this broker remembers no earlier request, so that the age of the token must do.
    """
    if not await broker.include(key):
        return _unknown(key)
    engine, clock = broker.engine, broker.clock
    before = engine.status(key)
    wait = 0.0
    if just_started and before.revision and before.issue_time is not None:
        wait = before.issue_time + RENEW_INTERVAL - clock.now()
    if wait <= 0:
        wait = engine.renew(key)
    if wait > 0:
        message = f"{key} was renewed less than a minute ago; it can be renewed again in {wait:.0f} s"
        return Answer(Outcome.TOO_SOON, message, wait, before)

    def over(status: IdentityStatus) -> bool:
        return status.revision > before.revision or (_looked_at(status) and _hopeless(status) and not status.busy)

    await engine.wait_for(key, over, patience)
    status = engine.status(key)
    if status.revision > before.revision:
        return Answer(Outcome.DONE, status=status)
    return _failed(status, patience)


async def login(broker: LocalBroker, key: ObjectKey, patience: float, *, begin: bool) -> Answer:
    """Have a person asked (``begin``), or wait up to ``patience`` seconds for what they say.

    The outcome is PERSON while they are being asked: the status then says what to show them.
    """
    if not await broker.include(key):
        return _unknown(key)
    engine = broker.engine
    before = engine.status(key)
    refused = _begin(broker, key) if begin else ""
    if refused:
        return Answer(Outcome.FAILED, refused, status=before)

    def over(status: IdentityStatus) -> bool:
        if begin:
            return status.prompt is not None or _was_heard(broker, key) or status.reason is Reason.SUSPENDED
        return status.prompt is None and status.error_code != APPROVAL_PENDING and not status.busy

    await engine.wait_for(key, over, patience)
    status = engine.status(key)
    if status.prompt is not None:
        return Answer(Outcome.PERSON, status=status)
    unheard = begin and not _was_heard(broker, key)
    if unheard or not status.ready(broker.clock.now()) or status.stalled():
        return _failed(status, patience)
    if status.unapproved:
        message = f"{key}: {status.login_failure}"
        return Answer(Outcome.PERSON, message, status=status)
    return Answer(Outcome.DONE, status=status)


def _begin(broker: LocalBroker, key: ObjectKey) -> str:
    """Have a person asked; say why that cannot be, or nothing."""
    if broker.prompts and not broker.engine.login(key):
        grant = broker.engine.roster.entries[key].resource.spec.grant.type.value
        return f"{key} needs no login: its grant is {grant}"
    if not broker.prompts:
        return (
            f"{key}: another command looks after it just now that asks nobody (`keyferry exec`, `token`, or `run"
            " --once`). Try again when it has ended, or start `keyferry run`"
        )
    return ""


class _Waiting:
    """One request for a token, while it lasts."""

    def __init__(self, broker: LocalBroker, key: ObjectKey, minimum: float | None, patience: float) -> None:
        self._engine = broker.engine
        self._clock = broker.clock
        self._key = key
        self._minimum = minimum
        self._patience = patience
        self._deadline = self._clock.monotonic() + patience
        self._declared = broker.engine.roster.entries[key].resource.spec.renewal.minimum_remaining

    async def go_on(self) -> Answer:
        asked_at: int | None = None
        while True:
            status = self._engine.status(self._key)
            if self._met(status):
                return Answer(Outcome.DONE, status=status)
            if _looked_at(status) and _hopeless(status) and not status.busy:
                return _failed(status, self._patience)
            if self._too_short(status) and self._clock.now() - (status.issue_time or 0.0) < RENEW_INTERVAL:
                return Answer(Outcome.FAILED, self._why_short(status), status=status)
            refused = 0.0
            if asked_at is None or status.revision > asked_at:
                refused = self._engine.want(self._key, self._needed(status))
                asked_at = None if refused > 0 else status.revision
            left = self._deadline - self._clock.monotonic()
            if left <= 0:
                return _failed(status, self._patience)
            await self._news(status.revision, min(left, refused) if refused > 0 else left)

    async def _news(self, revision: int, patience: float) -> None:
        """Wait until something is different, or it is clear that nothing will be."""

        def over(status: IdentityStatus) -> bool:
            stuck = _looked_at(status) and _hopeless(status) and not status.busy
            return stuck or status.revision > revision or self._met(status)

        await self._engine.wait_for(self._key, over, patience)

    def _needed(self, status: IdentityStatus) -> float:
        if self._minimum is not None:
            return self._minimum
        life = leeway(status.issue_time or 0.0, status.expiration_time or 0.0) if status.revision else LONGEST_LEEWAY
        return max(self._declared, life)

    def _met(self, status: IdentityStatus) -> bool:
        now = self._clock.now()
        return status.ready(now) and (status.expiration_time or 0.0) - now >= self._needed(status)

    def _too_short(self, status: IdentityStatus) -> bool:
        life = (status.expiration_time or 0.0) - (status.issue_time or 0.0)
        return status.revision > 0 and life < self._needed(status)

    def _why_short(self, status: IdentityStatus) -> str:
        life = (status.expiration_time or 0.0) - (status.issue_time or 0.0)
        return (
            f"the provider's tokens for {self._key} live for {format_duration(life)}, and"
            f" {format_duration(self._needed(status))} were asked for: no renewal can give that. Ask for less, or have"
            " the provider issue longer tokens"
        )


def _was_heard(broker: LocalBroker, key: ObjectKey) -> bool:
    """Tell whether a wish to have a person asked was seen to, whatever came of it, or cannot be."""
    entry = broker.engine.roster.entries.get(key)
    return entry is not None and (not entry.login or entry.refusal is not None)


def _looked_at(status: IdentityStatus) -> bool:
    """Tell whether the broker has looked at the identity since it started: a failure of earlier may be over."""
    return status.reason is not Reason.PENDING or bool(status.message)


def _hopeless(status: IdentityStatus) -> bool:
    """Tell whether waiting is of no use."""
    return status.stalled() or status.reason is Reason.SUSPENDED


def _failed(status: IdentityStatus, patience: float) -> Answer:
    if status.prompt is not None:
        key = status.key
        message = f"{key} waits for a person: `keyferry login {key.name} -n {key.namespace}` shows where to log in"
        return Answer(Outcome.PERSON, message, status=status)
    outcome = Outcome.PERSON if status.retry is RetryClass.NEEDS_PERSON else Outcome.FAILED
    if status.reason is Reason.SUSPENDED:
        return Answer(Outcome.FAILED, f"{status.key} is suspended (spec.suspend)", status=status)
    if status.retry is None:
        return Answer(outcome, f"{status.key} had no such token within {format_duration(patience)}", status=status)
    waited = "" if status.stalled() else f" (waited {format_duration(patience)})"
    return Answer(outcome, f"{status.key}: {status.message}{waited}", status=status)


def _unknown(key: ObjectKey) -> Answer:
    return Answer(Outcome.UNKNOWN, f"no ServiceIdentity {key} is declared in the resource files")
