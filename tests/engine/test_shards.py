"""Several engines, each with its shards: identities are taken up and left with no exchange, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.engine.shards import Shards
from keyferry.errors import Misdirected, NoSuchQuestion, Reason, Refused
from keyferry.question import Stage
from keyferry.secret import SecretValue
from tests.engine.test_questions import PAGE
from tests.engine.world import REFRESH, SECRET, exchange_of, key, until
from tests.support.faults import Fault, FaultKind
from tests.support.fleet import Replica, Shared, identity, provider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyferry.spec.resources import IdentityResource
    from tests.engine.clocks import FastClock
    from tests.engine.world import World

COUNT = 2
BOTH = [0, 1]


def uid_in(shard: int) -> str:
    """Return the uid of a provider that falls to a shard."""
    return next(uid for uid in map(str, itertools.count()) if Shards(COUNT).of(uid) == shard)


class Pair:
    """Two replicas, `a` with shard 0 and `b` with shard 1, that know of a provider in each: `left` and `right`."""

    def __init__(self, world: World, clock: FastClock) -> None:
        self.world, self.shared = world, Shared()
        self.shared.secrets["bot", "secret"] = SECRET.encode()
        self.shared.secrets["seed", "token"] = world.issuer.seed_refresh_token("bot", "ada").encode()
        self.a, self.b = (
            Replica(self.shared, clock, name, shards=COUNT, renew_interval=0.0, page_url=PAGE) for name in "ab"
        )
        for replica in (self.a, self.b):
            for shard, name in enumerate(("left", "right")):
                replica.engine.declare_provider(provider(name, world.issuer.issuer, uid=uid_in(shard)))

    def declare(self, *identities: IdentityResource) -> None:
        """Tell both, as their watches do."""
        for each in identities:
            self.a.engine.declare_identity(each)
            self.b.engine.declare_identity(each)

    def dismiss(self, name: str, uid: str) -> None:
        self.a.engine.dismiss_identity(key(name), uid)
        self.b.engine.dismiss_identity(key(name), uid)

    async def begin(self) -> None:
        assert not await self.a.engine.gain(frozenset({0}))
        assert not await self.b.engine.gain(frozenset({1}))

    async def pass_on(self) -> None:
        """Hand shard 0 over from `a` to `b`."""
        await self.a.engine.hand_over(frozenset({0}))
        assert not await self.b.engine.gain(frozenset({0}))

    def writes(self) -> tuple[int, int, int]:
        """Count exchanges, records and publications."""
        return len(self.world.requests()), len(self.shared.store.history), self.shared.publisher.writes

    async def published(self, *uids: str) -> None:
        """Wait until identities have a token and nobody works on them."""

        def done() -> bool:
            entries = [entry for each in (self.a, self.b) for entry in each.engine.roster.entries.values()]
            return set(uids) <= set(self.shared.publisher.files) and not any(entry.busy for entry in entries)

        await until(done)


@pytest.fixture
async def pair(world: World, clock: FastClock) -> AsyncIterator[Pair]:
    pair = Pair(world, clock)
    async with pair.a.running(), pair.b.running():
        yield pair


def names(replica: Replica) -> set[str]:
    return {name.name for name in replica.engine.own_identities()}


async def test_each_works_on_its_own_identities(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1"), identity("two", "right", uid="2"))
    await pair.begin()
    await pair.published("1", "2")
    pair.declare(identity("three", "left", uid="3"), identity("four", "right", uid="4"))
    await pair.published("1", "2", "3", "4")
    assert (names(pair.a), names(pair.b)) == ({"one", "three"}, {"two", "four"})
    assert len(pair.world.requests()) == 4
    assert {status.key.name for status in pair.a.notes.statuses} == {"one", "three"}
    assert set(pair.b.engine.lanes()) == {"TokenProvider default/right"}


@pytest.mark.parametrize("spec", [{}, {"grant": REFRESH}])
async def test_a_shard_is_handed_over_without_an_exchange_or_a_write(pair: Pair, spec: dict[str, Any]) -> None:
    pair.declare(identity("one", "left", uid="1", **spec))
    await pair.begin()
    await pair.published("1")
    before = pair.writes()
    known = pair.a.engine.status(key("one"))
    await pair.pass_on()
    await until(lambda: pair.b.engine.status(key("one")).reason is Reason.ISSUED)
    assert pair.writes() == before
    assert (names(pair.a), names(pair.b)) == (set(), {"one"})
    taken = pair.b.engine.status(key("one"))
    assert (taken.revision, taken.renewal_time) == (known.revision, known.renewal_time)
    pair.a.engine.republish(key("one"))
    pair.b.engine.renew(key("one"))
    await until(lambda: pair.b.engine.status(key("one")).revision == 2)
    await pair.published("1")
    # And back again: what the first one remembers of it is not believed.
    await pair.b.engine.hand_over(frozenset({0}))
    await pair.a.engine.gain(frozenset({0}))
    assert pair.a.engine.status(key("one")).revision == 2
    assert not any(spend.revoked for spend in pair.world.issuer.spends)


async def test_what_is_being_spent_is_finished_before_a_shard_is_handed_over(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1", grant=REFRESH))
    await pair.begin()
    await pair.published("1")
    pair.world.issuer.pause()
    pair.a.engine.renew(key("one"))
    await until(lambda: len(pair.world.requests()) == 2)
    handing_over = asyncio.create_task(pair.a.engine.hand_over(frozenset({0})))
    await asyncio.sleep(0.3)
    assert not handing_over.done()
    pair.world.issuer.resume()
    await handing_over
    assert pair.a.notes.statuses[-1].revision == 2
    await pair.b.engine.gain(frozenset({0}))
    assert pair.b.engine.status(key("one")).revision == 2
    assert max(pair.world.issuer.sent_refresh_tokens().values()) == 1


async def test_a_shard_that_is_lost_in_the_middle_of_a_spend_costs_no_credential(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1", grant=REFRESH), identity("two", "left", uid="2"))
    await pair.begin()
    await pair.published("1", "2")
    pair.world.issuer.pause()
    pair.a.engine.renew(key("one"))
    await until(lambda: len(pair.world.requests()) == 3)
    told = len(pair.a.notes.statuses)
    pair.a.engine.lose(frozenset({0}))
    pair.a.engine.republish(key("two"))
    await pair.b.engine.gain(frozenset({0}))
    pair.world.issuer.resume()
    await until(lambda: (held := pair.shared.store.peek(key("one"))) is not None and held.record.revision == 2)
    pair.b.engine.renew(key("one"))
    await until(lambda: pair.b.engine.status(key("one")).revision == 3)
    assert max(pair.world.issuer.sent_refresh_tokens().values()) == 1
    assert pair.a.notes.statuses[told:] == []  # another one tells by now
    assert not pair.a.engine.own_identities()


async def test_what_was_obtained_while_a_shard_was_lost_is_kept_if_nobody_else_came(pair: Pair) -> None:
    """As when the API server is away: the token could not be published, and no other replica could work either."""
    pair.declare(identity("one", "left", uid="1"))
    await pair.begin()
    await pair.published("1")
    pair.shared.publisher.away = True
    pair.a.engine.renew(key("one"))
    await until(lambda: pair.a.engine.status(key("one")).revision == 2)
    await until(lambda: not pair.a.engine.roster.entries[key("one")].busy)
    pair.a.engine.lose(frozenset({0}))
    pair.shared.publisher.away = False
    published = pair.shared.publisher.writes
    requests = len(pair.world.requests())
    await asyncio.sleep(1)
    assert pair.shared.publisher.writes == published  # it is not ours just now
    assert not await pair.a.engine.gain(frozenset({0}), undisturbed=frozenset({0}))
    await until(lambda: pair.shared.publisher.writes == published + 1)
    await until(lambda: pair.a.engine.status(key("one")).failure_count == 0)
    assert len(pair.world.requests()) == requests
    assert names(pair.a) == {"one"}


async def test_a_failure_is_known_to_who_takes_over(pair: Pair) -> None:
    pair.shared.secrets["bot", "secret"] = b"wrong"
    pair.declare(identity("one", "left", uid="1"))
    await pair.begin()
    await until(lambda: pair.a.engine.status(key("one")).stalled())
    await until(lambda: not pair.a.engine.roster.entries[key("one")].busy)
    before = pair.writes()
    await pair.pass_on()
    await until(lambda: pair.b.notes.statuses != [])
    assert pair.b.engine.status(key("one")).stalled()
    assert pair.b.engine.status(key("one")).failure_count == 1
    assert pair.writes() == before
    pair.shared.secrets["bot", "secret"] = SECRET.encode()
    pair.b.engine.credentials_changed(pair.b.engine.roster.references())
    await pair.published("1")


async def test_an_identity_follows_its_provider_and_nothing_is_buried(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1"))
    await pair.begin()
    await pair.published("1")
    pair.declare(identity("one", "right", uid="1"))
    await until(lambda: pair.b.engine.status(key("one")).revision == 2)
    await pair.published("1")
    assert (names(pair.a), names(pair.b)) == (set(), {"one"})
    # Its provider is created again, and falls to the other shard.
    for each in (pair.a, pair.b):
        each.engine.declare_provider(provider("right", pair.world.issuer.issuer, uid=uid_in(0)))
    await until(lambda: names(pair.a) == {"one"})
    await until(lambda: pair.a.engine.status(key("one")).reason is Reason.ISSUED)
    assert not names(pair.b)
    assert pair.a.engine.status(key("one")).revision == 2
    assert not pair.a.engine.leaving | pair.b.engine.leaving
    assert len(pair.world.requests()) == 2
    assert not pair.world.requests("/revoke")


async def test_who_is_gone_is_put_away_and_revoked_by_one(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1", grant=REFRESH), identity("two", "right", uid="2"))
    await pair.begin()
    await pair.published("1", "2")
    pair.dismiss("one", "1")
    await until(lambda: "revoked" in pair.a.notes.words("one"))
    await until(lambda: not pair.a.engine.open_revocations)
    assert "removed" not in pair.b.notes.words("one")
    assert not [held async for held in pair.shared.store.buried()]
    assert not pair.a.engine.leaving | pair.b.engine.leaving


async def test_orders_to_revoke_are_handed_over_with_their_shard(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1", grant=REFRESH))
    await pair.begin()
    await pair.published("1")
    pair.world.issuer.faults.add(Fault(FaultKind.STATUS, path="/revoke", status=503, times=None))
    pair.dismiss("one", "1")
    await until(lambda: pair.a.engine.open_revocations == 1 and not pair.a.engine.leaving)
    assert await pair.b.engine.strays() == []
    assert pair.b.engine.open_revocations == 0
    await pair.pass_on()
    assert (pair.a.engine.open_revocations, pair.b.engine.open_revocations) == (0, 1)
    pair.world.issuer.faults.clear()
    await until(lambda: "revoked" in pair.b.notes.words("one"))


async def test_what_nobody_declares_is_one_replicas_affair(pair: Pair) -> None:
    pair.declare(identity("one", "right", uid="1", grant=REFRESH))
    await pair.begin()
    await pair.published("1")
    held = pair.shared.store.peek(key("one"))
    assert held is not None
    # Another one left its record, while nobody worked on its shard.
    stray = await pair.shared.store.create(replace(held.record, uid="0", key=key("gone")))
    assert await pair.a.engine.strays() == [stray]
    assert await pair.b.engine.strays() == []
    await pair.a.engine.hand_over(frozenset({0}))
    assert await pair.b.engine.gain(frozenset({0})) == [stray]


async def test_a_token_is_presented_across_shards(pair: Pair) -> None:
    """The subject is renewed by one replica, and exchanged by another: read from the store, at each exchange anew."""
    subject = identity("subject", "left", uid="1", consumers=[{"identityName": "follower"}])
    follower = identity("follower", "right", uid="2", grant=exchange_of("subject"))
    pair.declare(subject, follower)
    await pair.b.engine.gain(frozenset({1}))
    await until(lambda: pair.b.engine.status(key("follower")).error_code == "waiting_for_identity")
    await pair.a.engine.gain(frozenset({0}))
    await pair.published("1")
    pair.b.engine.issued_elsewhere(key("subject"))
    await pair.published("1", "2")
    first = pair.world.requests()[-1].parameters["subject_token"]
    pair.a.engine.renew(key("subject"))
    await until(lambda: pair.a.engine.status(key("subject")).revision == 2)
    pair.b.engine.renew(key("follower"))
    await until(lambda: pair.b.engine.status(key("follower")).revision == 2)
    assert pair.world.requests()[-1].parameters["subject_token"] != first


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_every_provider_falls_to_one_shard(count: int) -> None:
    found = {Shards(count).of(str(each)) for each in range(64 * count)}
    assert found == set(range(count))


async def test_a_look_in_between_does_not_put_off_the_writing_of_files(pair: Pair) -> None:
    pair.declare(identity("one", "left", uid="1"))
    pair.shared.publisher.away = True
    await pair.begin()
    await until(lambda: pair.a.engine.status(key("one")).failure_count > 0)
    pair.a.engine.republish(key("one"))
    await until(lambda: not pair.a.engine.roster.entries[key("one")].busy)
    pair.shared.publisher.away = False
    await pair.published("1")
    assert len(pair.world.requests()) == 1


async def test_a_question_is_answered_by_the_replica_that_asks_it(pair: Pair) -> None:
    """The others say that it may be somebody else's; only who looks after everybody knows that there is none."""
    approvals = pair.a.engine.approvals, pair.b.engine.approvals
    pair.declare(identity("one", "left", uid="1", grant={"type": "DeviceCode"}))
    await pair.begin()
    async with pair.a.running(), pair.b.running():
        await until(lambda: pair.a.engine.status(key("one")).prompt is not None)
        prompt = pair.a.engine.status(key("one")).prompt
        assert prompt is not None
        link = SecretValue(prompt.page.rpartition("/")[2])
        assert (await approvals[0].question(link, None)).stage is Stage.DEVICE
        with pytest.raises(Misdirected):
            await approvals[1].question(link, None)
        with pytest.raises(Misdirected):
            await approvals[1].arrive("uid", None, {"state": "somebody's"})
        await pair.pass_on()
        await until(lambda: pair.b.engine.status(key("one")).prompt is not None)
        assert (await approvals[1].question(link, None)).stage is Stage.DEVICE
        with pytest.raises(NoSuchQuestion):
            await approvals[1].question(SecretValue("guess"), None)
        with pytest.raises(Refused):
            await approvals[1].arrive("uid", None, {"state": "somebody's"})
