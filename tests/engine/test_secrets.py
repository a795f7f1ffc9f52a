"""Secrets as people write them: with line ends, empty, half-rotated, changed while running."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import Reason
from keyferry.run.sources import SecretSettings
from tests.engine.world import (
    PASSWORD,
    PASSWORD_GRANT,
    SECRET,
    client_of,
    identity,
    reference,
    secret,
    until,
)

if TYPE_CHECKING:
    from tests.engine.world import World


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
async def test_one_trailing_line_end_is_stripped(world: World, end: str) -> None:
    world.write("provider.yaml", world.provider(), secret("bot", secret=SECRET + end))
    world.write("bot.yaml", identity("bot", grant=PASSWORD_GRANT))
    world.write("person.yaml", secret("person", name="ada" + end, password=PASSWORD + end))
    async with world.broker():
        await world.fresh("bot")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("\r\n", "is empty"),
        (f"{SECRET}\n\n", "control characters"),
        ("two\nlines", "control characters"),
        ("tab\there", "control characters"),
        ("nul\0here", "control characters"),
        ("x" * 70_000, "longer than"),
    ],
)
async def test_an_unusable_secret_is_named_and_not_shown(world: World, value: str, problem: str) -> None:
    world.write("provider.yaml", world.provider(), secret("bot", secret=value))
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.SECRET_NOT_FOUND)
        status = world.status("bot")
        assert problem in status.message
        assert "default/bot" in status.message
        assert "'secret'" in status.message
        assert "two" not in status.message
        assert SECRET not in status.message
        assert status.stalled()
        assert not world.requests()
        world.basics()
        await world.fresh("bot")


async def test_a_missing_secret_is_told_of_with_every_place_it_could_be(world: World) -> None:
    world.write("provider.yaml", world.provider())
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.SECRET_NOT_FOUND)
        message = world.status("bot").message
        assert "default/bot" in message
        assert "--secret-env bot/secret=VARIABLE" in message


async def test_an_emptied_secret_keeps_what_is_published(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        before = world.token("bot")
        world.write("provider.yaml", world.provider(), secret("bot", secret=""))
        world.renew("bot")
        await until(lambda: world.renew("bot") == 0 and world.shown("bot") is Reason.SECRET_NOT_FOUND)
        assert world.status("bot").ready(world.clock.now())
        assert world.valid_tokens()[world.token("bot")]
        assert before in world.valid_tokens()
        world.basics()
        await until(lambda: world.shown("bot") is Reason.ISSUED)


async def test_a_changed_secret_wakes_its_users_and_nobody_else(world: World) -> None:
    world.basics()
    world.add_client("second")
    world.write("second.yaml", world.provider("second-idp", client=client_of("second")), secret("second", secret="old"))
    world.write(
        "bots.yaml",
        identity("bot", grant=PASSWORD_GRANT),
        identity("through-provider", "second-idp"),
        identity("own", client=client_of("second", id="second")),
        secret("person", name="ada", password="wr0ng"),
    )
    async with world.broker():
        users = ("through-provider", "own")
        await until(lambda: all(world.shown(name) is Reason.CLIENT_REJECTED for name in users))
        await until(lambda: world.shown("bot") is Reason.GRANT_REJECTED)
        begun, sent = world.clock.now(), len(world.requests())
        world.write(
            "second.yaml", world.provider("second-idp", client=client_of("second")), secret("second", secret=SECRET)
        )
        await until(lambda: len(world.requests()) > sent)
        noticed = world.requests()[sent].at - begun
        await world.fresh(*users)
        assert len([r for r in world.requests() if r.grant == "password"]) == 1, "the other waits for its own Secret"
        assert noticed < 60, "it did not wait for a backoff"


async def test_a_secret_in_a_directory_is_noticed_as_well(world: World) -> None:
    world.write("provider.yaml", world.provider())
    world.write("bot.yaml", identity("bot"))
    place = world.base / "secrets" / "default" / "bot"
    place.mkdir(parents=True)
    (place / "secret").write_text("wrong")
    world.secrets = SecretSettings(directory=world.base / "secrets")
    async with world.broker():
        await until(lambda: world.shown("bot") is Reason.CLIENT_REJECTED)
        (place / "secret").write_text(SECRET + "\n")
        await world.fresh("bot")


async def test_two_secrets_let_a_rotation_overlap(world: World) -> None:
    world.add_client("bot", secrets=("old",))
    both = client_of("bot", secretsFrom=[reference("bot", "first"), reference("bot", "second")])
    world.write("provider.yaml", world.provider(client=both), secret("bot", first="new", second="old"))
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        assert [request.outcome for request in world.requests()] == ["invalid_client", "issued"]
        world.renew("bot")
        await world.fresh("bot", revision=2)
        assert [request.outcome for request in world.requests()][2:] == ["issued"], "the accepted one goes first"
        world.add_client("bot", secrets=("new",))  # the provider's side of the rotation
        world.renew("bot")
        await world.fresh("bot", revision=3)
        assert [request.outcome for request in world.requests()][3:] == ["invalid_client", "issued"]
        world.write("provider.yaml", world.provider(client=both), secret("bot", first="new"))
        await asyncio.sleep(1)
        world.renew("bot")
        await world.fresh("bot", revision=4)


async def test_a_refused_client_spends_no_refresh_token(world: World) -> None:
    world.add_client("bot", secrets=("old",))
    both = client_of("bot", secretsFrom=[reference("bot", "first"), reference("bot", "second")])
    world.write("provider.yaml", world.provider(client=both), secret("bot", first="new", second="old"))
    world.write("bot.yaml", identity("bot", grant=PASSWORD_GRANT), secret("person", name="ada", password=PASSWORD))
    async with world.broker():
        await world.fresh("bot")
        for revision in (2, 3, 4):
            world.add_client("bot", secrets=("new",) if revision % 2 else ("old",))
            world.renew("bot")
            await world.fresh("bot", revision=revision)
    assert {spend.accepted for spend in world.issuer.spends} <= {0, 1}
    assert not any(spend.revoked for spend in world.issuer.spends)
