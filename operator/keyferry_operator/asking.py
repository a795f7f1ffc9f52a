"""``keyferry.dev/renew`` and ``keyferry.dev/login: <any new value>``: what a person, or a program, asked for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, final

from keyferry.engine.settings import RENEW_INTERVAL
from keyferry_operator.names import REQUESTS, Request

if TYPE_CHECKING:
    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import Object


@final
class Requests:
    """Acts once on each new value, at most once a minute for each identity; what comes sooner waits for its turn.

    What was acted on is written with the status that tells how it went (``lastHandledRenew``, ``lastHandledLogin``): a
    replica that ends in between has its successor do it once more, rather than not at all.
    """

    def __init__(self, engine: Engine, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog
        self._wanted: dict[tuple[Request, ObjectKey], str] = {}
        self._logins: dict[ObjectKey, float] = {}
        """When a person was asked last because somebody wanted it (``time.monotonic``)."""

    def see(self, key: ObjectKey, body: Object) -> None:
        """Take in what an identity's annotations say now, and whether its status says that this was acted on.

        The status may tell us of that only now: where the list at our start was old, another process acted on it.
        """
        annotations, status = body["metadata"].get("annotations") or {}, body.get("status") or {}
        for request in REQUESTS:
            wanted = str(annotations.get(request.annotation, ""))
            if wanted:
                self._wanted[request, key] = wanted
            else:
                self._wanted.pop((request, key), None)
            if wanted and wanted == status.get(request.field):
                self._catalog.handled[request][key] = wanted
            self._act(request, key)

    @staticmethod
    def are_open(body: Object) -> bool:
        """Tell whether an identity's annotations ask for what its status does not say was acted on."""
        annotations, status = body["metadata"].get("annotations") or {}, body.get("status") or {}
        return any(annotations.get(each.annotation, "") not in ("", status.get(each.field)) for each in REQUESTS)

    def resume(self) -> None:
        """Look again at what was asked for: identities may be ours that were another replica's."""
        for request, key in list(self._wanted):
            self._act(request, key)

    def forget(self, key: ObjectKey) -> None:
        """Forget an identity that is gone."""
        self._logins.pop(key, None)
        for request in REQUESTS:
            self._wanted.pop((request, key), None)
            self._catalog.handled[request].pop(key, None)

    def _act(self, request: Request, key: ObjectKey) -> None:
        wanted = self._wanted.get((request, key), "")
        handled = self._catalog.handled[request].get(key, "")
        if not wanted or wanted == handled or not self._engine.looks_after(key):
            return
        wait = self._renew(key, again=bool(handled)) if request is Request.RENEW else self._login(key)
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self._act, request, key)
        else:
            self._catalog.handled[request][key] = wanted

    def _renew(self, key: ObjectKey, *, again: bool) -> float:
        """Renew; return 0, or for how many seconds that is still refused."""
        # Another replica may have acted on the last one: then the token's age tells when.
        age = time.time() - (self._engine.status(key).issue_time or 0.0)
        return RENEW_INTERVAL - age if again and 0 <= age < RENEW_INTERVAL else self._engine.renew(key)

    def _login(self, key: ObjectKey) -> float:
        """Have a person asked; return 0, or for how many seconds that is still refused.

        A question that is open stays, and a grant that asks nobody lets it be.
        """
        now = time.monotonic()
        wait = self._logins.get(key, now - RENEW_INTERVAL) + RENEW_INTERVAL - now
        if wait <= 0 and self._engine.login(key):
            self._logins[key] = now
        return max(0.0, wait)
