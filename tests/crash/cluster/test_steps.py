"""The replica that works is killed at every step of the ledger; the next must go on as the protocol says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.cases import LOST, STEPS, Case, Terms, play_kills
from tests.crash.cluster.scene import Variant, stage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.crash.zygote import Zygote
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.slow]

TERMS = Terms(life=8.0, timeout=8)
AT_ONCE = 4
"""Replicas that begin at the same time: that is when they cost most."""
IN_ESCROW = {"escrowed", "commit"}
"""Where the answer is in the escrow of the replica that died."""


@pytest.mark.parametrize(
    ("variant", "steps", "lost"),
    [
        pytest.param(Variant.RESTART, STEPS, LOST, id="restart"),
        # With a pod that never comes back, its volume is gone.
        pytest.param(Variant.TAKEOVER, STEPS, LOST | IN_ESCROW, id="takeover"),
        pytest.param(Variant.RETURN, ("answered", "escrowed", "commit", "committed", "publish"), LOST, id="return"),
    ],
)
async def test_a_refresh_token_is_replayed_once_and_what_arrived_is_kept(
    definitions: Cluster, replicas: Zygote, tmp_path: Path, variant: Variant, steps: tuple[str, ...], lost: set[str]
) -> None:
    async def go_on(case: Case) -> None:
        if case.step not in lost:
            case.scene.start()
            await case.scene.renewed(case.identity)
            assert not case.presented
            return
        before = case.published() if case.passing > 1 else None
        case.scene.start()
        await case.scene.stalled(case.identity)
        assert "RefreshInDoubt" in case.reasons
        assert case.presented == [["Accepted", "Reused"]]
        # What was good before is still there, and there is a way out.
        assert before is None or case.published() == before
        case.scene.plant(case.identity)
        await case.scene.renewed(case.identity)

    async with stage(definitions, replicas, tmp_path, variant=variant) as scenes:
        made = [Case(scenes, step, passing, TERMS) for step in steps for passing in (1, 2)]
        await play_kills(made, go_on, at_once=AT_ONCE)
