"""Resource files that are half-written, vanish, come back, and go for good."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import Reason
from tests.engine.world import (
    PASSWORD,
    PASSWORD_GRANT,
    REFRESH,
    SECRET,
    World,
    identity,
    secret,
    tree,
    until,
)
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyferry.run.broker import LocalBroker

HALF = "apiVersion: keyferry.dev/v1alpha1\nkind: ServiceIdentity\nmetadata: {name: bot\nspec:\n  grant: ["

BEGUN = "apiVersion: keyferry.dev/v1alpha1\nkind: ServiceIdentity\nmetadata:\n  name: bo"
"""Well-formed, and half of what it will be."""


def looks(world: World) -> float:
    """Return the seconds in which the broker has looked at its files several times."""
    return 20 / world.clock.speed


async def problem(broker: LocalBroker) -> str:
    await until(lambda: broker.problems)
    return " ".join(str(problem) for problem in broker.problems)


async def test_a_file_that_is_half_written_at_the_start_is_taken_up_when_it_is_whole(world: World) -> None:
    world.basics()
    world.write("good.yaml", identity("good"))
    world.write_text("bot.yaml", HALF)
    async with world.broker() as broker:
        await world.fresh("good")
        assert "bot.yaml" in await problem(broker)
        assert not world.declared("bot")
        world.write("bot.yaml", identity("bot"))
        await world.fresh("bot")
        await until(lambda: not broker.problems)


async def test_a_half_written_file_at_the_start_costs_nobody_what_a_former_run_kept(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
    before = tree(world.out)
    world.write_text("bot.yaml", HALF)
    async with world.broker() as broker:
        await problem(broker)
        await asyncio.sleep(looks(world))
        assert tree(world.out) == before
        assert not world.requests("/revoke")
        world.write("bot.yaml", identity("bot"))
        await until(lambda: world.declared("bot") and world.shown("bot") is Reason.ISSUED)
    assert len(world.requests()) == 1


@pytest.mark.parametrize("broken", [HALF, "", "\0\1", "a: &a [*a, *a]\n", "[" * 200, BEGUN])
async def test_a_file_that_turned_invalid_keeps_everything_going(world: World, broken: str) -> None:
    """Provider, secrets and identities of the file go on as they were, over several renewals."""
    world.issuer.service.settings.access_lifetime = 24
    whole = [
        world.provider(),
        secret("bot", secret=SECRET),
        secret("person", name="ada", password=PASSWORD),
        identity("bot"),
        identity("person", grant=PASSWORD_GRANT),
    ]
    world.write("all.yaml", *whole)
    async with world.broker() as broker:
        await world.fresh("bot", "person")
        world.write_text("all.yaml", broken)
        assert "all.yaml" in await problem(broker)
        revisions = {name: world.status(name).revision for name in ("bot", "person")}
        for name, revision in revisions.items():
            await world.fresh(name, revision=revision + 3)
        assert not world.requests("/revoke")
        world.write("all.yaml", *whole, identity("third"))
        await world.fresh("bot", "person", "third")
        await until(lambda: not broker.problems)


async def test_an_invalid_resource_keeps_its_last_good_version_and_its_neighbours(world: World) -> None:
    world.issuer.service.settings.access_lifetime = 24
    world.basics()
    world.write("bots.yaml", identity("bot"), identity("other", scopes=["read"]))
    async with world.broker() as broker:
        await world.fresh("bot", "other")
        world.write("bots.yaml", identity("bot", scopes="read"), identity("other", scopes=["write"]))
        text = await problem(broker)
        assert "spec.scopes" in text
        assert "bots.yaml" in text
        revision = world.status("bot").revision
        await world.fresh("bot", revision=revision + 2)
        await until(lambda: world.requests()[-1].parameters.get("scope") in {"read write", "write", None})
        await until(lambda: any(r.parameters.get("scope") == "write" for r in world.requests()))
        assert [event.event for event in world.told.events].count("invalid_resource") == 1


async def test_a_file_that_is_away_for_a_moment_costs_nothing(world: World) -> None:
    world.basics()
    path = world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        token, aside = world.token("bot"), world.base / "aside.yaml"
        for _ in range(5):
            path.rename(aside)
            await asyncio.sleep(0.1)
            aside.rename(path)
            await asyncio.sleep(0.7)
        assert world.declared("bot")
        assert world.token("bot") == token
        assert not world.requests("/revoke")


async def test_a_directory_that_vanishes_takes_nothing_with_it(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    async with world.broker() as broker:
        await world.fresh("bot")
        before, aside = tree(world.out), world.base / "aside"
        world.resources.rename(aside)
        assert "is not there" in await problem(broker)
        await asyncio.sleep(looks(world))
        world.resources.mkdir()  # as an unmounted disk leaves it
        await until(lambda: any("unmounted" in str(problem) for problem in broker.problems))
        await asyncio.sleep(looks(world))
        assert world.declared("bot")
        assert tree(world.out) == before
        world.renew("bot")
        await world.fresh("bot", revision=2)
        world.resources.rmdir()
        aside.rename(world.resources)
        await until(lambda: not broker.problems)
        assert world.declared("bot")
    assert not world.requests("/revoke")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a mounted file system of 1 MiB, or skip."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a file system needs root and the right to mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


async def test_an_unmounted_directory_takes_nothing_with_it_even_over_a_restart(world: World, disk: Path) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    text = tree(world.resources)
    for name, data in text.items():
        (disk / name).write_bytes(data)
        (world.resources / name).unlink()
    world.resources.rmdir()
    world.resources = disk
    async with world.broker() as broker:
        await world.fresh("bot")
        before = tree(world.out)
        await asyncio.to_thread(subprocess.run, ["umount", str(disk)], check=True)
        assert "unmounted" in await problem(broker)
        await asyncio.sleep(looks(world))
        assert world.declared("bot")
        assert tree(world.out) == before
    async with world.broker():  # not mounted yet, as at boot
        await asyncio.sleep(looks(world))
        assert tree(world.out) == before
        for name, data in text.items():
            (disk / name).write_bytes(data)
        await until(lambda: world.declared("bot") and world.shown("bot") is Reason.ISSUED)
    assert len(world.requests()) == 1
    assert not world.requests("/revoke")


async def test_the_last_file_may_be_removed_by_hand(world: World) -> None:
    path = world.write("all.yaml", world.provider(), secret("bot", secret=SECRET), identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        path.unlink()
        await until(lambda: "revoked" in world.told.words("bot"))
        assert not any(world.valid_tokens().values()), "though its client's secret went with it"
        assert not world.file("bot").parent.exists()


async def test_a_session_ends_with_its_identity(world: World) -> None:
    world.basics()
    seed = world.issuer.seed_refresh_token("bot", "ada")
    world.write("seed.yaml", secret("seed", token=seed))
    path = world.write("bot.yaml", identity("bot", grant=REFRESH), identity("other"))
    async with world.broker():
        await world.fresh("bot", "other")
        token, others = world.token("bot"), world.token("other")
        world.write("bot.yaml", identity("other"))
        await until(lambda: "revoked" in world.told.words("bot"))
        hints = [request.parameters.get("token_type_hint") for request in world.requests("/revoke")]
        assert hints == ["refresh_token", "access_token"], "the refresh token first"
        assert not world.valid_tokens()[token]
        assert world.valid_tokens()[others]
        assert not world.file("bot").parent.exists()
        assert world.token("other") == others
        assert path.exists()
    assert not list((world.state / "gone").glob("*"))
    assert not list((world.state / "records").rglob("bot.json"))


@pytest.mark.parametrize(("policy", "files", "revoked"), [("Retain", True, False), ("Delete", False, False)])
async def test_what_is_left_is_as_the_policy_says(world: World, policy: str, *, files: bool, revoked: bool) -> None:
    world.basics()
    path = world.write("bot.yaml", identity("bot", deletionPolicy=policy))
    async with world.broker():
        await world.fresh("bot")
        token = world.token("bot")
        path.unlink()
        await until(lambda: "removed" in world.told.words("bot"))
        await asyncio.sleep(0.5)
        assert bool(world.token("bot")) is files
        assert world.valid_tokens()[token] is not revoked
    assert not world.requests("/revoke")


async def test_a_revocation_is_tried_again_until_it_is_done(world: World) -> None:
    world.basics()
    number = world.issuer.faults.add(Fault(FaultKind.STATUS, path="/revoke", status=503, times=3, retry_after="1"))
    path = world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        token = world.token("bot")
        path.unlink()
        await until(lambda: world.issuer.faults.used(number) >= 1)
        assert world.valid_tokens()[token]
        await until(lambda: "revoked" in world.told.words("bot"))
        assert not world.valid_tokens()[token]
    assert len(world.requests("/revoke")) == 4


async def test_a_revocation_goes_on_after_a_restart(world: World) -> None:
    world.basics()
    number = world.issuer.faults.add(Fault(FaultKind.STATUS, path="/revoke", status=503))
    path = world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        path.unlink()
        await until(lambda: world.issuer.faults.used(number) >= 1)
    world.issuer.faults.clear()
    async with world.broker():
        await until(lambda: "revoked" in world.told.words("bot"))
    assert not any(world.valid_tokens().values())


async def test_a_state_that_cannot_be_put_away_is_put_away_later(world: World) -> None:
    """The record of an identity that is gone is the order to revoke: it must not get lost over a disk's whim."""
    world.basics()
    path = world.write("bot.yaml", identity("bot"))
    async with world.broker():
        await world.fresh("bot")
        blocked = world.state / "gone"
        if blocked.exists():
            blocked.rmdir()
        blocked.write_text("")  # a file where a directory is wanted: every attempt to write there fails
        path.unlink()
        await until(lambda: not world.declared("bot"))
        await asyncio.sleep(looks(world))
        assert "revoked" not in world.told.words("bot")
        os.unlink(blocked)  # noqa: PTH108 - beside the rmdir above
        await until(lambda: "revoked" in world.told.words("bot"))
    assert not any(world.valid_tokens().values())
    assert not world.file("bot").parent.exists()
