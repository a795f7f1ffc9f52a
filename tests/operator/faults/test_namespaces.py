"""A namespace goes at once, and what its identities held is revoked, though its provider and secrets go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.operator.faults.marks import ENDS_EARLY

if TYPE_CHECKING:
    from tests.operator.faults.site import Site

pytestmark = [pytest.mark.cluster, pytest.mark.slow, ENDS_EARLY]

PEOPLE = ("seeded", "private", "person")
NAMES = ("client", *PEOPLE)


def _populate(site: Site) -> None:
    site.prepare()
    site.apply(
        site.seed("seeded"),
        site.seed("private"),
        site.user("person"),
        site.identity("client"),
        site.seeded("seeded"),
        site.person("person"),
        site.seeded("private", target={"type": "None"}),
    )


def _delete_namespace(site: Site) -> None:
    site.cluster.api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.namespace}})


def _namespace_is_gone(site: Site) -> bool:
    return site.cluster.api.find("v1", "Namespace", site.namespace) is None


def _revoked(site: Site) -> bool:
    return all(site.sessions()[name][1] for name in PEOPLE) and not site.states() and not site.states("gone")


async def test_deleting_a_namespace_does_not_hang_and_revokes_what_was_in_it(site: Site) -> None:
    _populate(site)
    async with site.replica():
        await site.until(lambda: site.ready(*NAMES))
        _delete_namespace(site)
        await site.until(lambda: _namespace_is_gone(site))
        await site.until(lambda: _revoked(site))
    assert site.good_tokens() & {token.value for token in site.issuer.issued if token.family} == set()
    assert site.spent_twice() == []


async def test_a_namespace_that_went_while_nobody_looked_is_noticed_at_the_start(site: Site) -> None:
    _populate(site)
    async with site.replica():
        await site.until(lambda: site.ready(*NAMES))
    _delete_namespace(site)
    await site.until(lambda: _namespace_is_gone(site))
    assert not any(over for _sent, over in site.sessions().values())
    async with site.replica():
        await site.until(lambda: _revoked(site))
    assert site.spent_twice() == []


async def test_a_client_secret_that_is_kept_is_seen_by_nobody(site: Site) -> None:
    """What a revocation needs is in the operator's namespace, and only as long as there is something to revoke."""
    _populate(site)
    async with site.replica():
        await site.until(lambda: site.ready(*NAMES))
        kept = {name: [content.reveal() for _, content in record.keepsakes] for name, record in site.states().items()}
        assert kept == {name: [site.secret_of("bot")] for name in PEOPLE}
        assert site.secret_of("bot") not in str(site.identities()) + str(site.targets())
        site.delete(*NAMES)
        await site.until(lambda: _revoked(site))
