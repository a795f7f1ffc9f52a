"""Nobody is killed here: the answer is lost on its way, or the request never leaves."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import RefreshPolicy
from tests.crash.scene import Identity, Kind, Scene, unique
from tests.crash.watcher import Watcher
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.crash.zygote import Zygote

pytestmark = pytest.mark.crash

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


@asynccontextmanager
async def stage(policy: RefreshPolicy | None = None) -> AsyncIterator[tuple[FaultIssuer, Watcher]]:
    async with FaultIssuer(refresh_policy=policy) as issuer:
        with Watcher() as watcher:
            yield issuer, watcher
        assert not watcher.faults({token.value for token in issuer.issued})


class Loss:
    """One identity whose second refresh meets a fault."""

    def __init__(self, base: Path, zygote: Zygote, issuer: FaultIssuer, fault: Fault, terms: tuple[Kind, str]) -> None:
        kind, refresh_tokens = terms
        self.identity = Identity(unique(base.name), kind, issuer, refresh_tokens)
        self.scene = Scene(base, zygote, [self.identity])
        fields = {**fault.to_json(), "client": self.identity.name, "grant": "refresh_token", "skip": 1, "times": 1}
        issuer.faults.add(Fault.from_json(fields))

    @property
    def presented(self) -> list[list[str]]:
        """What became of each refresh token that was presented more than once."""
        spends = self.scene.spends(self.identity)
        return [[shown.outcome.value for shown in spend.presentations] for spend in spends if spend.presented > 1]

    @property
    def reasons(self) -> set[str]:
        return {status["reason"] for status in self.scene.statuses(self.identity)}


async def play(
    losses: list[Loss], watcher: Watcher, expect: Callable[[Loss], Awaitable[None]], times: int | None = 4
) -> None:
    """Run all side by side; where ``times`` is given, each is renewed so often and its refresh tokens are judged."""

    async def one(loss: Loss) -> None:
        loss.scene.watch(watcher)
        try:
            loss.scene.start()
            if times is not None:
                await loss.scene.renewed(loss.identity, times)
            await expect(loss)
            await loss.scene.finish()
            assert not loss.scene.verdict().faults
        except AssertionError as error:
            error.add_note(f"in {loss.scene.base.name}; it reported {loss.reasons}")
            raise
        finally:
            await loss.scene.close()

    async with asyncio.TaskGroup() as group:
        for loss in losses:
            group.create_task(one(loss))


def losses(
    tmp_path: Path,
    zygote: Zygote,
    issuer: FaultIssuer,
    faults: dict[str, Fault],
    refresh_tokens: str = "{}",
    kind: Kind = Kind.REFRESH,
) -> list[Loss]:
    return [
        Loss(tmp_path / name, zygote, issuer, fault, (kind, refresh_tokens)) for name, fault in sorted(faults.items())
    ]


async def test_a_lost_answer_is_told_at_once_and_replayed_once(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        await loss.scene.stalled(loss.identity)
        assert "RefreshInDoubt" in loss.reasons
        assert loss.presented == [["Accepted", "Reused"]]
        loss.scene.plant(loss.identity)
        await loss.scene.renewed(loss.identity)

    async with stage() as (issuer, watcher):
        await play(losses(tmp_path, zygote, issuer, AFTER), watcher, expect, None)


async def test_a_lost_answer_is_made_good_by_a_server_with_a_grace_period(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert "RefreshInDoubt" in loss.reasons
        assert loss.presented == [["Accepted", "Replayed"]]

    async with stage(RefreshPolicy(reuse_window=60)) as (issuer, watcher):
        await play(losses(tmp_path, zygote, issuer, AFTER, "{reuseWindow: 60s}"), watcher, expect)


async def test_a_lost_answer_leads_to_a_new_login_where_that_is_possible(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert not loss.presented

    async with stage() as (issuer, watcher):
        await play(losses(tmp_path, zygote, issuer, AFTER, kind=Kind.PASSWORD), watcher, expect)


async def test_a_lost_request_is_in_doubt_as_well_and_its_replay_goes_through(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert "RefreshInDoubt" in loss.reasons
        assert not loss.presented
        assert loss.scene.verdict().doubts == 1

    async with stage() as (issuer, watcher):
        await play(losses(tmp_path, zygote, issuer, BEFORE), watcher, expect)


async def test_a_refusal_for_now_is_no_doubt(tmp_path: Path, zygote: Zygote) -> None:
    async def expect(loss: Loss) -> None:
        assert loss.reasons.isdisjoint({"RefreshInDoubt", "ApprovalRequired"})
        assert not loss.presented
        assert loss.scene.verdict().doubts == 0

    async with stage() as (issuer, watcher):
        await play(losses(tmp_path, zygote, issuer, FOR_NOW), watcher, expect)


async def test_what_cannot_be_sent_is_no_doubt_and_is_tried_again(tmp_path: Path, zygote: Zygote) -> None:
    async with stage() as (issuer, watcher):
        identity = Identity(unique("refused"), Kind.REFRESH, issuer)
        scene = Scene(tmp_path / "refused", zygote, [identity])
        scene.watch(watcher)
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
        scene = Scene(tmp_path / "untrusted", zygote, [identity])
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
