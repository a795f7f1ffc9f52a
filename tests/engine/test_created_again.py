"""An identity is its uid: one of the same name that comes after it is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.world import REFRESH, SECRET, key, until
from tests.support.fleet import Replica, Shared, identity, provider
from tests.support.memory_store import Trouble

if TYPE_CHECKING:
    from tests.engine.clocks import FastClock
    from tests.engine.world import World

BOT = key("bot")


@pytest.fixture
def shared(world: World) -> Shared:
    """Return what replicas share, with a client's secret, and a refresh token to begin with."""
    shared = Shared()
    shared.secrets["bot", "secret"] = SECRET.encode()
    _seed(shared, world)
    return shared


def _seed(shared: Shared, world: World) -> None:
    shared.secrets["seed", "token"] = world.issuer.seed_refresh_token("bot", "ada").encode()


async def test_a_new_uid_is_the_old_one_gone_and_another_one_there(
    world: World, clock: FastClock, shared: Shared
) -> None:
    replica = Replica(shared, clock, "a")
    replica.engine.declare_provider(provider("idp", world.issuer.issuer))
    replica.engine.declare_identity(identity("bot", "idp", uid="one", grant=REFRESH))
    await replica.engine.start()
    async with replica.running():
        await until(lambda: "one" in shared.publisher.files)
        _seed(shared, world)
        replica.engine.declare_identity(identity("bot", "idp", uid="two", grant=REFRESH))
        await until(lambda: "two" in shared.publisher.files and not replica.engine.open_revocations)
        await until(lambda: not replica.engine.leaving)
        held = shared.store.peek(BOT)
        assert held is not None
        assert held.record.uid == "two"
        assert replica.engine.status(BOT).revision == 1
        assert set(shared.publisher.files) == {"two"}
        first, second = {token.value: world.issuer.service.active(token) for token in world.issuer.issued}.values()
        assert (first, second) == (False, True)


async def test_it_is_buried_and_revoked_though_the_store_fails_meanwhile(
    world: World, clock: FastClock, shared: Shared
) -> None:
    replica = Replica(shared, clock, "a")
    replica.engine.declare_provider(provider("idp", world.issuer.issuer))
    replica.engine.declare_identity(identity("bot", "idp", uid="one", grant=REFRESH))
    await replica.engine.start()
    async with replica.running():
        await until(lambda: "one" in shared.publisher.files)
        await until(lambda: not replica.engine.roster.entries[BOT].busy)
        shared.store.troubles += [Trouble.LOST, Trouble.REPLY_LOST]
        replica.engine.dismiss_identity(BOT, "one")
        # The same name comes back before the old one could be put away.
        replica.engine.declare_identity(identity("bot", "idp", uid="two"))
        await until(lambda: "two" in shared.publisher.files)
        await until(lambda: not replica.engine.leaving and not replica.engine.open_revocations)
        assert not shared.store.troubles
        assert "revoked" in replica.notes.words("bot")
        assert "one" not in shared.publisher.files
        assert not [held async for held in shared.store.buried()]


async def test_a_late_word_of_the_old_ones_end_does_not_touch_the_new_one(
    world: World, clock: FastClock, shared: Shared
) -> None:
    replica = Replica(shared, clock, "a")
    replica.engine.declare_provider(provider("idp", world.issuer.issuer))
    replica.engine.declare_identity(identity("bot", "idp", uid="two"))
    await replica.engine.start()
    async with replica.running():
        await until(lambda: "two" in shared.publisher.files)
        replica.engine.dismiss_identity(BOT, "one")
        assert not replica.engine.leaving
        assert BOT in replica.engine.roster.entries


async def test_who_comes_back_with_its_own_uid_was_never_gone(world: World, clock: FastClock, shared: Shared) -> None:
    replica = Replica(shared, clock, "a")
    replica.engine.declare_provider(provider("idp", world.issuer.issuer))
    replica.engine.declare_identity(identity("bot", "idp", uid="one", grant=REFRESH))
    await replica.engine.start()
    async with replica.running():
        await until(lambda: "one" in shared.publisher.files)
        replica.engine.dismiss_identity(BOT, "one")
        replica.engine.declare_identity(identity("bot", "idp", uid="one", grant=REFRESH))
        assert not replica.engine.leaving
        replica.engine.renew(BOT)
        await until(lambda: replica.engine.status(BOT).revision == 2)
    assert not any(spend.revoked for spend in world.issuer.spends)
