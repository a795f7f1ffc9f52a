"""Whether a pod is alive, and which identities it asks for: read from the API server, remembered for some seconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, final

from keyferry_operator.client import PODS, SERVICE_ACCOUNTS
from keyferry_operator.injection.wishes import INJECT, words
from keyferry_operator.reads import SharedReads

if TYPE_CHECKING:
    from keyferry_operator.api.callers import Caller
    from keyferry_operator.client import Kind, KubeClient, Object

LIFE: Final = 10.0
"""Seconds for which what was read is believed: a token of a deleted pod is good for no longer."""
AT_ONCE: Final = 32
"""Reads under way; when all sidecars come back together the others wait for their turn."""
_ENDED: Final = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class Pod:
    """What matters of a pod."""

    uid: str
    service_account: str
    identities: frozenset[str]
    """Those that its annotation names."""
    ended: bool
    """No container of it runs any more, or will."""
    ends_at: float | None
    """By when (Unix seconds) the last one is killed, where it is being deleted."""
    addresses: frozenset[str]
    """Its own; none where it has those of its node."""


@final
class LivePods:
    """Looks pods and their service accounts up. Raises ApiError where the API server does not tell."""

    def __init__(self, client: KubeClient, *, life: float = LIFE, check_address: bool = False) -> None:
        """With ``check_address`` a request must come from an address of the pod, where it has any of its own."""
        self._client = client
        self._check_address = check_address
        self._pods: SharedReads[tuple[str, str], Pod | None] = SharedReads(life)
        self._accounts: SharedReads[tuple[str, str], str] = SharedReads(life)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def is_alive(self, caller: Caller, address: str | None = None) -> bool:
        """Tell whether the pod runs, is the one that the token was given to, and so is its service account.

        ``address`` is where the request came from; None: that was looked at before.
        """
        pod, account = await asyncio.gather(self._pod(caller), self._account(caller))
        if pod is None or pod.uid != caller.pod_uid or pod.service_account != caller.service_account:
            return False
        if pod.ended or (pod.ends_at is not None and time.time() > pod.ends_at):
            return False
        if self._check_address and address is not None and pod.addresses and address not in pod.addresses:
            return False
        return account == caller.service_account_uid

    async def asks_for(self, caller: Caller, identity: str) -> bool:
        """Tell whether the pod's annotation names an identity."""
        pod = await self._pod(caller)
        return pod is not None and identity in pod.identities

    async def _pod(self, caller: Caller) -> Pod | None:
        place = (caller.namespace, caller.pod)
        return await self._pods.get(place, lambda: self._read_pod(*place, caller.pod_uid))

    async def _account(self, caller: Caller) -> str:
        place = (caller.namespace, caller.service_account)
        return await self._accounts.get(place, lambda: self._read_account(*place, caller.service_account_uid))

    async def _read_pod(self, namespace: str, name: str, uid: str) -> Pod | None:
        found = await self._read(PODS, namespace, name, uid)
        return None if found is None else _pod(found)

    async def _read_account(self, namespace: str, name: str, uid: str) -> str:
        found = await self._read(SERVICE_ACCOUNTS, namespace, name, uid)
        return "" if found is None else str(found["metadata"]["uid"])

    async def _read(self, kind: Kind, namespace: str, name: str, uid: str) -> Object | None:
        """Return an object from the API server's memory; where that has another one, it may be too old to tell."""
        async with self._turns:
            found = await self._client.get(kind, namespace, name, cached=True)
            if found is None or found["metadata"]["uid"] != uid:
                found = await self._client.get(kind, namespace, name)
        return found


def _pod(found: Object) -> Pod:
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    deleted = metadata.get("deletionTimestamp")
    addresses = frozenset(str(each["ip"]) for each in status.get("podIPs") or () if each.get("ip"))
    return Pod(
        uid=str(metadata["uid"]),
        service_account=str(spec.get("serviceAccountName") or "default"),
        identities=frozenset(words((metadata.get("annotations") or {}).get(INJECT, ""))),
        ended=status.get("phase") in _ENDED,
        ends_at=datetime.fromisoformat(deleted).timestamp() if isinstance(deleted, str) else None,
        addresses=frozenset() if spec.get("hostNetwork") else addresses,
    )
