"""Tells what happens: to whoever listens (the table, the log lines, the metrics), and to the state directory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from keyferry.errors import PublishError
from keyferry.io.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from keyferry.engine import Event, IdentityStatus
    from keyferry.model import ObjectKey
    from keyferry.plan import Failure
    from keyferry.run.failures import FailureFiles

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Somebody who is told."""

    def report(self, status: IdentityStatus) -> None:
        """Take note of a status."""

    def forget(self, key: ObjectKey) -> None:
        """Take note that an identity is gone."""

    def event(self, event: Event) -> None:
        """Take note of an event."""


class LocalReporter:
    """Implements ``keyferry.engine.ports.Reporter`` on one machine."""

    def __init__(self, failures: FailureFiles, executor: Executor) -> None:
        self._failures = failures
        self._executor = executor
        self.listeners: list[Listener] = []

    def report(self, status: IdentityStatus) -> None:
        """Pass a status on."""
        for listener in self.listeners:
            listener.report(status)

    def forget(self, key: ObjectKey) -> None:
        """Pass it on that an identity is gone."""
        for listener in self.listeners:
            listener.forget(key)

    def event(self, event: Event) -> None:
        """Pass an event on."""
        for listener in self.listeners:
            listener.event(event)

    async def remember(self, key: ObjectKey, failure: Failure | None) -> None:
        """Keep the last failure; a disk that does not take it costs no more than one try too many after a restart."""

        def work() -> None:
            if failure is None:
                self._failures.clear(key)
            else:
                self._failures.write(key, failure)

        try:
            await in_thread(self._executor, work)
        except PublishError as error:
            log.warning("a failure could not be noted: %s: %s", key, error.message)

    async def failures(self) -> Mapping[ObjectKey, Failure]:
        """Return the failures that an earlier process kept."""
        return await in_thread(self._executor, self._failures.read)
