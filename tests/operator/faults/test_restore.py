"""A backup that is restored, whole or in part, here or elsewhere: nothing is spent again behind anybody's back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.errors import Reason
from tests.operator.faults.marks import ENDS_EARLY

if TYPE_CHECKING:
    from tests.operator.faults.site import Document, Site

pytestmark = [pytest.mark.cluster, pytest.mark.slow, ENDS_EARLY]

KEPT = ("apiVersion", "kind", "type", "data", "spec")


def backup(site: Site, *, of: str = "private") -> list[Document]:
    """Return the private state Secrets, as a backup would hold them."""
    return site.cluster.api.items("v1", "Secret", site.home, labelSelector=f"keyferry.dev/state={of}")


def restored(document: Document, **metadata: Any) -> Document:
    """Return an object as Velero creates it anew: what the server gave it is not in there."""
    kept = {name: document[name] for name in KEPT if name in document}
    names = ("name", "namespace", "labels", "annotations")
    original = {name: document["metadata"][name] for name in names if name in document["metadata"]}
    return {**kept, "metadata": {**original, **metadata}}


def put_back(site: Site, documents: list[Document]) -> None:
    for document in documents:
        site.cluster.api.delete(document)
        site.cluster.api.create(restored(document))


def reasons(site: Site, *names: str) -> set[str]:
    found = site.identities()
    return {
        condition["reason"]
        for name in names
        for condition in found[name].get("status", {}).get("conditions", ())
        if condition["type"] == "Ready"
    }


def events(site: Site) -> list[str]:
    return [item.get("note", "") for item in site.cluster.api.items("events.k8s.io/v1", "Event", site.namespace)]


NAMES = ("seeded", "private")


async def _begin(site: Site) -> None:
    site.prepare()
    site.apply(
        site.seed("seeded"),
        site.seed("private"),
        site.seeded("seeded"),
        site.seeded("private", target={"type": "None"}),
    )
    await site.until(lambda: site.ready(*NAMES))


@pytest.mark.parametrize("running", [False, True], ids=["while stopped", "under a running operator"])
async def test_private_state_of_yesterday_is_in_doubt(site: Site, running: bool) -> None:  # noqa: FBT001
    """Its refresh tokens were spent since: they are not sent while a token is good, also where none is published."""
    async with site.replica():
        await _begin(site)
        old = backup(site)
        site.ask_renewal("please", *NAMES)
        await site.until(lambda: site.ready(*NAMES, revision=2))
        if running:
            put_back(site, old)
            # Another look, and not one that the minute between two renewals forbids.
            for name in NAMES:
                site.change(name, target={"type": "None"} if name == "private" else {"secretName": f"{name}-2"})
                site.change(name, scopes=["read"])
            await site.until(lambda: reasons(site, *NAMES) == {Reason.REFRESH_IN_DOUBT})
    if not running:
        put_back(site, old)
        async with site.replica():
            await site.until(lambda: reasons(site, *NAMES) == {Reason.REFRESH_IN_DOUBT})
    assert site.sessions() == dict.fromkeys(NAMES, (2, False))
    assert site.spent_twice() == []
    assert all(record.claim is not None and record.claim.attempt == 1 for record in site.states().values())


async def test_a_namespace_that_is_restored_finds_its_seeds_used(site: Site) -> None:
    """Identities that are created again have other uids. What the earlier ones held is revoked, and no seed is sent."""
    async with site.replica():
        await _begin(site)
    old, states, tombstones = site.identities(), backup(site), backup(site, of="seed")
    site.delete(*NAMES)
    await site.until(lambda: not site.identities())
    for document in old.values():
        site.cluster.api.create(restored(document))
    put_back(site, [*states, *tombstones])
    async with site.replica(suspend_all=True):
        await site.until(lambda: reasons(site, *NAMES) == {Reason.SUSPENDED})
        await asyncio.sleep(1)
        assert site.sessions() == dict.fromkeys(NAMES, (1, False))
        assert len(backup(site)) == 2
    async with site.replica():
        await site.until(lambda: reasons(site, *NAMES) == {Reason.SEED_ALREADY_USED})
        await site.until(lambda: all(over for _sent, over in site.sessions().values()))
        await site.until(lambda: not backup(site, of="gone"))
    assert site.sessions() == dict.fromkeys(NAMES, (1, True))
    assert site.spent_twice() == []


async def test_private_state_that_is_lost_does_not_have_its_seed_sent_again(site: Site) -> None:
    async with site.replica():
        await _begin(site)
    for document in backup(site):
        site.cluster.api.delete(document)
    site.ask_renewal("please", *NAMES)
    async with site.replica():
        await site.until(lambda: reasons(site, *NAMES) == {Reason.SEED_ALREADY_USED})
    assert site.sessions() == dict.fromkeys(NAMES, (1, False))


async def test_private_state_of_another_cluster_is_not_touched(site: Site) -> None:
    """Neither for an identity that has its name, nor for one that is not there: nothing of it is sent or buried."""
    async with site.replica():
        await _begin(site)
    records = site.states()
    for document in backup(site):
        name = document["metadata"]["annotations"]["keyferry.dev/identity"].rpartition("/")[2]
        elsewhere = replace(records[name], origin="0c9ff8f3-0000-4000-8000-000000000000")
        site.cluster.api.replace(site.with_record(document, elsewhere))
        missing = replace(elsewhere, uid=f"{elsewhere.uid[:-4]}beef", key=replace(elsewhere.key, name="elsewhere"))
        copy = restored(document, name=f"kf-{missing.uid}")
        site.cluster.api.create(site.with_record(copy, missing))
    before = {item["metadata"]["name"]: item["data"] for item in backup(site)}
    async with site.replica():
        await site.until(lambda: reasons(site, *NAMES) == {Reason.STATE_FOREIGN})
    assert {item["metadata"]["name"]: item["data"] for item in backup(site)} == before
    assert backup(site, of="gone") == []
    assert site.sessions() == dict.fromkeys(NAMES, (1, False))
