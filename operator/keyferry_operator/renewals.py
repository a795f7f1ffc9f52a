"""``keyferry.dev/renew: <any new value>``: a renewal that a person, or a program, asked for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, final

from keyferry.engine.settings import RENEW_INTERVAL
from keyferry_operator.names import RENEW_ANNOTATION

if TYPE_CHECKING:
    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import Object


@final
class RenewalRequests:
    """Acts once on each new value, at most once a minute for each identity; what comes sooner waits for its turn.

    What was acted on is written as ``lastHandledRenew`` with the status that tells how it went: a replica that ends
    in between has its successor renew once more, rather than not at all.
    """

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog
        self._wanted: dict[ObjectKey, str] = {}

    def see(self, key: ObjectKey, body: Object) -> None:
        """Take in what an identity's annotation says now, and whether its status says that this was acted on.

        The status may tell us of that only now: where the list at our start was old, another process acted on it.
        """
        wanted = str((body["metadata"].get("annotations") or {}).get(RENEW_ANNOTATION, ""))
        self._wanted[key] = wanted
        if wanted and wanted == (body.get("status") or {}).get("lastHandledRenew"):
            self._catalog.handled_renewals[key] = wanted
        self._act(key)

    def resume(self) -> None:
        """Look again at what was asked for: identities may be ours that were another replica's."""
        for key in list(self._wanted):
            self._act(key)

    def forget(self, key: ObjectKey) -> None:
        """Forget an identity that is gone."""
        self._wanted.pop(key, None)
        self._catalog.handled_renewals.pop(key, None)

    def _act(self, key: ObjectKey) -> None:
        wanted = self._wanted.get(key, "")
        handled = self._catalog.handled_renewals.get(key, "")
        if not wanted or wanted == handled or not self._engine.looks_after(key):
            return
        # Another replica may have acted on the last one: then the token's age tells when.
        age = time.time() - (self._engine.status(key).issue_time or 0.0)
        wait = RENEW_INTERVAL - age if handled and 0 <= age < RENEW_INTERVAL else self._engine.renew(key)
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self._act, key)
        else:
            self._catalog.handled_renewals[key] = wanted
