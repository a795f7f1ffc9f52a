"""Disks that are full or read-only, under the token files and under the private state."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from keyferry.errors import KeyferryError
from tests.engine.world import REFRESH, identity, secret, tree, until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engine.world import World

SIZE = 2 << 20


def mount(place: Path) -> None:
    place.mkdir(mode=0o700)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting a file system needs root and the right to mount: {done.stderr.strip()}")


@pytest.fixture
def disk(world: World) -> Iterator[Callable[[str], Path]]:
    """Yield a function that puts a small file system under `out` or `state`."""
    mounted: list[Path] = []

    def put(name: str) -> Path:
        place: Path = getattr(world, name)
        mount(place)
        mounted.append(place)
        return place

    yield put
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=False)


def fill(place: Path) -> Path:
    """Leave not a byte on the file system."""
    ballast = place / ".ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    # What is left of directories' and files' last blocks goes as well.
    with contextlib.suppress(OSError):
        for number in range(64):
            (place / f".ballast-{number}").write_bytes(b"x" * 4096)
    return ballast


def free(place: Path) -> None:
    for ballast in place.glob(".ballast*"):
        ballast.unlink()


def remount(place: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(place)], check=True)


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Make a directory read-only although files beside it are open for writing, which keeps a whole disk writable."""
    subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def seeded(world: World) -> None:
    world.basics()
    world.issuer.service.settings.access_lifetime = 40
    seed = world.issuer.seed_refresh_token("bot", "ada")
    world.write("bot.yaml", identity("bot", grant=REFRESH), secret("seed", token=seed))


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_token_files_stay_as_they_are_and_follow_when_the_disk_is_back(
    world: World, disk: Callable[[str], Path], trouble: str
) -> None:
    out = disk("out")
    seeded(world)
    async with world.broker():
        await world.fresh("bot")
        if trouble == "full":
            fill(out)
        else:
            remount(out, "ro")
        before, revision = tree(out / "default"), world.status("bot").revision
        await until(lambda: world.status("bot").revision >= revision + 2)
        status = world.status("bot")
        assert tree(out / "default") == before, "last-good files are whole"
        await until(
            lambda: "the disk is full" in world.status("bot").message or "read-only" in world.status("bot").message
        )
        assert str(out) in world.status("bot").message
        assert status.next_attempt_time is not None
        assert not status.stalled()
        if trouble == "full":
            free(out)
        else:
            remount(out, "rw")
        await until(lambda: world.valid_tokens().get(world.token("bot")))
        await world.fresh("bot")
        assert not list(out.rglob(".keyferry-tmp-*"))
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


@contextlib.contextmanager
def unwritable(state: Path, trouble: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if trouble == "full":
            stack.callback(free, state)
            fill(state)
        else:
            for name in ("records", "escrow"):
                stack.enter_context(read_only(state / name))
        yield


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_nothing_is_spent_while_the_state_cannot_be_written(
    world: World, disk: Callable[[str], Path], trouble: str
) -> None:
    state = disk("state")
    seeded(world)
    async with world.broker():
        await world.fresh("bot")
        await until(lambda: not world.busy("bot"))
        with unwritable(state, trouble):
            sent, before = len(world.requests()), tree(world.out)
            await until(lambda: world.status("bot").failure_count >= 2)
            status = world.status("bot")
            assert len(world.requests()) == sent, "no claim, no request"
            assert tree(world.out) == before
            assert status.next_attempt_time is not None
            assert str(state) in status.message
        await world.fresh("bot", revision=status.revision + 1)
    assert max(world.issuer.sent_refresh_tokens().values()) == 1
    assert not list((state / "escrow").glob("*"))


async def test_an_answer_that_finds_the_disk_full_is_kept_until_there_is_space(
    world: World, disk: Callable[[str], Path]
) -> None:
    state = disk("state")
    seeded(world)
    async with world.broker():
        await world.fresh("bot")
        world.issuer.pause()
        world.renew("bot")
        await until(lambda: len(world.requests()) >= 2)
        fill(state)
        world.issuer.resume()
        await until(lambda: world.requests()[-1].outcome == "issued")
        await until(lambda: "cannot be stored" in " ".join(event.message for event in world.told.events))
        assert world.busy("bot"), "it holds the only copy of the next refresh token"
        assert world.token("bot")
        free(state)
        await world.fresh("bot", revision=2)
        await world.fresh("bot", revision=3)
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


async def test_an_answer_in_escrow_survives_the_end_of_a_broker_on_a_full_disk(
    world: World, disk: Callable[[str], Path]
) -> None:
    """The process ends before there is space again: the escrow, reserved before the spend, has the answer."""
    state = disk("state")
    seeded(world)
    async with world.broker() as broker:
        await world.fresh("bot")
        world.issuer.pause()
        world.renew("bot")
        await until(lambda: len(world.requests()) >= 2)
        fill(state)
        world.issuer.resume()
        await until(lambda: world.requests()[-1].outcome == "issued")
        await until(lambda: "cannot be stored" in " ".join(event.message for event in world.told.events))
        for task in list(broker.engine._loop._tasks):
            task.cancel()  # as an impatient end does
    free(state)
    async with world.broker():
        await world.fresh("bot", revision=2)
        await world.fresh("bot", revision=3)
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


async def test_a_state_without_space_at_the_start_is_told_of(world: World, disk: Callable[[str], Path]) -> None:
    state = disk("state")
    world.basics()
    world.write("bot.yaml", identity("bot"))
    fill(state)
    with pytest.raises(KeyferryError, match=r"disk is full|No space left") as caught:
        async with world.broker():
            pass
    assert str(state) in str(caught.value)
    free(state)
    async with world.broker():
        await world.fresh("bot")


@pytest.mark.skipif(os.getuid() != 0, reason="only root meets a directory that it may not write by this flag alone")
async def test_somebody_elses_file_in_the_way_is_not_touched(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    world.file("bot").parent.mkdir(parents=True)
    world.file("bot").write_text("mine")
    async with world.broker():
        await until(lambda: world.status("bot").failure_count > 0)
        assert world.status("bot").reason.value == "SecretNotOwned"
        assert world.file("bot").read_text() == "mine"
        assert str(world.file("bot")) in world.status("bot").message
        world.file("bot").unlink()
        world.renew("bot")
        await world.fresh("bot")


async def test_one_failing_disk_does_not_flood_anybody(world: World, disk: Callable[[str], Path]) -> None:
    out = disk("out")
    world.basics()
    fill(out)
    world.write("bot.yaml", identity("bot"))
    world.issuer.faults.add(Fault(FaultKind.LATENCY, delay=0.01))
    async with world.broker():
        await until(lambda: world.status("bot").failure_count >= 4)
        assert len(world.requests()) == 1, "the token is there; only its files are not"
        assert world.declared("bot")
        free(out)
        await world.fresh("bot")
    assert len(world.requests()) == 1
