"""A replica that lost its part of the work, and does not know it yet, writes a Secret late."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import PublishError
from keyferry.model import ObjectKey, TokenSet
from keyferry.publication import Publication
from keyferry.record import Record
from keyferry.secret import SecretValue
from keyferry.spec.resources import load_object
from keyferry_operator.catalog import Catalog
from keyferry_operator.client import KubeClient
from keyferry_operator.publish import SecretPublisher
from keyferry_operator.touch import PodToucher

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = pytest.mark.cluster


@dataclass
class Replica:
    """What a replica knows of the cluster, and writes to it."""

    publisher: SecretPublisher
    key: ObjectKey
    uid: str

    async def publish(self, revision: int) -> int:
        """Publish a token; return the revision that is there then."""
        now = time.time()
        token = TokenSet(SecretValue(f"token-{revision}"), "Bearer", now, now + 3600)
        record = Record(self.uid, self.key, revision=revision, token=token)
        files = {"token": f"token-{revision}".encode()}
        publication = Publication(self.key, self.uid, revision, 0, now, now + 3600, "spec", "files", files)
        return (await self.publisher.publish(publication, record)).revision


def _replica(field: Field, client: KubeClient, uid: str) -> Replica:
    document = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "nightly", field.namespace)
    catalog, key = Catalog(), ObjectKey(field.namespace, "nightly")
    catalog.identities[key] = load_object(document, cluster_namespace=field.home).identities[0]
    toucher = PodToucher(client, enabled=False, tell=lambda _event: None)
    return Replica(SecretPublisher(client, catalog, key=b"k" * 32, origin="here", toucher=toucher), key, uid)


async def test_a_late_write_does_not_undo_a_newer_one(field: Field) -> None:
    field.apply(field.provider(), field.identity("nightly"))
    found = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "nightly", field.namespace)
    async with KubeClient(field.login()) as client:
        late, leader = (_replica(field, client, found["metadata"]["uid"]) for _ in range(2))
        assert await late.publish(1) == 1
        assert await leader.publish(2) == 2
        assert await leader.publish(3) == 3
        with pytest.raises(PublishError, match="revision 3 already, which another replica wrote"):
            await late.publish(2)
        target = field.target("nightly")
        assert target is not None
        assert base64.b64decode(target["data"]["token"]) == b"token-3"
        # Something that somebody else did to it meanwhile is no reason not to write.
        field.cluster.api.patch(target, {"metadata": {"labels": {"team": "night"}}})
        assert await leader.publish(4) == 4
        assert (field.target("nightly") or {})["metadata"]["labels"]["team"] == "night"
