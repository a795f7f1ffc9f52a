"""The Leases of one namespace, kept as the API server keeps them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from keyferry_operator.errors import ApiError
from keyferry_operator.leases import Claim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyferry_operator.client import Kind, Object


class Server:
    """Implements `keyferry_operator.leases.LeaseApi`: versions, and no write over another version."""

    def __init__(self) -> None:
        self.leases: dict[str, Object] = {}
        self.down: BaseException | None = None
        self.lose_answers = False
        self.requests: list[str] = []
        self._version = 0

    async def create(self, _kind: Kind, _namespace: str | None, body: Object) -> Object:
        self._ask("create")
        if body["metadata"]["name"] in self.leases:
            raise ApiError("it is there", status=409)
        return self._put(body)

    async def replace(self, _kind: Kind, _namespace: str | None, body: Object) -> Object:
        self._ask("replace")
        there = self.leases.get(body["metadata"]["name"])
        if there is None:
            raise ApiError("it is not there", status=404)
        if there["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
            raise ApiError("somebody wrote first", status=409)
        return self._put(body)

    async def delete(self, _kind: Kind, _namespace: str | None, name: str, *, uid: str = "", version: str = "") -> bool:
        self._ask("delete")
        there = self.leases.get(name)
        if there is not None and uid and there["metadata"]["uid"] != uid:
            raise ApiError("another one", status=409)
        if there is not None and version and there["metadata"]["resourceVersion"] != version:
            raise ApiError("somebody wrote first", status=409)
        return self.leases.pop(name, None) is not None

    async def pages(self, _kind: Kind, _namespace: str | None = None, *, labels: str = "") -> AsyncIterator[Object]:
        assert not labels
        self._ask("list")
        for lease in copy.deepcopy(list(self.leases.values())):
            yield lease

    def seize(self, name: str, holder: str) -> None:
        """Write a holder over a Lease, as somebody with rights can."""
        self._put({**self.leases[name], "spec": {**self.leases[name]["spec"], "holderIdentity": holder}})

    def holder(self, name: str) -> str:
        claim = Claim.of(self.leases.get(name))
        return claim.holder if claim is not None else ""

    def _ask(self, verb: str) -> None:
        self.requests.append(verb)
        if self.down is not None:
            raise self.down

    def _put(self, body: Object) -> Object:
        self._version += 1
        kept = copy.deepcopy(body)
        kept["metadata"] |= {"resourceVersion": str(self._version), "uid": kept["metadata"]["name"]}
        self.leases[kept["metadata"]["name"]] = kept
        if self.lose_answers:
            raise ApiError("the connection broke")
        return copy.deepcopy(kept)
