"""``target.touchPods``: annotates the pods that mount a Secret, so that the kubelets sync it now, not within a minute.

A kubelet looks at the volumes of a pod at once when the pod itself changes. This is a courtesy after the Secret is
written: it is bounded, it runs by itself, and nothing that goes wrong with it is a failure of the publication.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from keyferry.engine import Event, Level
from keyferry.errors import Reason
from keyferry_operator.client import PODS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import TOUCHED_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyferry.model import ObjectKey
    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

NAMESPACES_AT_ONCE: Final = 4
QUIET_TIME: Final = 3600.0
"""Seconds until a refusal is told again of the same identity; an Event lives as long."""
CAN_STILL_CHANGE: Final = "status.phase!=Succeeded,status.phase!=Failed"
NOT_ENABLED: Final = (
    "Secret {place} is written, but the pods that mount it are not touched: this installation does not allow it. They"
    " have the new token within a minute or so. An administrator can allow it with the chart's touchPods.enabled."
)
FORBIDDEN: Final = (
    "Secret {place} is written, but the pods that mount it cannot be touched: the operator has no right to list and"
    " patch pods there. They have the new token within a minute or so. The chart grants it with touchPods.enabled."
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is asked of the API server. Times are seconds."""

    head_start: float = 0.2
    """For the kubelets to hear of the Secret, by a watch of their own: a touch before that would sync the old one."""
    most_pods: int = 1000
    """Of a namespace, after one renewal; the others follow at their kubelets' own pace."""
    rate: float = 50.0
    """Pods per second, over all namespaces."""


DEFAULT_PACE: Final = Pace()


@dataclass(frozen=True, slots=True)
class _Written:
    """A version of a Secret, and the identity whose it is."""

    version: str
    key: ObjectKey


@final
class PodToucher:
    """Told of Secrets that were written, touches the pods that mount them; ``run`` does the work."""

    def __init__(
        self, client: KubeClient, *, enabled: bool, tell: Callable[[Event], None], pace: Pace = DEFAULT_PACE
    ) -> None:
        self._client = client
        self._enabled = enabled
        self._tell = tell
        self._pace = pace
        self._due: dict[str, dict[str, _Written]] = {}
        self._wake = asyncio.Event()
        self._next_patch = 0.0
        self._told: dict[ObjectKey, float] = {}

    def written(self, key: ObjectKey, place: ObjectKey, version: str) -> None:
        """Take note that the Secret of an identity that asks for it has a new version. Never waits, never raises."""
        if not self._enabled:
            self._refuse(key, NOT_ENABLED.format(place=place))
            return
        self._due.setdefault(place.namespace, {})[place.name] = _Written(version, key)
        self._wake.set()

    async def run(self) -> None:
        """Touch pods until cancelled."""
        busy: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(self._pace.head_start)
                while self._due:
                    namespace = next(iter(self._due))
                    task = asyncio.create_task(self._touch(namespace, self._due.pop(namespace)))
                    busy.add(task)
                    task.add_done_callback(busy.discard)
                    if len(busy) >= NAMESPACES_AT_ONCE:
                        await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    async def _touch(self, namespace: str, due: dict[str, _Written]) -> None:
        """List the namespace's pods once for all of its Secrets that were written meanwhile."""
        touched = 0
        try:
            async for pod in self._client.pages(PODS, namespace, fields=CAN_STILL_CHANGE):
                secrets = sorted(mounted(pod) & due.keys())
                if not secrets:
                    continue
                if touched == self._pace.most_pods:
                    log.info(
                        "more than %d pods of namespace %s mount a renewed Secret", self._pace.most_pods, namespace
                    )
                    break
                touched += 1
                await self._patch(pod, ",".join(f"{name}.{due[name].version}" for name in secrets))
        except ApiError as error:
            if not error.forbidden:
                log.warning("pods of namespace %s cannot be touched: %s", namespace, error)
                return
            for name, written in due.items():
                self._refuse(written.key, FORBIDDEN.format(place=f"{namespace}/{name}"))

    async def _patch(self, pod: Object, value: str) -> None:
        loop = asyncio.get_running_loop()
        self._next_patch = max(self._next_patch, loop.time()) + 1 / self._pace.rate
        await asyncio.sleep(self._next_patch - 1 / self._pace.rate - loop.time())
        metadata = pod["metadata"]
        # The uid makes it the pod that was seen, and not another of its name.
        patch: Object = {"metadata": {"uid": metadata["uid"], "annotations": {TOUCHED_ANNOTATION: value}}}
        try:
            await self._client.merge(PODS, metadata["namespace"], metadata["name"], patch)
        except ApiError as error:
            if error.forbidden:
                raise
            if not (error.not_found or error.conflict):
                log.warning("pod %s/%s was not touched: %s", metadata["namespace"], metadata["name"], error)

    def _refuse(self, key: ObjectKey, message: str) -> None:
        now = asyncio.get_running_loop().time()
        self._told = {each: at for each, at in self._told.items() if now - at < QUIET_TIME}
        if key not in self._told:
            self._told[key] = now
            self._tell(Event(Level.WARNING, "pods_not_touched", Reason.ISSUED, message, key))


def mounted(pod: Object) -> set[str]:
    """Return the names of the Secrets in a pod's volumes; none where the pod is no kubelet's, or is on its way out."""
    spec = pod.get("spec") or {}
    if not spec.get("nodeName") or pod["metadata"].get("deletionTimestamp"):
        return set()
    return {name for volume in spec.get("volumes") or () for name in _secrets(volume)}


def _secrets(volume: dict[str, Any]) -> Iterator[str]:
    secret = volume.get("secret") or {}
    if secret.get("secretName"):
        yield str(secret["secretName"])
    for source in (volume.get("projected") or {}).get("sources") or ():
        projected = source.get("secret") or {}
        if projected.get("name"):
            yield str(projected["name"])
