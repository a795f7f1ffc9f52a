"""The plain client of ``bench.operator``: aiohttp, bodies made beforehand, nothing done with the answers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from types import TracebackType

    from tests.support.kube_config import Access

Document = dict[str, Any]
Request = tuple[str, str, str, bytes]
"""Method, path with query, content type, body."""

CONCURRENCY = 32
"""Requests under way at once."""
GROUP = "/apis/keyferry.dev/v1alpha1"
APPLY, MERGE, JSON = "application/apply-patch+yaml", "application/merge-patch+json", "application/json"
_COUNTER = re.compile(r"apiserver_request_total\{(?P<labels>[^}]*)\} (?P<value>[0-9.e+]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE"})


class PlainClient:
    """Sends prepared requests to an API server; use it in ``async with``."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._access.url,
            connector=aiohttp.TCPConnector(ssl=self._access.context(), limit=CONCURRENCY + 1),
            headers={"Authorization": f"Bearer {self._access.token}", "Accept": JSON},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(self, request: Request) -> bytes:
        """Send one request. Raises RuntimeError where it is refused."""
        method, path, content_type, body = request
        async with self._session.request(
            method, path, data=body or None, headers={"Content-Type": content_type}
        ) as answer:
            raw = await answer.read()
            if not answer.ok:
                raise RuntimeError(f"{method} {path}: {answer.status} {raw[:500]!r}")
            return raw

    async def send_all(self, requests: Iterable[Request]) -> float:
        """Send many, as fast as they are answered; return how many a second."""
        waiting = iter(requests)
        sent = 0

        async def work() -> None:
            nonlocal sent
            for request in waiting:
                await self.send(request)
                sent += 1

        begun = time.monotonic()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return sent / (time.monotonic() - begun)

    async def items(self, path: str) -> AsyncIterator[Document]:
        """Yield what a collection holds, page by page."""
        rest = ""
        while True:
            page = json.loads(await self.send(("GET", f"{path}?limit=500&continue={rest}", JSON, b"")))
            for item in page["items"]:
                yield item
            rest = page["metadata"].get("continue", "")
            if not rest:
                return

    async def appearances(self, path: str, tell: Callable[[str, float], None]) -> None:
        """Tell the name of each object that is added, and when (``time.perf_counter``), until cancelled."""
        query = "?watch=true&timeoutSeconds=3600"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(path + query, timeout=timeout, read_bufsize=2**20) as answer:
            async for line in answer.content:
                at = time.perf_counter()
                event = json.loads(line)
                if event["type"] == "ADDED":
                    tell(event["object"]["metadata"]["name"], at)

    async def writes(self) -> Counter[str]:
        """Return how many writes the API server accepted so far, by kind: ``secrets``, ``serviceidentities/status``."""
        found: Counter[str] = Counter()
        text = (await self.send(("GET", "/metrics", JSON, b""))).decode()
        for match in _COUNTER.finditer(text):
            labels = dict(_LABEL.findall(match["labels"]))
            if labels["verb"] in _WRITES and labels["code"].startswith("2"):
                kind = "/".join(filter(None, (labels["resource"], labels["subresource"])))
                found[kind] += int(float(match["value"]))
        return found


def create(path: str, document: Document) -> Request:
    """Return the request that creates an object in the collection ``path``."""
    return "POST", path, JSON, json.dumps(document).encode()


def apply(path: str, document: Document) -> Request:
    """Return the server-side apply of an object in the collection ``path``."""
    name = document["metadata"]["name"]
    return "PATCH", f"{path}/{name}?fieldManager=plain&force=true", APPLY, json.dumps(document).encode()


def merge(path: str, patch: Document) -> Request:
    """Return a merge patch of the object, or of its status, at ``path``."""
    return "PATCH", path, MERGE, json.dumps(patch).encode()


def delete(path: str) -> Request:
    """Return the request that deletes an object, or a whole collection."""
    return "DELETE", path, JSON, b""
