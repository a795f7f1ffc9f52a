"""What pods want of whoever looks after an identity: a token of a longer life, or another look at its login.

Any replica may be asked; the one that looks after the identity acts. The others tell it in the identity's status
(``status.asked``), which all of them watch and may write: so replicas need no connections between them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, final

from keyferry.spec.durations import format_duration, parse_duration
from keyferry_operator.client import IDENTITIES
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient

log = logging.getLogger(__name__)

PAUSE: Final = 20.0
"""Seconds between two words of one identity to the replica that looks after it."""
HEARD_FOR: Final = 120.0
"""Seconds for which such a word counts: later nobody waits any more."""
AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class _Word:
    """What was told of an identity last."""

    at: float
    """Monotonic."""
    minimum: float


@final
class Wants:
    """Passes on what pods want, at a bounded rate."""

    def __init__(self, client: KubeClient, engine: Engine, catalog: Catalog) -> None:
        self._client = client
        self._engine = engine
        self._catalog = catalog
        self._told: dict[ObjectKey, _Word] = {}
        self._heard: dict[ObjectKey, str] = {}
        self._again: dict[ObjectKey, float] = {}
        """What is wanted of identities that may not be renewed again yet."""
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def want(self, key: ObjectKey, minimum: float) -> None:
        """Have a token of an identity that is valid for ``minimum`` seconds; 0: have it renewed in any case."""
        if self._engine.looks_after(key):
            self._act(key, minimum)
        else:
            self._tell(key, minimum)

    def hear(self, key: ObjectKey, status: Mapping[str, Any]) -> None:
        """Act on what another replica was asked for, once."""
        asked = status.get("asked")
        if not isinstance(asked, dict) or not self._engine.looks_after(key):
            return
        at = str(asked.get("time") or "")
        if not at or at == self._heard.get(key):
            return
        self._heard[key] = at
        try:
            age = time.time() - datetime.fromisoformat(at).timestamp()
            minimum = parse_duration(str(asked.get("minimumRemaining") or "0s"))
        except ValueError:
            return  # somebody else wrote it
        if age < HEARD_FOR:
            self._act(key, minimum)

    def forget(self, key: ObjectKey) -> None:
        """Forget an identity that is gone."""
        for known in (self._told, self._heard, self._again):
            known.pop(key, None)

    def _act(self, key: ObjectKey, minimum: float) -> None:
        if not self._engine.looks_after(key):
            return
        wait = self._engine.want(key, minimum) if minimum else self._engine.renew(key)
        if wait <= 0:
            return
        waiting = key in self._again
        self._again[key] = max(minimum, self._again.get(key, 0.0))
        if not waiting:
            asyncio.get_running_loop().call_later(wait, self._act_again, key)

    def _act_again(self, key: ObjectKey) -> None:
        minimum = self._again.pop(key, None)
        if minimum is not None:
            self._act(key, minimum)

    def _tell(self, key: ObjectKey, minimum: float) -> None:
        now = asyncio.get_running_loop().time()
        last = self._told.get(key)
        if last is not None and now - last.at < PAUSE and last.minimum >= minimum:
            return
        self._told[key] = _Word(now, minimum)
        task = asyncio.create_task(self._write(key, minimum))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, key: ObjectKey, minimum: float) -> None:
        uid = self._catalog.uid_of(key)
        asked = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "minimumRemaining": format_duration(minimum),
        }
        patch = {"metadata": {"uid": uid}, "status": {"asked": asked}}
        try:
            async with self._turns:
                await self._client.merge(
                    IDENTITIES, key.namespace, key.name, patch, subresource="status", metadata_only=True
                )
        except ApiError as error:
            log.warning("what pods want of %s could not be passed on: %s", key, error)
            self._told.pop(key, None)
