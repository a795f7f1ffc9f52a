"""Whatever the API server answers, or does not, on the way: the end is as if nothing had been."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.operator.faults import requests, story
from tests.operator.faults.marks import ENDS_EARLY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.operator.faults.site import Site
    from tests.support.kube_faults import ApiFault

pytestmark = [pytest.mark.cluster, pytest.mark.slow, ENDS_EARLY, pytest.mark.timeout(1200)]


async def test_without_faults(site: Site) -> None:
    async with site.replica() as replica:
        await story.live(site)
        await story.ends_well(site)
    assert replica.ends == ["ended"]


@pytest.mark.parametrize("faults", [requests.REFUSED, requests.LOST], ids=["refused", "lost"])
async def test_every_kind_of_request_fails_in_every_way(site: Site, faults: Sequence[ApiFault]) -> None:
    planned = list(requests.befall(faults))
    numbers = site.faulty.add(*planned)
    async with site.replica(leader_election=True):
        await story.live(site)
        await story.ends_well(site)
    assert requests.spared(site.faulty, planned, numbers) == []
