"""A broker is killed before every single change that it makes to the file system, from its first start on."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import RefreshPolicy, Rotation
from tests.crash.files import FileScene
from tests.crash.scene import Identity, Kind, unique
from tests.crash.watcher import Watcher
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.crash.zygote import Zygote

pytestmark = pytest.mark.crash

ROUNDS = 2
"""Publications until which every change is tried."""
AT_ONCE = 16
LIFE = 2.0


async def count(scene: FileScene, identity: Identity) -> int:
    """Return how many changes a broker makes until it has published so many times."""
    scene.start(change=1 << 30)
    await scene.renewed(identity, ROUNDS)
    published = [line["changes"] for line in scene.diary() if line["kind"] == "published"]
    await scene.finish()
    return int(published[ROUNDS - 1])


async def kill(scene: FileScene, identity: Identity, change: int) -> None:
    """Kill before one change; the next broker goes on as if nothing had been."""
    try:
        broker = scene.start(change=change)
        assert await broker.ended() == -signal.SIGKILL
        scene.start()
        await scene.renewed(identity, 1)
        await scene.finish()
        verdict = scene.verdict()
        assert not verdict.faults
        # No change comes between the request and the escrow: whatever was spent, its answer is there.
        assert verdict.replays == 0
    except AssertionError as error:
        error.add_note(f"killed before change {change}; the next broker reported {scene.statuses(identity)[-3:]}")
        raise
    finally:
        await scene.close()


@pytest.mark.parametrize(
    ("kind", "refresh_tokens"),
    [
        pytest.param(Kind.REFRESH, "{}", id="rotating"),
        pytest.param(Kind.REFRESH, "{rotation: Reusable}", id="reusable"),
        pytest.param(Kind.PASSWORD, "{}", id="password"),
    ],
)
async def test_no_change_of_the_file_system_is_a_bad_moment_to_die(
    tmp_path: Path, zygote: Zygote, kind: Kind, refresh_tokens: str
) -> None:
    rotation = Rotation.REUSABLE if "Reusable" in refresh_tokens else Rotation.ROTATING
    async with FaultIssuer(refresh_policy=RefreshPolicy(rotation=rotation)) as issuer:
        with Watcher() as watcher:

            def scene(name: str) -> tuple[FileScene, Identity]:
                identity = Identity(unique(name), kind, issuer, refresh_tokens, LIFE)
                scene = FileScene(tmp_path / name, zygote, [identity])
                scene.watch(watcher)
                return scene, identity

            changes = await count(*scene("dry"))
            assert changes > 20
            await kill_before_each(changes, scene)
        assert not watcher.faults({token.value for token in issuer.issued})


async def kill_before_each(changes: int, scene: Callable[[str], tuple[FileScene, Identity]]) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(change: int) -> None:
        async with places:
            await kill(*scene(f"change-{change}"), change)

    async with asyncio.TaskGroup() as group:
        for change in range(1, changes + 1):
            group.create_task(one(change))
