"""A broker is killed at every step of the ledger, and the next one must go on as the protocol says."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import Outcome, RefreshPolicy, Rotation
from keyferry.doubt import replay_lead
from tests.crash.scene import LIFE, TIMEOUT, Identity, Kind, Scene, unique
from tests.crash.watcher import Watcher
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from tests.crash.zygote import Zygote

pytestmark = pytest.mark.crash

KILLED = -signal.SIGKILL
LEDGER_STEPS = ("claim", "claimed", "spend", "answered", "escrowed", "commit", "committed", "publish", "published")
ON_THE_WIRE = {
    "arrived": FaultKind.STALL_BEFORE,
    "late": FaultKind.LATENCY,
    "spent": FaultKind.STALL_AFTER,
}
"""Steps that only the issuer sees: the request is there; it is there and will be worked on; it was worked on."""
STEPS = (*LEDGER_STEPS, *ON_THE_WIRE)
LOST = {"answered", "late", "spent"}
"""Where the refresh token is spent and the answer is gone."""
IN_DOUBT = {"claimed", "spend", "arrived", *LOST}


@dataclass(frozen=True)
class Terms:
    """What the identities of a test have in common."""

    kind: Kind = Kind.REFRESH
    refresh_tokens: str = "{}"
    life: float = LIFE
    renewal: str = "{}"


@dataclass
class Case:
    """One kill: at which step, and at which of its passings."""

    step: str
    passing: int
    scene: Scene
    identity: Identity

    async def die(self) -> None:
        """Run a broker until it dies."""
        if self.step not in ON_THE_WIRE:
            broker = self.scene.start(step=self.step, passing=self.passing)
        else:
            kind = ON_THE_WIRE[self.step]
            fault = Fault(
                kind,
                client=self.identity.name,
                grant="refresh_token",
                skip=self.passing - 1,
                times=1,
                delay=0.5 if kind is FaultKind.LATENCY else None,
            )
            self.identity.issuer.faults.add(fault)
            broker = self.scene.start()
            await self.scene.until("the request is at the issuer", self._on_the_wire)
            broker.kill()
        assert await broker.ended() == KILLED

    def _on_the_wire(self) -> bool:
        return any(
            request.client == self.identity.name
            and request.fault is not None
            and request.processed == (self.step == "spent")
            for request in self.identity.issuer.requests
        )

    def presented(self) -> list[list[str]]:
        """Return what became of each refresh token that was presented more than once."""
        return [
            [shown.outcome.value for shown in spend.presentations]
            for spend in self.scene.spends(self.identity)
            if spend.presented > 1
        ]

    def published(self) -> tuple[bytes, bytes]:
        """Return what workloads read now."""
        directory = self.scene.directory(self.identity)
        return (directory / "token").read_bytes(), (directory / "token.json").read_bytes()


@asynccontextmanager
async def stage(policy: RefreshPolicy | None = None) -> AsyncIterator[tuple[FaultIssuer, Watcher]]:
    """Set up an issuer and a reader; at the end, nothing that was read may have been torn or missing."""
    async with FaultIssuer(refresh_policy=policy) as issuer:
        with Watcher() as watcher:
            yield issuer, watcher
        assert not watcher.faults({token.value for token in issuer.issued})


async def play(cases: Iterable[Case], go_on: Callable[[Case], Awaitable[None]], watcher: Watcher) -> None:
    """Kill at every case's step, all of them side by side, and judge what the next broker makes of it."""

    async def one(case: Case) -> None:
        case.scene.watch(watcher)
        try:
            await case.die()
            await go_on(case)
            await case.scene.finish()
            assert not case.scene.verdict().faults
        except AssertionError as error:
            error.add_note(f"killed at step {case.step}, passing {case.passing}")
            raise
        finally:
            await case.scene.close()

    async with asyncio.TaskGroup() as group:
        for case in cases:
            group.create_task(one(case))


def cases(
    tmp_path: Path,
    zygote: Zygote,
    issuer: FaultIssuer,
    steps: Iterable[str],
    terms: Terms | None = None,
    *,
    passing: int,
) -> list[Case]:
    terms = terms or Terms()
    made = []
    for step in steps:
        identity = Identity(unique(step), terms.kind, issuer, terms.refresh_tokens, terms.life, terms.renewal)
        made.append(Case(step, passing, Scene(tmp_path / f"{step}-{passing}", zygote, [identity]), identity))
    return made


async def goes_on(case: Case) -> None:
    case.scene.start()
    await case.scene.renewed(case.identity)


@pytest.mark.parametrize("passing", [1, 2, 3])
async def test_a_refresh_token_is_replayed_once_and_what_arrived_is_kept(
    tmp_path: Path, zygote: Zygote, passing: int
) -> None:
    """The server forgives nothing: a replay of a spent token ends the session, any other doubt resolves itself."""

    async def go_on(case: Case) -> None:
        if case.step not in LOST:
            await goes_on(case)
            assert not case.presented()
            return
        before = case.published() if passing > 1 else None
        case.scene.start()
        await case.scene.stalled(case.identity)
        reasons = [status["reason"] for status in case.scene.statuses(case.identity)]
        assert reasons[0] == "RefreshInDoubt"
        assert case.presented() == [["Accepted", "Reused"]]
        # What was good before is still there, and there is a way out.
        assert before is None or case.published() == before
        case.scene.plant(case.identity)
        await case.scene.renewed(case.identity)

    async with stage() as (issuer, watcher):
        await play(cases(tmp_path, zygote, issuer, STEPS, passing=passing), go_on, watcher)


@pytest.mark.parametrize("passing", [1, 2])
async def test_a_login_that_can_be_made_again_is_made_again(tmp_path: Path, zygote: Zygote, passing: int) -> None:
    async def go_on(case: Case) -> None:
        await goes_on(case)
        assert not case.presented()
        logins = Counter(
            request.grant for request in case.identity.issuer.requests if request.client == case.identity.name
        )
        # A login's own answer may be lost: its commit is the first, and nothing keeps it from being made again.
        again = case.step in IN_DOUBT or (case.step, passing) == ("commit", 1)
        assert logins["password"] == (2 if again else 1)

    async with stage() as (issuer, watcher):
        made = cases(tmp_path, zygote, issuer, STEPS, Terms(Kind.PASSWORD), passing=passing)
        await play(made, go_on, watcher)


@pytest.mark.parametrize("passing", [1, 2])
async def test_a_reusable_refresh_token_is_simply_used_again(tmp_path: Path, zygote: Zygote, passing: int) -> None:
    async def go_on(case: Case) -> None:
        await goes_on(case)
        assert not any(line["kind"] == "claim" for line in case.scene.diary())

    async with stage(RefreshPolicy(rotation=Rotation.REUSABLE)) as (issuer, watcher):
        steps = ("publish", "published", *ON_THE_WIRE)
        made = cases(tmp_path, zygote, issuer, steps, Terms(refresh_tokens="{rotation: Reusable}"), passing=passing)
        await play(made, go_on, watcher)


async def test_within_the_reuse_window_the_replay_follows_at_once(tmp_path: Path, zygote: Zygote) -> None:
    async def go_on(case: Case) -> None:
        await goes_on(case)
        assert case.presented() == ([["Accepted", "Replayed"]] if case.step in LOST else [])

    async with stage(RefreshPolicy(reuse_window=60)) as (issuer, watcher):
        # The tokens live for ten minutes: nothing but the window makes it replay soon.
        terms = Terms(refresh_tokens="{reuseWindow: 60s}", life=600.0, renewal="{before: 598s}")
        await play(cases(tmp_path, zygote, issuer, sorted(IN_DOUBT), terms, passing=2), go_on, watcher)


async def test_without_a_window_the_token_is_served_until_shortly_before_its_end(
    tmp_path: Path, zygote: Zygote
) -> None:
    async def go_on(case: Case) -> None:
        spent = case.scene.record(case.identity)["refresh_token"]
        claim = next(line for line in reversed(case.scene.diary()) if line["kind"] == "claim")
        case.scene.start()
        await case.scene.renewed(case.identity, 1)
        first = case.scene.statuses(case.identity)[0]
        assert first["reason"] == "RefreshInDoubt"
        lead = replay_lead(TIMEOUT, first["expires"] - claim["at"])
        replayed = next(spend for spend in case.scene.spends(case.identity) if spend.token == spent)
        assert [shown.outcome for shown in replayed.presentations] == [Outcome.ACCEPTED]
        assert first["expires"] - lead - 0.5 < replayed.presentations[0].at

    async with stage() as (issuer, watcher):
        terms = Terms(life=10.0, renewal="{before: 9s}")
        await play(cases(tmp_path, zygote, issuer, ("claimed", "arrived"), terms, passing=2), go_on, watcher)


async def test_a_person_is_asked_where_the_resource_says_so(tmp_path: Path, zygote: Zygote) -> None:
    async def go_on(case: Case) -> None:
        before = case.published()
        case.scene.start()
        await case.scene.stalled(case.identity)
        assert not case.presented()
        assert case.published() == before
        sent = len(case.identity.issuer.requests)
        # Another restart, and nothing is sent either.
        await case.scene.finish()
        case.scene.start()
        await case.scene.stalled(case.identity)
        assert [r for r in list(case.identity.issuer.requests)[sent:] if r.client == case.identity.name] == []
        case.scene.plant(case.identity)
        await case.scene.renewed(case.identity)

    async with stage() as (issuer, watcher):
        steps = sorted(IN_DOUBT - {"late"})
        terms = Terms(refresh_tokens="{inDoubt: AskPerson}")
        await play(cases(tmp_path, zygote, issuer, steps, terms, passing=2), go_on, watcher)


async def test_a_replay_that_is_cut_off_is_never_sent_again(tmp_path: Path, zygote: Zygote) -> None:
    async def go_on(case: Case) -> None:
        before = case.published()
        broker = case.scene.start(step=case.step, passing=1)
        assert await broker.ended() == KILLED
        assert case.scene.record(case.identity)["claim"]["attempt"] == 2
        case.scene.start()
        await case.scene.stalled(case.identity)
        presented = [spend.presented for spend in case.scene.spends(case.identity)]
        assert presented == ([1, 1, 2, 0] if case.step == "answered" else [1, 1, 0])
        assert case.published() == before
        case.scene.plant(case.identity)
        await case.scene.renewed(case.identity)

    async with stage() as (issuer, watcher):
        await play(cases(tmp_path, zygote, issuer, ("claimed", "spend", "answered"), passing=3), go_on, watcher)


async def test_a_state_that_was_restored_counts_as_in_doubt(tmp_path: Path, zygote: Zygote) -> None:
    """What it holds was spent by what came after it; while its access token is good there is no need to find out."""
    async with stage() as (issuer, watcher):
        identity = Identity(unique("restored"), Kind.REFRESH, issuer, life=600.0, renewal="{before: 598s}")
        scene = Scene(tmp_path / "restored", zygote, [identity])
        scene.watch(watcher)
        path = scene.base / "state" / "records" / "default" / f"{identity.name}.json"
        scene.start()
        await scene.renewed(identity)
        await scene.finish()
        backup = path.read_bytes()
        scene.start()
        await scene.renewed(identity)
        await scene.finish()
        path.write_bytes(backup)
        published = (scene.directory(identity) / "token").read_bytes()
        sent = len(issuer.requests)

        scene.start()
        await scene.until("it is told", lambda: scene.reported(identity, "RefreshInDoubt"))
        await scene.finish()
        assert len(issuer.requests) == sent
        assert (scene.directory(identity) / "token").read_bytes() == published

        identity.refresh_tokens = "{inDoubt: AskPerson}"
        scene.declare()
        scene.start()
        await scene.stalled(identity)
        assert len(issuer.requests) == sent
        scene.plant(identity)
        await scene.renewed(identity)
        await scene.finish()
        # The one that the restored state knew nothing of is gone, and that is all.
        verdict = scene.verdict()
        assert verdict.replays == 0
        assert [fault for fault in verdict.faults if "was lost" not in fault] == []
