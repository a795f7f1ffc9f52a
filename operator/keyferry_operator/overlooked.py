"""Counts the pods that ask for a sidecar and came in without one: before the webhook was there, or past it.

Nobody but the API server knows of them, so all pods are listed now and then, by their metadata alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Final, final

from keyferry_operator.client import PODS
from keyferry_operator.errors import ApiError
from keyferry_operator.injection.wishes import INJECT, INJECTED

if TYPE_CHECKING:
    from keyferry_operator.client import KubeClient

log = logging.getLogger(__name__)

LOOK: Final = 600.0
"""Seconds between looks."""
STILL_THERE: Final = "status.phase!=Succeeded,status.phase!=Failed"


@final
class Overlooked:
    """Looks every ten minutes; ``run`` does the work."""

    def __init__(self, client: KubeClient, *, look: float = LOOK) -> None:
        self._client = client
        self._look = look
        self.pods: Counter[str] | None = None
        """How many there are, by namespace; None while nobody could look."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.count()
            except ApiError as error:
                self.pods = None
                log.warning("pods that were not injected cannot be counted: %s", error)
            await asyncio.sleep(self._look * random.uniform(0.8, 1.2))  # noqa: S311 - so that replicas take turns

    async def count(self) -> None:
        """Look now. Raises ApiError."""
        found: Counter[str] = Counter()
        async for body in self._client.pages(PODS, fields=STILL_THERE, metadata_only=True):
            metadata = body["metadata"]
            annotations = metadata.get("annotations") or {}
            if INJECT in annotations and INJECTED not in annotations:
                found[str(metadata["namespace"])] += 1
        self.pods = found

    def series(self) -> list[str]:
        """Return the metric in the Prometheus text format, line by line; nothing while it is not known."""
        if self.pods is None:
            return []
        return [
            "# HELP keyferry_pods_not_injected Pods that ask for a sidecar and came in without one.",
            "# TYPE keyferry_pods_not_injected gauge",
            *(f'keyferry_pods_not_injected{{namespace="{name}"}} {count}' for name, count in sorted(self.pods.items())),
        ]
