"""What happens to one identity, from its declaration to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import Reason
from tests.engine.world import (
    PASSWORD,
    PASSWORD_GRANT,
    REFRESH,
    SECRET,
    Document,
    identity,
    key,
    secret,
    until,
)
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tests.engine.clocks import FastClock
    from tests.engine.world import World


async def test_tokens_of_all_grants_are_kept_fresh(world: World) -> None:
    world.basics()
    world.issuer.service.settings.access_lifetime = 30
    seed = world.issuer.seed_refresh_token("bot", "ada")
    world.write(
        "identities.yaml",
        identity("plain"),
        identity("person", grant=PASSWORD_GRANT),
        identity("seeded", grant=REFRESH),
        secret("person", name="ada", password=PASSWORD),
        secret("seed", token=seed),
    )
    async with world.broker():
        await world.fresh("plain", "person", "seeded", revision=3)
        for name in ("plain", "person", "seeded"):
            assert world.valid_tokens()[world.token(name)]
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


async def test_a_suspended_identity_rests_and_goes_on(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot", suspend=True))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.SUSPENDED)
        assert not world.requests()
        world.write("bot.yaml", identity("bot"))
        await world.fresh("bot")
        before = world.token("bot")
        world.write("bot.yaml", identity("bot", suspend=True))
        await until(lambda: world.shown("bot") is Reason.SUSPENDED)
        world.renew("bot")
        await asyncio.sleep(0.3)
        assert world.token("bot") == before
        assert len(world.requests()) == 1


INTERVAL = 160.0
"""Seconds between two renewals on demand: more than one takes on a slow machine, by a clock that runs too fast."""


async def test_a_renewal_on_demand_comes_once_in_an_interval_at_most(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    async with world.broker(renew_interval=INTERVAL):
        await world.fresh("bot")
        assert world.renew("bot") == 0
        assert 0 < world.renew("bot") <= INTERVAL
        await world.fresh("bot", revision=2)
        assert world.renew("bot") > 0
        await asyncio.sleep(0.2)
        assert world.status("bot").revision == 2
        await until(lambda: world.renew("bot") == 0)
        await world.fresh("bot", revision=3)


async def test_tokens_too_short_for_their_consumers_are_published_and_told_of(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot", renewal={"minimumRemaining": "10m"}))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.LIFETIME_TOO_SHORT)
        assert world.token("bot")
        assert "minimumRemaining" in world.status("bot").message
        assert "lifetime_too_short" in world.told.words("bot")


async def test_somebody_elses_token_is_revoked_and_never_published(world: World) -> None:
    world.basics()
    world.write(
        "bot.yaml",
        identity("bot", grant=PASSWORD_GRANT, scopes=["openid"], expectedSubject={"subject": "grace"}),
        secret("person", name="ada", password=PASSWORD),
    )
    world.add_client("bot", scopes=("openid",))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.WRONG_SUBJECT)
        assert world.status("bot").stalled()
        assert not world.token("bot")
        assert world.valid_tokens()
        assert not any(world.valid_tokens().values())
        assert len(world.requests("/revoke")) >= 1
        assert len(world.requests()) == 1
        world.write(
            "bot.yaml",
            identity("bot", grant=PASSWORD_GRANT, scopes=["openid"], expectedSubject={"subject": "ada"}),
            secret("person", name="ada", password=PASSWORD),
        )
        await world.fresh("bot")
        assert world.valid_tokens()[world.token("bot")]


async def test_a_token_that_is_not_bearer_is_never_published(world: World) -> None:
    world.basics()
    world.issuer.faults.add(Fault(FaultKind.SET_FIELD, name="token_type", value="DPoP", skip=1))
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        before = world.token("bot")
        world.renew("bot")
        await until(lambda: world.shown("bot") is Reason.GRANT_REJECTED)
        assert "DPoP" in world.status("bot").message
        assert world.token("bot") == before
        assert world.status("bot").ready(world.clock.now())


async def test_a_refresh_token_beside_a_token_that_is_not_bearer_is_kept(world: World) -> None:
    world.basics()
    seed = world.issuer.seed_refresh_token("bot", "ada")
    number = world.issuer.faults.add(Fault(FaultKind.SET_FIELD, name="token_type", value="DPoP", times=1))
    world.write("bot.yaml", identity("bot", grant=REFRESH), secret("seed", token=seed))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.GRANT_REJECTED)
        assert world.issuer.faults.used(number) == 1
        world.renew("bot")
        await world.fresh("bot")
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


async def test_equal_identities_share_one_exchange_and_one_may_go(world: World, clock: FastClock) -> None:
    world.basics(limits={"concurrency": 20, "burst": 40})
    names = [f"bot-{number}" for number in range(6)]
    world.issuer.faults.add(Fault(FaultKind.LATENCY, delay=0.5))
    for name in names:
        world.write(f"{name}.yaml", identity(name))
    async with world.broker():
        await world.fresh(*names)
        assert len(world.requests()) < len(names)
        assert len({world.token(name) for name in names}) == len(world.requests())
        shared = next(name for name in names[1:] if world.token(name) == world.token(names[0]))
        (world.resources / f"{names[0]}.yaml").unlink()
        await until(lambda: "removed" in world.told.words(names[0]))
        assert world.valid_tokens()[world.token(shared)], "what another identity still uses is not revoked"
        assert not world.token(names[0])
    assert clock.sleeps < 5_000


async def test_what_an_exchange_brings_after_its_identity_went_is_revoked(world: World) -> None:
    world.basics()
    seed = world.issuer.seed_refresh_token("bot", "ada")
    path = world.write("bot.yaml", identity("bot", grant=REFRESH), secret("seed", token=seed))
    async with world.broker():
        await world.fresh("bot")
        world.issuer.pause()
        world.renew("bot")
        await until(lambda: len(world.requests()) == 2)
        path.unlink()
        await until(lambda: not world.declared("bot"))
        world.issuer.resume()
        await until(lambda: "revoked" in world.told.words("bot"))
    assert not any(world.valid_tokens().values())
    assert not world.token("bot")
    assert world.told.forgotten == [key("bot")]
    assert not list((world.state / "gone").glob("*.json"))


async def test_a_seed_is_not_used_again_after_deletion_and_creation(world: World) -> None:
    world.basics()
    seed = world.issuer.seed_refresh_token("bot", "ada")
    text = [identity("bot", grant=REFRESH), secret("seed", token=seed)]
    path = world.write("bot.yaml", *text)
    async with world.broker():
        await world.fresh("bot")
        path.unlink()
        await until(lambda: "revoked" in world.told.words("bot"))
        sent = len(world.requests())
        world.write("bot.yaml", *text)
        await until(lambda: world.declared("bot") and world.shown("bot") is Reason.SEED_ALREADY_USED)
        assert world.status("bot").stalled()
        assert len(world.requests()) == sent, "nothing was sent"
        world.write("bot.yaml", text[0], secret("seed", token=world.issuer.seed_refresh_token("bot", "ada")))
        await world.fresh("bot")


async def test_one_seed_serves_one_identity(world: World) -> None:
    world.basics()
    seed = world.issuer.seed_refresh_token("bot", "ada")
    world.write("a.yaml", identity("a", grant=REFRESH), identity("b", grant=REFRESH), secret("seed", token=seed))
    async with world.broker():
        await until(lambda: Reason.SEED_ALREADY_USED in {world.shown("a"), world.shown("b")})
        served = "b" if world.shown("a") is Reason.SEED_ALREADY_USED else "a"
        await world.fresh(served)
    assert world.issuer.sent_refresh_tokens()[seed] == 1


@pytest.mark.parametrize("change", ["issuer", "endpoint", "client"])
async def test_a_refresh_token_is_not_sent_to_a_changed_provider(world: World, change: str) -> None:
    world.basics()
    world.add_client("other")
    seed = world.issuer.seed_refresh_token("bot", "ada")
    world.write("bot.yaml", identity("bot", grant=REFRESH), secret("seed", token=seed))
    endpoint = world.issuer.url.replace("127.0.0.1", "localhost") + "/token"
    changes: dict[str, Document] = {
        "issuer": {"issuer": None, "endpoints": {"token": f"{world.issuer.issuer}/token"}},
        "endpoint": {"endpoints": {"token": endpoint}},
        "client": {"client": {"id": "other", "secretsFrom": [{"secretKeyRef": {"name": "bot", "key": "secret"}}]}},
    }
    async with world.broker():
        await world.fresh("bot")
        sent, published = len(world.requests()), world.token("bot")
        world.basics(**changes[change])
        await until(lambda: world.shown("bot") is Reason.PROVIDER_CHANGED)
        assert len(world.requests()) == sent
        assert world.token("bot") == published
        assert world.status("bot").ready(world.clock.now())
        world.basics()
        await until(lambda: world.shown("bot") is Reason.ISSUED)
        world.renew("bot")
        await world.fresh("bot", revision=2)


async def test_an_identity_waits_for_its_provider(world: World) -> None:
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.PROVIDER_NOT_FOUND)
        assert "TokenProvider default/idp" in world.status("bot").message
        world.basics()
        await world.fresh("bot")
        (world.resources / "provider.yaml").unlink()
        await until(lambda: world.shown("bot") is Reason.PROVIDER_NOT_FOUND)
        assert world.token("bot")
        world.basics()
        await until(lambda: world.shown("bot") is Reason.ISSUED)
        world.renew("bot")
        await world.fresh("bot", revision=2)


async def test_a_provider_may_go_while_identities_queue_for_it(world: World) -> None:
    world.basics(limits={"requestsPerSecond": 0.03, "burst": 1, "concurrency": 1})
    world.write("bots.yaml", *(identity(f"bot-{number}", scopes=["read"]) for number in range(4)))
    async with world.broker() as broker:
        await until(lambda: broker.engine.queue_depth() > 0)
        (world.resources / "provider.yaml").unlink()
        await until(lambda: all(world.shown(f"bot-{n}") is Reason.PROVIDER_NOT_FOUND for n in range(4)))
        world.write("provider.yaml", world.provider(), secret("bot", secret=SECRET))
        await world.fresh(*(f"bot-{number}" for number in range(4)))


async def test_a_refused_password_is_not_tried_again_until_it_changes(world: World) -> None:
    world.basics()
    world.write(
        "bot.yaml", identity("bot", grant=PASSWORD_GRANT), secret("person", name="ada", password="wr0ng", note="a")
    )
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.GRANT_REJECTED)
        # Neither another key of the Secret, nor another rate, nor another file is another password.
        world.write(
            "bot.yaml", identity("bot", grant=PASSWORD_GRANT), secret("person", name="ada", password="wr0ng", note="b")
        )
        world.write("provider.yaml", world.provider(limits={"burst": 5}), secret("bot", secret=SECRET))
        world.write("other.yaml", identity("other"))
        await world.fresh("other")
        await asyncio.sleep(1.5)
        assert len([request for request in world.requests() if request.grant == "password"]) == 1
        world.write(
            "bot.yaml", identity("bot", grant=PASSWORD_GRANT), secret("person", name="ada", password=PASSWORD, note="b")
        )
        await world.fresh("bot")


async def test_a_refused_password_is_not_tried_again_after_a_restart(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot", grant=PASSWORD_GRANT), secret("person", name="ada", password="wr0ng"))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.GRANT_REJECTED)
        await until((world.state / "failures" / "default" / "bot.json").exists)
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.GRANT_REJECTED)
        await asyncio.sleep(0.3)
    assert len(world.requests()) == 1
