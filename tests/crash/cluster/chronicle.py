"""All that ever happened to the Secrets, identities and Leases of a cluster, told by watches that miss no version."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx

from keyferry.model import ObjectKey
from keyferry_operator import signature

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import TracebackType

    from tests.support.cluster import Cluster

Document = dict[str, Any]
IDENTITIES = ("keyferry.dev/v1alpha1", "ServiceIdentity")
SECRETS = ("v1", "Secret")
LEASES = ("coordination.k8s.io/v1", "Lease")
KINDS = (SECRETS, IDENTITIES, LEASES)
FILES = {"token", "token.json", "type", "provider"}
"""What is published: the token files, and what Service Binding wants to be told."""
A_DAY = 86400
PATIENCE = 180.0


@dataclass(frozen=True)
class Version:
    """One version of an object, or its end."""

    at: float
    """When it was told (monotonic)."""
    gone: bool
    body: Document

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.body["metadata"].get("labels") or {})

    @property
    def data(self) -> dict[str, bytes]:
        return {name: base64.b64decode(value) for name, value in (self.body.get("data") or {}).items()}


class Chronicle:
    """The histories by kind, namespace and name. Use it in ``async with``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._histories: dict[tuple[str, str], defaultdict[tuple[str, str], list[Version]]] = {
            kind: defaultdict(list) for kind in KINDS
        }
        self._tasks: list[asyncio.Task[None]] = []

    def of(self, kind: tuple[str, str], namespace: str, name: str) -> list[Version]:
        """Return the history of one object."""
        return self._histories[kind].get((namespace, name), [])

    def latest(self, kind: tuple[str, str], namespace: str, name: str) -> Version | None:
        """Return an object as it was told last, or None where it is not there."""
        history = self.of(kind, namespace, name)
        return history[-1] if history and not history[-1].gone else None

    def inside(self, kind: tuple[str, str], namespace: str) -> Iterator[tuple[str, list[Version]]]:
        """Yield names and histories of the objects of a namespace."""
        for (where, name), history in list(self._histories[kind].items()):
            if where == namespace:
                yield name, history

    async def caught_up(self, namespace: str) -> None:
        """Wait until all that was written before this call was told."""
        marker: Document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "marker", "namespace": namespace},
        }
        marker["stringData"] = {"at": str(time.monotonic())}
        version = await asyncio.to_thread(self._cluster.api.apply, marker)
        wanted = version["metadata"]["resourceVersion"]
        async with asyncio.timeout(PATIENCE):
            while not any(
                told.body["metadata"]["resourceVersion"] == wanted for told in self.of(SECRETS, namespace, "marker")
            ):
                self._check()
                await asyncio.sleep(0.01)

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            base_url=self._cluster.url,
            verify=self._cluster.access.context(),
            headers={"Authorization": f"Bearer {self._cluster.access.token}"} if self._cluster.access.token else None,
            timeout=httpx.Timeout(30, read=None),
            trust_env=False,
        )
        for kind in KINDS:
            path = self._cluster.api.path(*kind)
            listed = self._cluster.api.request("GET", path, params={"limit": "1"})
            version = str(listed["metadata"]["resourceVersion"])
            self._tasks.append(asyncio.create_task(self._follow(kind, path, version)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        assert not failed, "a watch ended by itself, so the history has a gap"

    async def _follow(self, kind: tuple[str, str], path: str, version: str) -> None:
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(A_DAY)}
        async with self._client.stream("GET", path, params=query) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise AssertionError(f"the watch of {kind} broke: {event['object']}")
                body = event["object"]
                where = (body["metadata"].get("namespace", ""), body["metadata"]["name"])
                self._histories[kind][where].append(Version(time.monotonic(), event["type"] == "DELETED", body))


def publication_faults(name: str, history: list[Version], issued: Collection[str], key: bytes) -> list[str]:
    """Return what was wrong with any version of a published Secret: torn, forged, missing, or gone back."""
    faults = []
    latest = 0
    for version in history:
        if version.gone:
            faults.append(f"Secret {name} was gone after it had been there")
            continue
        fault, revision = _one_version(version, issued, key)
        if not fault and revision < latest:
            fault = f"went back from revision {latest} to {revision}"
        latest = max(latest, revision)
        if fault:
            faults.append(f"Secret {name} at {version.body['metadata']['resourceVersion']}: {fault}")
    return faults


def _one_version(version: Version, issued: Collection[str], key: bytes) -> tuple[str, int]:
    """Return what is wrong with a version, and its revision."""
    data = version.data
    annotation = version.body["metadata"].get("annotations", {}).get("keyferry.dev/record", "")
    metadata = version.body["metadata"]
    signed = signature.read(annotation, data, ObjectKey(metadata["namespace"], metadata["name"]), key)
    if signed is None or not signed[1].intact:
        return "its record is not signed, or of other data", 0
    about = signed[0]
    revision = int(about["revision"])
    if set(data) != FILES:
        return f"it holds {sorted(data)}", revision
    document = json.loads(data["token.json"])
    if data["token"].decode() not in issued:
        return "its token was never issued", revision
    if document["access_token"] != data["token"].decode() or document["revision"] != revision:
        return "its files are of different revisions", revision
    return "", revision
