"""Nobody is killed here: the answer is lost on its way, or the request never leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import RefreshPolicy
from tests.crash.cases import Part, Terms, play
from tests.crash.files import FileScene, stage
from tests.crash.scene import Identity, Kind, unique
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.crash.cases import Stage
    from tests.crash.zygote import Zygote

pytestmark = pytest.mark.crash

TERMS = Terms(timeout=3)
"""Nobody is dead here, so nothing waits for that long but a lost answer."""
AFTER = {
    "stalled": Fault(FaultKind.STALL_AFTER),
    "reset": Fault(FaultKind.RESET_AFTER),
    "closed": Fault(FaultKind.CLOSE_AFTER),
    "truncated": Fault(FaultKind.TRUNCATED),
    "truncated-reset": Fault(FaultKind.TRUNCATED_RESET),
    "malformed": Fault(FaultKind.MALFORMED),
    "huge": Fault(FaultKind.HUGE, size=2 << 20),
    "dripping": Fault(FaultKind.DRIP, delay=0.1),
    "web-page": Fault(FaultKind.HTML, spend=True),
    "unavailable": Fault(FaultKind.STATUS, status=503, spend=True),
    "no-object": Fault(FaultKind.REPLACE, value=[]),
}
"""The refresh token is spent, and its answer is of no use."""
BEFORE = {
    "stalled": Fault(FaultKind.STALL_BEFORE),
    "reset": Fault(FaultKind.RESET_BEFORE),
    "closed": Fault(FaultKind.CLOSE_BEFORE),
    "unavailable": Fault(FaultKind.STATUS, status=503, spend=False),
    "web-page": Fault(FaultKind.HTML, spend=False),
}
"""The request is gone, and the refresh token is not spent; nobody can tell."""
FOR_NOW = {
    "too-many": Fault(FaultKind.STATUS, status=429, retry_after="1", spend=False),
    "busy": Fault(FaultKind.ERROR, error="temporarily_unavailable", status=503, spend=False),
}
"""The issuer says itself that it did nothing."""


class Loss(Part):
    """One identity whose second refresh meets a fault."""

    def __init__(self, stage: Stage, name: str, fault: Fault, terms: Terms) -> None:
        super().__init__(stage, name, terms)
        fields = {**fault.to_json(), "client": self.identity.name, "grant": "refresh_token", "skip": 1, "times": 1}
        stage.issuer.faults.add(Fault.from_json(fields))


async def lose(
    stage: Stage,
    faults: dict[str, Fault],
    expect: Callable[[Loss], Awaitable[None]],
    terms: Terms = TERMS,
    *,
    times: int | None = 4,
) -> None:
    """Have every fault befall an identity; where ``times`` is given, it is to be renewed so often all the same."""

    async def act(loss: Loss) -> None:
        loss.scene.start()
        if times is not None:
            await loss.scene.renewed(loss.identity, times)
        await expect(loss)

    await play([Loss(stage, name, fault, terms) for name, fault in sorted(faults.items())], act)


async def test_a_lost_answer_is_told_at_once_and_replayed_once(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        await loss.scene.stalled(loss.identity)
        assert "RefreshInDoubt" in loss.reasons
        assert loss.presented == [["Accepted", "Reused"]]
        loss.scene.plant(loss.identity)
        await loss.scene.renewed(loss.identity)

    async with stage(tmp_path, zygote) as scenes:
        await lose(scenes, AFTER, expect, times=None)


async def test_a_lost_answer_is_made_good_by_a_server_with_a_grace_period(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert "RefreshInDoubt" in loss.reasons
        assert loss.presented == [["Accepted", "Replayed"]]

    async with stage(tmp_path, zygote, RefreshPolicy(reuse_window=60)) as scenes:
        await lose(scenes, AFTER, expect, replace(TERMS, refresh_tokens="{reuseWindow: 60s}"))


async def test_a_lost_answer_leads_to_a_new_login_where_that_is_possible(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert not loss.presented

    async with stage(tmp_path, zygote) as scenes:
        await lose(scenes, AFTER, expect, replace(TERMS, kind=Kind.PASSWORD))


async def test_a_lost_request_is_in_doubt_as_well_and_its_replay_goes_through(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert "RefreshInDoubt" in loss.reasons
        assert not loss.presented
        assert loss.scene.verdict().doubts == 1

    async with stage(tmp_path, zygote) as scenes:
        await lose(scenes, BEFORE, expect)


async def test_a_refusal_for_now_is_no_doubt(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert {"RefreshInDoubt", "ApprovalRequired"}.isdisjoint(loss.reasons)
        assert not loss.presented
        assert loss.scene.verdict().doubts == 0

    async with stage(tmp_path, zygote) as scenes:
        await lose(scenes, FOR_NOW, expect)


async def test_what_cannot_be_sent_is_no_doubt_and_is_tried_again(tmp_path: Path, zygote: Zygote) -> None:
    async with stage(tmp_path, zygote) as scenes:
        issuer = scenes.issuer
        identity = Identity(unique("refused"), Kind.REFRESH, issuer)
        scene = scenes.scene("refused", identity)
        scene.start()
        await scene.renewed(identity)
        issuer.stop()
        await scene.until("it notices", lambda: scene.reported(identity, "Retrying"))
        assert "claim" not in scene.record(identity)
        await issuer.start()
        await scene.renewed(identity)
        assert "RefreshInDoubt" not in {status["reason"] for status in scene.statuses(identity)}
        await scene.finish()
        verdict = scene.verdict()
        assert (verdict.faults, verdict.doubts, verdict.replays) == ([], 0, 0)


async def test_a_server_that_is_not_trusted_is_sent_nothing(tmp_path: Path, zygote: Zygote) -> None:
    authority = Authority.create()
    async with FaultIssuer(tls=server_context(authority.server(), tmp_path)) as issuer:
        identity = Identity(unique("untrusted"), Kind.REFRESH, issuer)
        scene = FileScene(tmp_path / "untrusted", zygote, [identity])
        scene.start()
        await scene.until("it refuses", lambda: scene.reported(identity, "Retrying"))
        await scene.until("the claim is gone", lambda: "claim" not in scene.record(identity))
        assert not issuer.requests
        scene.give(identity, "ca", authority.certificate)
        identity.tls = f"{{caFrom: {{secretKeyRef: {{name: {identity.name}, key: ca}}}}}}"
        scene.declare()
        await scene.renewed(identity)
        await scene.finish()
        verdict = scene.verdict()
        assert (verdict.faults, verdict.doubts, verdict.replays) == ([], 0, 0)
