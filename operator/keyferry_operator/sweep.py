"""Notices what no watch told of: objects that vanished, or changed, while nobody was listening.

A watch that begins anew (410 Gone, a long gap) lists what is there, and says nothing of what is not there any more.
So what such a list left out is looked for, and now and then everything is compared with a list of our own. Whether an
object is gone is then asked by its name: a list may be of yesterday, and what follows from an identity's end cannot be
undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from keyferry.errors import KeyferryError
from keyferry.model import ObjectKey
from keyferry_operator.client import CLUSTER_PROVIDERS, IDENTITIES, PROVIDERS
from keyferry_operator.names import REQUESTS
from keyferry_operator.watch import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from keyferry.engine import Engine
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import Kind, KubeClient, Object
    from keyferry_operator.watch import Handler

log = logging.getLogger(__name__)

QUIET: Final = 2.0
"""Seconds without another object after which a watch's own list counts as whole."""
ASKED_ONE_BY_ONE: Final = 50
"""More objects than these that a list left out are looked for with another list."""
FIRST: Final = 20.0
"""Seconds until records without an identity are looked at again, should it not have been known at the start whose they
are. The watches go on where the first list ended, so there is nothing else to compare yet."""
PAUSE: Final = 15.0
"""Seconds until a comparison that failed is made again."""


class Sweep:
    """Compares what is known with what is there, and hands over how it differs."""

    def __init__(
        self,
        client: KubeClient,
        engine: Engine,
        catalog: Catalog,
        hand_over: Handler,
        kinds: Callable[[], Mapping[Kind, tuple[str | None, ...]]],
        let_go_strays: Callable[[], Awaitable[None]],
        *,
        every: float,
    ) -> None:
        """``kinds`` tells what is watched in which namespaces (None: all); ``every`` is in seconds.

        ``let_go_strays`` looks after records of which no identity is declared. Raises KeyferryErrors.
        """
        self._client = client
        self._engine = engine
        self._catalog = catalog
        self._hand_over = hand_over
        self._kinds = kinds
        self._let_go_strays = let_go_strays
        self._every = every
        self._listed: defaultdict[tuple[Kind, str | None], set[ObjectKey]] = defaultdict(set)
        self._listed_at = 0.0
        self._wake = asyncio.Event()

    def listed(self, kind: Kind, key: ObjectKey) -> None:
        """Take note of an object in the list with which a watch begins, for the first time or again."""
        namespace = None if None in self._kinds()[kind] else key.namespace
        self._listed[kind, namespace].add(key)
        self._listed_at = asyncio.get_running_loop().time()
        self._wake.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        pause, strays_alone = min(self._every, FIRST), True
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                    await self._until_quiet()
                    whole = False
            except TimeoutError:
                whole = True
            try:
                if not whole:
                    await self._compare_listed()
                elif strays_alone:
                    await self._let_go_strays()
                else:
                    await self._compare_all()
                pause, strays_alone = self._every, strays_alone and not whole
            except KeyferryError as error:
                log.warning("what is declared could not be compared with what is known: %s; trying again", error)
                pause = PAUSE

    async def _is_gone(self, kind: Kind, key: ObjectKey, uid: str) -> bool:
        """Ask the API server whether an object is gone, or has another one of its name in its place."""
        found = await self._client.find(kind, key.namespace if kind.namespaced else None, key.name)
        return found is None or found["metadata"]["uid"] != uid

    async def _until_quiet(self) -> None:
        while True:
            left = self._listed_at + QUIET - asyncio.get_running_loop().time()
            if left <= 0:
                self._wake.clear()
                return
            await asyncio.sleep(left)

    async def _compare_listed(self) -> None:
        """Look for what the lists of the watches left out."""
        lists = dict(self._listed)
        missing = {
            (kind, key): uid
            for (kind, namespace), keys in lists.items()
            for key, uid in self._known(kind).items()
            if key not in keys and namespace in (None, key.namespace)
        }
        if len(missing) > ASKED_ONE_BY_ONE:
            await self._compare_all()
        else:
            await self._drop(missing)
        for stream in lists:
            self._listed.pop(stream, None)

    async def _compare_all(self) -> None:
        """List everything, hand over what is new or changed, and look for what is missing."""
        await self._let_go_strays()
        missing: dict[tuple[Kind, ObjectKey], str] = {}
        for kind, namespaces in self._kinds().items():
            there: set[ObjectKey] = set()
            for namespace in namespaces:
                async for body in self._client.pages(kind, namespace):
                    key = self._key(kind, body)
                    there.add(key)
                    if self._differs(kind, key, body):
                        self._hand_over(Change(kind, deleted=False, body=body))
            missing |= {(kind, key): uid for key, uid in self._known(kind).items() if key not in there}
        await self._drop(missing)

    async def _drop(self, missing: Mapping[tuple[Kind, ObjectKey], str]) -> None:
        for (kind, key), uid in missing.items():
            if await self._is_gone(kind, key, uid):
                metadata = {"name": key.name, "namespace": key.namespace, "uid": uid}
                self._hand_over(Change(kind, deleted=True, body={"metadata": metadata}))

    def _differs(self, kind: Kind, key: ObjectKey, body: Object) -> bool:
        metadata = body["metadata"]
        if kind is not IDENTITIES:
            return True  # there are few, and one that is as it was changes nothing
        known = self._catalog.identities.get(key)
        annotations = metadata.get("annotations") or {}
        return (
            known is None
            or (known.uid, known.generation) != (metadata["uid"], metadata.get("generation", 0))
            or any(known.annotations.get(each.annotation) != annotations.get(each.annotation) for each in REQUESTS)
        )

    def _known(self, kind: Kind) -> dict[ObjectKey, str]:
        """Return the uids of what is known of a kind."""
        if kind is IDENTITIES:
            return {key: resource.uid for key, resource in self._catalog.identities.items()}
        name = "TokenProvider" if kind is PROVIDERS else "ClusterTokenProvider"
        return {
            self._plain(kind, key): provider.resource.uid
            for (of, key), provider in self._engine.roster.providers.items()
            if of == name
        }

    def _key(self, kind: Kind, body: Object) -> ObjectKey:
        metadata = body["metadata"]
        return self._plain(kind, ObjectKey(metadata.get("namespace", ""), metadata["name"]))

    @staticmethod
    def _plain(kind: Kind, key: ObjectKey) -> ObjectKey:
        """Return the key of an object as the API server has it: what is cluster-scoped is in no namespace."""
        return ObjectKey("", key.name) if kind is CLUSTER_PROVIDERS else key
