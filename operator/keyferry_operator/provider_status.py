"""The status of providers: whether each was found and is as its resource says, before anybody uses it.

A provider is looked at when it is declared or changed, when a CA or certificate that it names changes, and then about
as often as the engine asks it for its metadata anyway. Status is patched only where it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from keyferry.engine.provider import METADATA_LIFE
from keyferry.engine.survey import Findings
from keyferry.spec.identity import ProviderKind
from keyferry_operator.client import CLUSTER_PROVIDERS, PROVIDERS
from keyferry_operator.errors import ApiError
from keyferry_operator.report import LONGEST_NOTE, condition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyferry.engine.entry import ProviderKey
    from keyferry.errors import KeyferryError
    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Providers that are looked at side by side."""
FIRST_RETRY: Final = 10.0
LAST_RETRY: Final = 600.0
"""Seconds between looks at a provider that is not well; they double."""
AFTER_START: Final = (30.0, 600.0)
"""Seconds within which providers that were well before a restart are looked at again: not all at once."""
WRITE_PAUSE: Final = 5.0


class Survey(Protocol):
    """The engine's own look at a provider."""

    async def __call__(self, key: ProviderKey, *, afresh: bool) -> Findings | None:
        """Return what is known of it; None where it is not declared."""
        ...


@dataclass(slots=True)
class _Seen:
    """A provider as it was last seen."""

    uid: str
    generation: int
    status: Mapping[str, Any]
    problem: KeyferryError | None
    """Why its newest version cannot be used at all."""
    settled: bool = False
    """An earlier process found it well, and this one did not look yet."""
    failures: int = 0
    afresh: bool = False
    """What is known of it must not be believed: ask again."""


@dataclass(slots=True)
class ProviderReporter:
    """Keeps the status of all declared providers."""

    client: KubeClient
    survey: Survey
    asks: bool = True
    """False: nothing is to be sent anywhere; only what is not valid is said."""
    is_ours: Callable[[str], bool] = field(default=lambda _uid: True)
    """Whether a provider, by its uid, falls to a shard of this replica: others are another one's affair."""
    _seen: dict[ProviderKey, _Seen] = field(default_factory=dict)
    _due: dict[ProviderKey, float] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _random: random.Random = field(default_factory=random.SystemRandom)

    def see(self, key: ProviderKey, body: Object, problem: KeyferryError | None = None) -> None:
        """Take in a provider as it is now; a new version is looked at."""
        metadata, status = body["metadata"], dict(body.get("status") or {})
        uid, generation = str(metadata["uid"]), int(metadata.get("generation") or 0)
        known = self._seen.get(key)
        if known is not None and (known.uid, known.generation) == (uid, generation):
            known.status = status
            return
        settled = known is None and problem is None and _is_settled(status, generation)
        self._seen[key] = _Seen(uid, generation, status, problem, settled)
        self._put(key, self._random.uniform(*AFTER_START) if settled else 0.0)

    def resume(self) -> None:
        """Look at providers that are ours now: what another replica found well waits for its time."""
        for key, seen in self._seen.items():
            if key not in self._due and self.is_ours(seen.uid):
                seen.settled = seen.problem is None and _is_settled(seen.status, seen.generation)
                self._put(key, self._random.uniform(*AFTER_START) if seen.settled else 0.0)

    def forget(self, key: ProviderKey) -> None:
        """Write nothing more of a provider that is gone."""
        self._seen.pop(key, None)
        self._due.pop(key, None)

    def look(self, keys: Iterable[ProviderKey]) -> None:
        """Look again at providers of which something changed: a CA, a certificate.

        After a start everything looks changed, so those that were well wait for their time.
        """
        for key in keys:
            seen = self._seen.get(key)
            if seen is not None and not seen.settled:
                seen.afresh = True
                self._put(key, 0.0)

    async def run(self) -> None:
        """Look and write until cancelled."""
        busy: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            busy.discard(task)
            self._wake.set()

        try:
            while True:
                self._wake.clear()
                for key in self._take(AT_ONCE - len(busy)):
                    task = asyncio.create_task(self._guarded_look(key))
                    busy.add(task)
                    task.add_done_callback(done)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause() if len(busy) < AT_ONCE else None):
                        await self._wake.wait()
        finally:
            for task in busy:
                task.cancel()

    def _put(self, key: ProviderKey, seconds: float) -> None:
        self._due[key] = asyncio.get_running_loop().time() + seconds
        self._wake.set()

    def _take(self, most: int) -> list[ProviderKey]:
        now = asyncio.get_running_loop().time()
        due = [key for key, at in self._due.items() if at <= now][:most]
        for key in due:
            del self._due[key]
        return due

    def _pause(self) -> float | None:
        """Return for how long nothing is due; None where nothing ever is."""
        now = asyncio.get_running_loop().time()
        return max(0.0, min(self._due.values()) - now) if self._due else None

    async def _guarded_look(self, key: ProviderKey) -> None:
        """Look; a defect of ours costs this provider's status some minutes, and nothing else anything."""
        try:
            await self._look(key)
        except Exception as error:  # noqa: BLE001 - its message may hold anything, so its type must do
            log.error("unexpected %s while looking at %s %s", type(error).__name__, *key)  # noqa: TRY400
            self._put(key, LAST_RETRY)

    async def _look(self, key: ProviderKey) -> None:
        seen = self._seen.get(key)
        if seen is None or not self.is_ours(seen.uid):
            return
        findings: Findings | None = Findings(problem=seen.problem)
        if seen.problem is None:
            if not self.asks:
                return
            afresh, seen.afresh, seen.settled = seen.afresh, False, False
            findings = await self.survey(key, afresh=afresh)
        if findings is None or self._seen.get(key) is not seen or not self.is_ours(seen.uid):
            return  # it is gone, another version, or another replica's now
        self._plan(key, seen, findings)
        await self._write(key, seen, findings)

    def _plan(self, key: ProviderKey, seen: _Seen, findings: Findings) -> None:
        """Put the next look on the agenda, unless something else did so meanwhile."""
        if findings.problem is None:
            seen.failures = 0
            wait = METADATA_LIFE
        else:
            wait = min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(seen.failures, 16))
            seen.failures += 1
        if seen.problem is None and key not in self._due:
            self._put(key, wait * self._random.uniform(1.0, 1.2))

    async def _write(self, key: ProviderKey, seen: _Seen, findings: Findings) -> None:
        wanted = status_object(findings, seen.status, seen.generation)
        if _plain(wanted) == _plain(seen.status):
            return
        kind, name = key
        patch = {"metadata": {"uid": seen.uid}, "status": wanted}
        try:
            if kind == ProviderKind.CLUSTER_TOKEN_PROVIDER:
                await self.client.merge(CLUSTER_PROVIDERS, None, name.name, patch, subresource="status")
            else:
                await self.client.merge(PROVIDERS, name.namespace, name.name, patch, subresource="status")
        except ApiError as error:
            if not error.not_found and not error.conflict:  # else it is gone, or another one has its name
                log.warning("the status of %s %s cannot be written yet: %s", kind, name, error)
                self._put(key, WRITE_PAUSE)
            return
        seen.status = _plain(wanted)
        if findings.problem is not None:
            log.warning("%s %s: %s: %s", kind, name, findings.problem.reason, findings.problem.message)


def status_object(findings: Findings, before: Mapping[str, Any], generation: int) -> dict[str, Any]:
    """Return the status subresource; None removes a field (RFC 7386)."""
    problem = findings.problem
    if problem is not None:
        reason, message = problem.reason.value, problem.message
    elif findings.issuer:
        reason, message = "Discovered", "the provider was found, and is as its resource says"
    else:
        reason, message = "Configured", "nothing is to be discovered: the endpoints are those of the resource"
    earlier = next((item for item in before.get("conditions") or () if item.get("type") == "Ready"), None)
    now = datetime.now(UTC).timestamp()
    return {
        "observedGeneration": generation,
        "issuer": findings.issuer or None,
        "grantTypes": list(findings.grant_types) or None,
        "conditions": [condition("Ready", problem is None, reason, message[:LONGEST_NOTE], earlier, generation, now)],
    }


def _is_settled(status: Mapping[str, Any], generation: int) -> bool:
    """Tell whether an earlier process found the provider well, as it is now."""
    ready = any(item.get("type") == "Ready" and item.get("status") == "True" for item in status.get("conditions") or ())
    return ready and status.get("observedGeneration") == generation


def _plain(status: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if value is not None}
