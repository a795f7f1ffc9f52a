"""Which pods hold which revision: by their own word, told in the identity's status for those who may read it.

A pod may tell any replica, and the next time another one. So each replica writes what it was told and nothing else
(``status.consumers``, an entry for each pod), and the one that looks after the identity takes those away that are gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, final

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from keyferry.wire import HeldReport, Malformed
from keyferry_operator.api.answers import bad_request, empty, read_json
from keyferry_operator.client import IDENTITIES, PODS
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import web

    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry_operator.api.gate import Gate
    from keyferry_operator.api.limits import Buckets
    from keyferry_operator.api.routes import Asked
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient

log = logging.getLogger(__name__)

BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds (seconds) of delivery; a renewal is to be in the pod within one."""
SHOWN: Final = 20
"""Pods of an identity that its status names; the metrics count all."""
MOST: Final = 50_000
"""Reports that are kept, of all identities together."""
_HELP: Final = (
    "# HELP keyferry_holding_pods Pods that told this replica, not a day ago, which revision of an identity they hold.",
    "# TYPE keyferry_holding_pods gauge",
)
DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often statuses are written. Times are seconds."""

    look: float = 5.0
    """Between looks what is to be written."""
    again: float = 60.0
    """Between writings of one identity."""
    at_once: int = 20
    """Statuses written, and pods looked up, at each look."""


DEFAULT_PACE: Final = Pace()


@dataclass(frozen=True, slots=True)
class Holding:
    """What a pod said last."""

    revision: int
    at: float
    """When it said so, Unix seconds of our clock."""


@final
class Holders:
    """Takes reports; ``run`` tells of them."""

    def __init__(
        self,
        gate: Gate,
        buckets: Buckets,
        client: KubeClient,
        engine: Engine,
        catalog: Catalog,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._gate = gate
        self._buckets = buckets
        self._client = client
        self._engine = engine
        self._catalog = catalog
        self._pace = pace
        self._held: dict[ObjectKey, dict[str, Holding]] = {}
        """By identity and pod."""
        self._count = 0
        self._dirty: dict[ObjectKey, None] = {}
        self._written: dict[ObjectKey, float] = {}
        """When (monotonic) the status of an identity was written last."""
        self._looked: dict[tuple[ObjectKey, str], float] = {}
        """When (monotonic) it was last looked whether a pod of a status is there."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._seconds = Histogram(
            "keyferry_delivery_seconds",
            "From when a replica had a renewed token to when a pod that waited for it had written its files.",
            registry=self._registry,
            buckets=BUCKETS,
        )

    async def report(self, asked: Asked) -> web.StreamResponse:
        """Take a pod's word that it has written a revision."""
        admitted = await self._gate.admit(asked, self._buckets)
        try:
            report = HeldReport.from_json(await read_json(asked.request))
        except Malformed as error:
            raise bad_request(f"the body is no report: {error}") from None
        if report.delay_seconds is not None:
            self._seconds.observe(report.delay_seconds)
        self._note(admitted.key, admitted.caller.pod, Holding(report.revision, time.time()))
        return empty(HTTPStatus.NO_CONTENT)

    def forget(self, key: ObjectKey) -> None:
        """Forget an identity that is gone."""
        self._count -= len(self._held.pop(key, {}))
        self._dirty.pop(key, None)
        self._written.pop(key, None)

    def series(self) -> Iterator[str]:
        """Yield lines of the Prometheus text format."""
        text = generate_latest(self._registry).decode()
        yield from (line for line in text.splitlines() if "_created" not in line)
        yield from _HELP
        recent = time.time() - DAY
        for key, pods in self._held.items():
            count = sum(holding.at > recent for holding in pods.values())
            yield f'keyferry_holding_pods{{identity="{key.name}",namespace="{key.namespace}"}} {count}'

    async def run(self) -> None:
        """Write statuses, and take away what is gone, until cancelled."""
        while True:
            await asyncio.sleep(self._pace.look)
            try:
                await self._write_some()
                await self._sweep_some()
            except ApiError as error:
                log.warning("it could not be told which pods hold what: %s", error)
            except Exception as error:  # noqa: BLE001 - it is for people to read, and nothing hangs on it
                log.error("unexpected %s while telling which pods hold what", type(error).__name__)  # noqa: TRY400

    def _note(self, key: ObjectKey, pod: str, holding: Holding) -> None:
        pods = self._held.setdefault(key, {})
        before = pods.pop(pod, None)  # so that the latest stands last
        if before is None and self._count >= MOST:
            return
        self._count += before is None
        pods[pod] = holding
        if before is None or before.revision != holding.revision:
            self._dirty[key] = None

    async def _write_some(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [key for key in self._dirty if now - self._written.get(key, -self._pace.again) >= self._pace.again]
        for key in due[: self._pace.at_once]:
            del self._dirty[key]
            told = self._told(key)
            news: dict[str, Any] = {}
            for pod, holding in reversed(self._held.get(key, {}).items()):
                entry = {"revision": holding.revision, "time": _timestamp(holding.at)}
                if (
                    told.get(pod, {}).get("revision") != holding.revision
                    and len(told.keys() | news.keys() | {pod}) <= SHOWN
                ):
                    news[pod] = entry
            if news:
                self._written[key] = now
                await self._patch(key, news)

    async def _sweep_some(self) -> None:
        """Look whether the pods are there that the statuses of our identities name; the longest unseen first."""
        now = asyncio.get_running_loop().time()
        named = [(key, pod) for key in self._engine.own_identities() for pod in self._told(key)]
        self._looked = {place: self._looked[place] for place in named if place in self._looked}
        due = sorted(named, key=lambda place: self._looked.get(place, 0.0))[: self._pace.at_once]
        for key, pod in due:
            if now - self._looked.get((key, pod), -self._pace.again) < self._pace.again:
                break
            self._looked[key, pod] = now
            if await self._client.get(PODS, key.namespace, pod, cached=True) is None:
                if self._held.get(key, {}).pop(pod, None) is not None:
                    self._count -= 1
                await self._patch(key, {pod: None})

    def _told(self, key: ObjectKey) -> dict[str, Any]:
        found = self._catalog.status_of(key).get("consumers")
        return found if isinstance(found, dict) else {}

    async def _patch(self, key: ObjectKey, consumers: dict[str, Any]) -> None:
        patch = {"metadata": {"uid": self._catalog.uid_of(key)}, "status": {"consumers": consumers}}
        try:
            await self._client.merge(
                IDENTITIES, key.namespace, key.name, patch, subresource="status", metadata_only=True
            )
        except ApiError as error:
            if not (error.not_found or error.conflict):  # else it is gone, or another one has its name
                raise


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
