"""Notices changes of what is not watched: ConfigMaps with CA certificates, and ServiceAccounts.

RBAC knows no labels, so to watch a few ConfigMaps is to be allowed to list all of them. Those that a resource names
are read one by one instead, which asks for no more than ``get``. Nothing waits for this: every exchange reads its CA
afresh. It wakes those whose last try failed for want of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from keyferry.engine.credentials import Reference, Referent
from keyferry_operator.client import CONFIG_MAPS, SERVICE_ACCOUNTS
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry_operator.client import KubeClient

log = logging.getLogger(__name__)

ROUND: Final = 20.0
"""Seconds in which all of them are read once, where they are few."""
FASTEST: Final = 0.1
"""Seconds between two reads: with more than 200 of them a round takes longer."""


class Rereader:
    """Reads what is referred to, round after round."""

    def __init__(
        self,
        client: KubeClient,
        references: Callable[[], frozenset[Reference]],
        changed: Callable[[Reference], None],
        *,
        service_accounts: bool,
    ) -> None:
        """Read nothing yet; ``changed`` will be told of what is there for the first time, changed, or is gone."""
        self._client = client
        self._references = references
        self._changed = changed
        self._kinds = {Referent.CONFIG_MAP, *([Referent.SERVICE_ACCOUNT] if service_accounts else ())}
        self._seen: dict[Reference, str] = {}

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            wanted = sorted(reference for reference in self._references() if reference.kind in self._kinds)
            self._seen = {reference: mark for reference, mark in self._seen.items() if reference in set(wanted)}
            for reference in wanted:
                await self._look(reference)
                await asyncio.sleep(max(FASTEST, ROUND / len(wanted)))
            if not wanted:
                await asyncio.sleep(ROUND)

    async def _look(self, reference: Reference) -> None:
        try:
            mark = await self._mark(reference)
        except ApiError as error:
            log.debug("%s %s/%s could not be looked at: %s", *_words(reference), error.message)
            return
        if self._seen.get(reference, "") != mark:
            self._seen[reference] = mark
            self._changed(reference)

    async def _mark(self, reference: Reference) -> str:
        """Return something that changes with the object; nothing where it is not there."""
        if reference.kind is Referent.CONFIG_MAP:
            found = await self._client.get(CONFIG_MAPS, reference.namespace, reference.name)
        else:
            found = await self._client.get(SERVICE_ACCOUNTS, reference.namespace, reference.name)
        return "" if found is None else str(found["metadata"]["resourceVersion"])


def _words(reference: Reference) -> tuple[str, str, str]:
    return reference.kind, reference.namespace, reference.name
