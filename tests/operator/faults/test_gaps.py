"""What happens while nobody listens is noticed: watches that end, hang or begin anew, and lists of yesterday."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.errors import Reason
from keyferry_operator.watch import NEVER_ASKED, WatchTimes
from tests.operator.faults import story
from tests.operator.faults.marks import ENDS_EARLY
from tests.operator.live.conftest import GROUP
from tests.support.kube_faults import ApiFault, ApiFaultKind, refused

if TYPE_CHECKING:
    from tests.operator.faults.site import Site

pytestmark = [pytest.mark.cluster, pytest.mark.slow, ENDS_EARLY]

WATCHED: tuple[dict[str, Any], ...] = (
    {"resource": "tokenproviders"},
    {"resource": "serviceidentities"},
    {"resource": "secrets", "selector": "*managed*"},
    {"resource": "secrets", "selector": "*credential*"},
)
FAULTS = (
    ApiFault(ApiFaultKind.GONE, skip_events=1),
    refused(410),
    ApiFault(ApiFaultKind.CUT, delay=1.0),
    ApiFault(ApiFaultKind.SILENT, skip_events=2),
    ApiFault(ApiFaultKind.BREAK, skip_events=1),
    refused(429, retry_after=1),
    ApiFault(ApiFaultKind.CUT, delay=0.5, skip_events=3),
    refused(410),
)
BRIEF = WatchTimes(inactivity=4.0)
PATIENT = WatchTimes(inactivity=600.0)


def _of_each_watch(*faults: ApiFault) -> list[ApiFault]:
    return [replace(fault, verb="watch", **where) for where in WATCHED for fault in faults]


async def test_watches_that_end_in_every_way_lose_nothing(site: Site) -> None:
    site.faulty.add(*_of_each_watch(*FAULTS))
    async with site.replica(times=BRIEF):
        await story.live(site)
        await story.ends_well(site)
    assert len(site.faulty.faults.left()) <= len(WATCHED)


async def test_what_vanished_in_a_gap_is_noticed_when_the_watch_begins_anew(site: Site) -> None:
    """The list that follows a 410 says nothing of what was deleted, nor that another one has the name now."""
    site.prepare()
    names = ("stays", "goes", "changes", "is-another")
    site.apply(*(site.seed(name) for name in names), *(site.seeded(name) for name in names))
    async with site.replica(times=PATIENT):
        await site.until(lambda: site.ready(*names))
        before = site.states()
        # From now on nothing is heard: whatever watch is begun is refused.
        away = site.faulty.add(refused(410, verb="watch", times=None))
        await asyncio.to_thread(site.faulty.break_watches)
        await site.until(lambda: site.faulty.faults.used(away[0]) >= 1)
        site.faulty.add(refused(503, verb="list", resource="serviceidentities", times=None))
        site.delete("goes", "is-another")
        await site.until(lambda: not {"goes", "is-another"} & site.identities().keys())
        site.apply(site.seed("again"), site.seeded("is-another", seed="again"), site.seed("new"), site.seeded("new"))
        site.change("changes", scopes=["read"])
        await asyncio.sleep(3)
        assert site.states().keys() == before.keys()
        site.faulty.faults.clear()
        await site.until(lambda: site.ready("stays", "is-another", "new"))
        await site.until(lambda: site.ready("changes", revision=2))
        await site.until(lambda: set(site.states()) == set(site.identities()) and not site.states("gone"))
        states = site.states()
        assert states["stays"].uid == before["stays"].uid
        assert states["is-another"].uid != before["is-another"].uid
    assert {name: over for name, (_sent, over) in site.sessions().items()} == {
        "stays": False,
        "goes": True,
        "changes": False,
        "is-another": True,
        "again": False,
        "new": False,
    }
    assert site.spent_twice() == []


async def test_what_there_may_be_many_of_is_listed_once_and_the_watch_tells_what_came_after(site: Site) -> None:
    """Also where the watch is late: it goes on from the version at which the operator's list ended."""
    site.prepare()
    names = ("goes", "changes")
    site.apply(*(site.seed(name) for name in names), *(site.seeded(name) for name in names))
    async with site.replica(times=PATIENT):
        await site.until(lambda: site.ready(*names))
    before = len(site.faulty.asked(verb="list"))
    late = site.faulty.add(refused(503, verb="watch", resource="serviceidentities", times=None))
    async with site.replica(times=PATIENT):
        await site.until(lambda: site.faulty.faults.used(late[0]) >= 1)
        site.delete("goes")
        site.change("changes", scopes=["read"])
        site.apply(site.seed("new"), site.seeded("new"))
        site.faulty.faults.clear()
        await site.until(lambda: site.ready("new") and site.ready("changes", revision=2))
        await site.until(lambda: "goes" not in site.states() and not site.states("gone"))
    lists = site.faulty.asked(verb="list")[before:]
    for watched in WATCHED[1:]:
        of_it = [
            request
            for request in lists
            if request.resource == watched["resource"]
            and fnmatch(request.query.get("labelSelector", ""), watched.get("selector", ""))
        ]
        assert len(of_it) == 1, watched
    assert site.spent_twice() == []


@pytest.mark.parametrize("pause", [0.2, 1.0])
async def test_a_watch_that_is_asked_for_while_another_ends_for_good_is_not_the_last(
    site: Site, pause: float, caplog: pytest.LogCaptureFixture
) -> None:
    """kopf ends by a 410, and closes the connection of a request that has no answer yet, which it makes again."""
    site.prepare()
    site.apply(site.seed("first"), site.seeded("first"))
    async with site.replica(times=PATIENT):
        await site.until(lambda: site.ready("first"))
        site.faulty.add(
            replace(refused(410), verb="watch", resource="tokenproviders"),
            ApiFault(ApiFaultKind.DELAY, verb="watch", resource="serviceidentities", delay=pause),
            refused(503, verb="watch", resource="serviceidentities"),
        )
        await asyncio.to_thread(site.faulty.break_watches)
        await asyncio.sleep(pause)
        site.apply(site.seed("second"), site.seeded("second"))
        await site.until(lambda: site.ready("second"))
    gc.collect()
    assert NEVER_ASKED not in caplog.text


async def test_what_a_watch_left_out_is_noticed_by_the_sweep(site: Site) -> None:
    site.prepare()
    names = ("stays", "goes", "changes")
    site.apply(*(site.seed(name) for name in names), *(site.seeded(name) for name in names))
    async with site.replica(times=WatchTimes(sweep=5.0)):
        await site.until(lambda: site.ready(*names))
        site.faulty.add(*_of_each_watch(ApiFault(ApiFaultKind.SILENT, times=None)))
        await asyncio.to_thread(site.faulty.break_watches)
        site.delete("goes")
        site.apply(site.seed("new"), site.seeded("new"))
        site.change("changes", scopes=["read"])
        site.ask_renewal("please", "stays")
        await site.until(lambda: site.ready("new") and site.ready("changes", "stays", revision=2))
        await site.until(lambda: "goes" not in site.states() and not site.states("gone"))
        provider = site.provider() | {"metadata": site.place("issuer")}
        site.cluster.api.delete(provider)
        await site.until(lambda: _reason(site, "new") == Reason.PROVIDER_NOT_FOUND)
    assert site.sessions()["goes"] == (1, True)
    assert site.spent_twice() == []
    assert site.faulty.asked(verb="get", resource="serviceidentities") == []  # the chart gives no right to


async def test_lists_of_yesterday_have_nothing_spent_or_revoked(site: Site) -> None:
    """At the start: an identity that was deleted since, one that is new, and one whose token is newer."""
    site.prepare()
    site.apply(site.seed("goes"), site.seeded("goes"), site.seed("stays"), site.seeded("stays"), site.user("person"))
    site.apply(site.person("person"), site.identity("client"))
    async with site.replica():
        await site.until(lambda: site.ready("goes", "stays", "person", "client"))
        yesterday = await asyncio.to_thread(site.faulty.version)
        site.delete("goes")
        await site.until(lambda: "goes" not in site.states() and not site.states("gone"))
        site.ask_renewal("please", "stays", "person")
        await site.until(lambda: site.ready("stays", "person", revision=2))
        site.apply(site.seed("new"), site.seeded("new"))
        await site.until(lambda: site.ready("new"))
    before = site.sessions()
    stale = ApiFault(ApiFaultKind.STALE, version=yesterday, times=1)
    lists = ("serviceidentities", "tokenproviders", "secrets")
    site.faulty.add(*(replace(stale, resource=resource) for resource in lists))
    site.faulty.add(replace(stale, resource="secrets", selector="*private*"))
    site.faulty.add(replace(stale, resource="secrets", selector="*gone*"))
    async with site.replica():
        await site.until(lambda: site.ready("new", "client") and site.ready("stays", "person", revision=2))
        await site.until(lambda: site.faulty.faults.left() == [])
        site.ask_renewal("again", "new")
        await site.until(lambda: site.ready("new", revision=2))
        await site.until(lambda: set(site.states()) == {"stays", "person", "new"} and not site.states("gone"))
    after = site.sessions()
    assert after.pop("new") == (2, False)
    assert before.pop("new") == (1, False)
    assert after == before
    assert site.spent_twice() == []
    assert site.targets().keys() == {"stays", "person", "client", "new"}
    assert site.faulty.asked(verb="get", resource="serviceidentities") == []  # the chart gives no right to


def _reason(site: Site, name: str) -> str:
    found = site.cluster.api.get(GROUP, "ServiceIdentity", name, site.namespace)
    conditions = found.get("status", {}).get("conditions", ())
    return next((str(item["reason"]) for item in conditions if item["type"] == "Ready"), "")
