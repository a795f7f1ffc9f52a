"""The private state as Secrets in the operator's namespace: compare-and-swap by resourceVersion.

A Secret ``kf-<uid>`` has no owner: when its identity is gone it stays, and is then the order to revoke. Identities
that keep nothing secret between renewals (client credentials, token exchange) have none: what there is to know of them
stands on the Secret that they publish, so a renewal costs no write here.
"""

from __future__ import annotations

import base64
import itertools
import logging
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import Conflict, StoreError
from keyferry.record import Versioned
from keyferry.record_json import dumps, loads
from keyferry_operator.client import SECRETS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import MANAGER, STATE_LABEL, seed_name, state_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from collections.abc import Set as AbstractSet

    from keyferry.model import ObjectKey
    from keyferry.record import Record
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

PRIVATE: Final = "private"
GONE: Final = "gone"
SEED: Final = "seed"
DATA_KEY: Final = "record"
IDENTITY_ANNOTATION: Final = "keyferry.dev/identity"
MEMORY: Final = "memory:"
"""How the version of a record begins that is kept in memory only."""


@final
class SecretStore:
    """Implements ``keyferry.store.Store`` over the API server."""

    def __init__(self, client: KubeClient, namespace: str, catalog: Catalog, *, origin: str, digest_key: bytes) -> None:
        self.origin = origin
        """The cluster: the uid of its namespace kube-system."""
        self.digest_key = digest_key
        self._client = client
        self._namespace = namespace
        self._catalog = catalog
        self._memory: dict[str, Versioned] = {}
        """By uid."""
        self._stored: set[str] = set()
        """Uids of which there is a private state Secret."""
        self._unsure: set[str] = set()
        """Uids of which another process may have made, or deleted, one."""
        self._serial = itertools.count(1)

    async def read(self, key: ObjectKey, uid: str) -> Versioned | None:
        """Return the record as it is now: a quorum read where there may be private state, else what is remembered.

        That none was listed does not say that there is none: the identity may have been unknown then, or the list old.
        """
        if uid in self._stored or uid in self._unsure or self._catalog.keeps_private(key):
            found = await self._client.get(SECRETS, self._namespace, state_name(uid))
            self._unsure.discard(uid)
            if found is not None and found["metadata"].get("labels", {}).get(STATE_LABEL) == PRIVATE:
                self._stored.add(uid)
                self._memory.pop(uid, None)
                return _decode(found)
            self._stored.discard(uid)
        if uid not in self._memory:
            published = self._catalog.published_record(key, uid)
            return self._remember(published) if published is not None else None
        return self._memory[uid]

    def forget(self, key: ObjectKey, uid: str) -> None:  # noqa: ARG002 - the uid says it all
        """Read the private state, and what is published, when next asked."""
        self._memory.pop(uid, None)
        self._stored.discard(uid)
        self._unsure.add(uid)

    async def records(self, known: AbstractSet[str] = frozenset()) -> AsyncIterator[Versioned]:
        """Yield the private records, then those of the identities that have only what they published."""
        seen: set[str] = set(known)
        sure = self._unsure - known
        async for found in self._client.pages(SECRETS, self._namespace, labels=f"{STATE_LABEL}={PRIVATE}"):
            try:
                versioned = _decode(found)
            except StoreError as error:
                log.warning("%s; it is left as it is", error)
                continue
            if versioned.record.uid not in known:
                self._stored.add(versioned.record.uid)
                seen.add(versioned.record.uid)
                yield versioned
        self._unsure -= sure
        for record in self._catalog.published_records():
            if record.uid not in seen:
                yield self._remember(record)

    async def create(self, record: Record) -> Versioned:
        """Write the first version."""
        if not self._is_private(record):
            if record.uid in self._memory:
                raise Conflict(f"there is a record of ServiceIdentity {record.key} already")
            return self._remember(record)
        return await self._create(record)

    async def replace(self, held: Versioned, record: Record) -> Versioned:
        """Write the next version over the one that ``held`` names."""
        if not held.version.startswith(MEMORY):
            return await self._replace(held, record, PRIVATE)
        current = self._memory.get(record.uid)
        if current is None or current.version != held.version:
            raise Conflict(f"the record of ServiceIdentity {record.key} was written by somebody else meanwhile")
        if not self._is_private(record):
            return self._remember(record)
        created = await self._create(record)
        self._memory.pop(record.uid, None)
        return created

    async def bury(self, held: Versioned) -> None:
        """Mark the private state as an order to revoke."""
        if not held.version.startswith(MEMORY):
            await self._replace(held, held.record, GONE)
        self._stored.discard(held.record.uid)
        self._memory.pop(held.record.uid, None)

    async def buried(self) -> AsyncIterator[Versioned]:
        """Yield the orders to revoke."""
        async for found in self._client.pages(SECRETS, self._namespace, labels=f"{STATE_LABEL}={GONE}"):
            try:
                yield _decode(found)
            except StoreError:
                continue

    async def settle(self, held: Versioned) -> None:
        """Delete an order to revoke that is done with."""
        await self._client.delete(SECRETS, self._namespace, state_name(held.record.uid))

    async def user_of(self, digest: str) -> str:
        """Read whose the tombstone is, where there is one."""
        found = await self._client.get(SECRETS, self._namespace, seed_name(digest))
        return "" if found is None else _user(found)

    async def tombstone(self, digest: str, uid: str) -> str:
        """Create the tombstone, or read whose it is."""
        body = self._body(seed_name(digest), SEED, {"uid": uid.encode()})
        try:
            await self._client.create(SECRETS, self._namespace, body)
        except ApiError as error:
            found = await self._client.get(SECRETS, self._namespace, seed_name(digest))
            if found is None:
                raise error from None
            return _user(found)
        return uid

    def holder_is_gone(self, holder: str) -> bool:  # noqa: ARG002
        """Never known for certain: a pod that lost its lease, or its node, may still be sending."""
        return False

    def _is_private(self, record: Record) -> bool:
        """Tell whether a record holds what must not be lost, or what nothing published shows."""
        return (
            record.uid in self._stored
            or record.refresh_token is not None
            or record.claim is not None
            or record.login is not None
            or bool(record.seed)
            or bool(record.planting)
            or record.wrong_subject
            or record.authorized_as is not None
            or self._catalog.keeps_private(record.key)
        )

    def _remember(self, record: Record) -> Versioned:
        versioned = Versioned(record, f"{MEMORY}{next(self._serial)}")
        self._memory[record.uid] = versioned
        return versioned

    async def _create(self, record: Record) -> Versioned:
        body = self._record_body(record, PRIVATE)
        try:
            made = await self._client.create(SECRETS, self._namespace, body)
        except ApiError as error:
            if error.conflict:
                self._stored.add(record.uid)  # so that it is read before the next try
                raise Conflict(f"there is private state of ServiceIdentity {record.key} already") from None
            raise
        self._stored.add(record.uid)
        return Versioned(record, made["metadata"]["resourceVersion"])

    async def _replace(self, held: Versioned, record: Record, state: str) -> Versioned:
        body = self._record_body(record, state)
        body["metadata"]["resourceVersion"] = held.version
        try:
            made = await self._client.replace(SECRETS, self._namespace, body)
        except ApiError as error:
            if error.conflict or error.not_found:
                raise Conflict(f"the private state of ServiceIdentity {record.key} was written meanwhile") from None
            raise
        return Versioned(record, made["metadata"]["resourceVersion"])

    def _record_body(self, record: Record, state: str) -> Object:
        body = self._body(state_name(record.uid), state, {DATA_KEY: dumps(record, 0)})
        body["metadata"]["annotations"] = {IDENTITY_ANNOTATION: str(record.key)}
        return body

    def _body(self, name: str, state: str, data: dict[str, bytes]) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {STATE_LABEL: state, "app.kubernetes.io/managed-by": MANAGER},
            },
            "type": "Opaque",
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }


def _user(tombstone: Object) -> str:
    return base64.b64decode(tombstone.get("data", {}).get("uid", "")).decode("ascii", "replace")


def _decode(found: Object) -> Versioned:
    """Return the record in a Secret. Raises StoreError when it is damaged; its content is never part of the message."""
    try:
        raw = base64.b64decode(found["data"][DATA_KEY], validate=True)
    except (KeyError, TypeError, ValueError):
        raise StoreError(f"the private state {found['metadata']['name']} is damaged") from None
    record, _ = loads(raw)
    name = found["metadata"]["name"]
    if name != state_name(record.uid):
        raise StoreError(f"the private state {name} is that of another identity: it was copied")
    return Versioned(record, found["metadata"]["resourceVersion"])
