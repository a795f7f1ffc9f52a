"""Who may have what: a live pod, of a service account that the identity names, that asks for it by its annotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from keyferry.model import ObjectKey
from keyferry_operator.api.answers import not_found
from keyferry_operator.api.callers import unauthenticated
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from keyferry_operator.api.callers import Caller, Callers
    from keyferry_operator.api.limits import Buckets
    from keyferry_operator.api.pods import LivePods
    from keyferry_operator.api.routes import Asked
    from keyferry_operator.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be answered."""

    caller: Caller
    key: ObjectKey
    uid: str
    """Of the identity: another one may have its name by and by."""


@final
class Gate:
    """Judges requests. What is not there and what is not for the caller is refused alike, after the same look."""

    def __init__(self, callers: Callers, pods: LivePods, catalog: Catalog) -> None:
        self._callers = callers
        self._pods = pods
        self._catalog = catalog

    async def admit(self, asked: Asked, buckets: Buckets) -> Admitted:
        """Return who asks for which identity. Raises Denied: 401, 404, 429, or 503 where it cannot be told."""
        caller = await self._callers.identify(asked.request)
        buckets.take(caller.pod_uid)
        key = ObjectKey(asked.path["namespace"], asked.path["name"])
        named = await self._pods.asks_for(caller, key.name)
        admitted = Admitted(caller, key, self._catalog.uid_of(key))
        if not named or not self.is_still(admitted):
            raise not_found()
        return admitted

    def is_still(self, admitted: Admitted) -> bool:
        """Tell whether the identity is there and names the caller."""
        key, caller = admitted.key, admitted.caller
        resource = self._catalog.identities.get(key)
        consumers = resource.spec.consumers if resource is not None else ()
        named = any(consumer.service_account_name == caller.service_account for consumer in consumers)
        return named and key.namespace == caller.namespace and self._catalog.uid_of(key) == admitted.uid

    async def check_alive(self, admitted: Admitted) -> None:
        """Raise Denied (401) where the pod is not there any more; not to know is no reason."""
        try:
            alive = await self._pods.is_alive(admitted.caller)
        except ApiError:
            return
        if not alive:
            raise unauthenticated()
