"""What an exchange says of its provider: the breaker opens and closes, and those that it holds up are told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from keyferry.engine.outcome import waiting_for_provider
from keyferry.engine.provider import blames_provider, praises_provider
from keyferry.errors import ExchangeError, RetryClass

if TYPE_CHECKING:
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Provider
    from keyferry.engine.roster import Roster
    from keyferry.engine.telling import Teller
    from keyferry.errors import KeyferryError
    from keyferry.plan import Failure
    from keyferry.scheduler import Agenda, Queue


class Breakers:
    """Keeps the providers' breakers, and the plans of those that wait behind them."""

    def __init__(self, ports: Ports, roster: Roster, agenda: Agenda, queue: Queue, teller: Teller) -> None:
        self._ports = ports
        self._roster = roster
        self._agenda = agenda
        self._queue = queue
        self._teller = teller

    def blame(self, provider: Provider, error: KeyferryError) -> None:
        """Tell the provider's breaker, and take the others out of its queue when it opens."""
        clock = self._ports.clock
        if praises_provider(error):
            self.answered(provider)
        if not blames_provider(error) or (isinstance(error, ExchangeError) and error.counted):
            return
        if isinstance(error, ExchangeError):
            error.counted = True  # equal exchanges share one request, and one failure
        retry_after = error.retry_after if isinstance(error, ExchangeError) else None
        provider.lane.failed(clock.monotonic(), error.message, retry_after)
        blocked = provider.lane.blocked_until(clock.monotonic()) - clock.monotonic()
        if blocked <= 0:
            return
        until = clock.now() + blocked
        for key in self._queue.drain_lane(provider.lane_name):
            other = self._roster.entries.get(key)
            if other is not None:
                other.failure = waiting_for_provider(error.message, until + self._ports.rng.random(), other.failure)
                self._agenda.put(key, other.failure.next_attempt)
                self._teller.report(other, other.failure.reason, other.failure.message)

    def answered(self, provider: Provider) -> None:
        """Tell the breaker that the provider is well; when an outage ends, those it held up need wait no longer."""
        if not provider.lane.succeeded():
            return
        now = self._ports.clock.now()
        waiting = [
            other
            for key in self._roster.users_of_provider((provider.resource.kind.value, provider.resource.key))
            if not (other := self._roster.entries[key]).busy and _held_up(other.failure)
        ]
        for other in sorted(waiting, key=lambda held: held.expiration_time):
            if other.failure is not None:
                # The count stays: should the recovery be a short one, the pauses go on growing.
                other.failure = replace(other.failure, next_attempt=now)
            self._agenda.put(other.key, now)


def _held_up(failure: Failure | None) -> bool:
    """Tell whether a failure was the provider's absence, so that its return is the time to try again."""
    return failure is not None and failure.retry is RetryClass.TRANSIENT and failure.code not in ("store", "error")
