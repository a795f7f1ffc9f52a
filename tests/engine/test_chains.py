"""Tokens of one identity as the subject of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.errors import Reason
from tests.engine.world import exchange_of, identity, secret, until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tests.engine.world import World


def consented(*names: str) -> list[dict[str, str]]:
    return [{"identityName": name} for name in names]


async def test_a_chain_of_three_is_kept_fresh(world: World) -> None:
    world.basics()
    world.issuer.service.settings.access_lifetime = 30
    world.write(
        "chain.yaml",
        identity("third", grant=exchange_of("second")),
        identity("second", grant=exchange_of("first"), consumers=consented("third")),
        identity("first", consumers=consented("second")),
    )
    async with world.broker():
        await world.fresh("first", "second", "third", revision=3)
        assert all(world.valid_tokens()[world.token(name)] for name in ("first", "second", "third"))
    issued = {token.value for token in world.issuer.issued}
    exchanges = [request for request in world.requests() if request.grant and request.grant.endswith("token-exchange")]
    assert all(request.parameters["subject_token"] in issued for request in exchanges)


async def test_a_link_waits_for_the_first_token_and_wakes_with_it(world: World) -> None:
    world.basics()
    world.add_client("slow")
    world.write(
        "chain.yaml",
        identity("later", grant=exchange_of("sooner")),
        identity(
            "sooner",
            client={"id": "slow", "secretsFrom": [{"secretKeyRef": {"name": "slow", "key": "secret"}}]},
            consumers=consented("later"),
        ),
    )
    async with world.broker():
        await until(lambda: world.status("later").error_code == "waiting_for_identity")
        assert not world.status("later").stalled()
        assert "default/sooner" in world.status("later").message
        begun = world.clock.now()
        world.write("slow.yaml", secret("slow", secret="s3cret/of the+bot"))
        await world.fresh("sooner", "later")
        sooner = world.status("sooner").issue_time or 0
        later = world.status("later").issue_time or 0
        assert sooner > begun
        assert later - sooner < 50, "the new token woke it: by itself it would have waited a minute or more"


async def test_a_link_without_consent_is_told_how_to_get_it_and_goes_on_when_it_does(world: World) -> None:
    world.basics()
    world.write("a.yaml", identity("first"))
    world.write("b.yaml", identity("second", grant=exchange_of("first")))
    async with world.broker():
        await world.fresh("first")
        await until(lambda: world.shown("second") is Reason.SECRET_NOT_LABELLED)
        assert "{identityName: second}" in world.status("second").message
        assert world.status("second").stalled()
        world.write("a.yaml", identity("first", consumers=consented("second")))
        await world.fresh("second")
        world.write("a.yaml", identity("first"))  # taken back; until that is noticed, renewals go on

        def refused() -> bool:
            world.renew("second")
            return world.shown("second") is Reason.SECRET_NOT_LABELLED

        await until(refused)
        assert world.token("second"), "what it has stays"


async def test_a_link_to_nobody_goes_on_when_somebody_appears(world: World) -> None:
    world.basics()
    world.write("b.yaml", identity("second", grant=exchange_of("first")))
    async with world.broker():
        await until(lambda: world.shown("second") is Reason.SECRET_NOT_FOUND)
        world.write("a.yaml", identity("first", consumers=consented("second")))
        await world.fresh("first", "second")


async def test_a_circle_is_refused_for_all_in_it_until_it_is_broken(world: World) -> None:
    world.basics()
    circle = {"a": "b", "b": "c", "c": "a"}
    for name, subject in circle.items():
        world.write(
            f"{name}.yaml", identity(name, grant=exchange_of(subject), consumers=consented(*circle), scopes=["read"])
        )
    world.write("outside.yaml", identity("outside"))
    async with world.broker():
        await world.fresh("outside")
        await until(lambda: all(world.shown(name) is Reason.IDENTITY_CYCLE for name in circle))
        assert "->" in world.status("a").message
        assert len(world.requests()) == 1
        world.write("c.yaml", identity("c", consumers=consented("b")))
        await world.fresh(*circle)
        world.write("c.yaml", identity("c", grant=exchange_of("a"), consumers=consented("b")))
        await until(lambda: all(world.shown(name) is Reason.IDENTITY_CYCLE for name in circle))


async def test_a_refused_subject_token_is_replaced_by_the_next(world: World) -> None:
    """The subject's token was revoked at the provider: the link must not wait for a person."""
    world.basics()
    world.add_client("quick", access_lifetime=24)
    quick = {"id": "quick", "secretsFrom": [{"secretKeyRef": {"name": "bot", "key": "secret"}}]}
    world.write(
        "chain.yaml",
        identity("first", consumers=consented("second")),
        identity("second", grant=exchange_of("first"), client=quick),
    )
    async with world.broker():
        await world.fresh("first", "second")
        for token in world.issuer.issued:
            token.revoked = True
        await until(lambda: world.status("second").failure_count > 0)
        assert not world.status("second").stalled()
        revision = world.status("second").revision
        world.renew("first")
        await world.fresh("first", revision=2)
        await world.fresh("second", revision=revision + 1)
        first, second = world.status("first").issue_time or 0, world.status("second").issue_time or 0
        assert second - first < 50, "the new token woke it: by itself it would have waited a minute or more"


async def test_a_circle_that_a_running_exchange_meets_changes_nothing_of_it(world: World) -> None:
    world.basics()
    world.issuer.faults.add(Fault(FaultKind.LATENCY, delay=1.0, times=1))
    world.write("a.yaml", identity("a"))
    async with world.broker():
        await until(world.requests)
        world.write("a.yaml", identity("a", grant=exchange_of("a"), consumers=consented("a")))
        await until(lambda: world.shown("a") is Reason.IDENTITY_CYCLE)
        assert len(world.requests()) == 1
