"""A broker is killed at every step of the ledger, and the next one must go on as the protocol says."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.refresh_tokens import Outcome, RefreshPolicy, Rotation
from keyferry.doubt import replay_lead
from tests.crash.cases import IN_DOUBT, KILLED, LOST, ON_THE_WIRE, STEPS, Case, Terms, play_kills
from tests.crash.files import stage
from tests.crash.scene import TIMEOUT, Identity, Kind, unique

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.crash.cases import Stage
    from tests.crash.zygote import Zygote

pytestmark = pytest.mark.crash


def cases(stage: Stage, steps: Iterable[str], terms: Terms | None = None, *, passing: int) -> list[Case]:
    return [Case(stage, step, passing, terms or Terms()) for step in steps]


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
            assert not case.presented
            return
        before = case.published() if passing > 1 else None
        case.scene.start()
        await case.scene.stalled(case.identity)
        assert case.reasons[0] == "RefreshInDoubt"
        assert case.presented == [["Accepted", "Reused"]]
        # What was good before is still there, and there is a way out.
        assert before is None or case.published() == before
        case.scene.plant(case.identity)
        await case.scene.renewed(case.identity)

    async with stage(tmp_path, zygote) as scenes:
        await play_kills(cases(scenes, STEPS, passing=passing), go_on)


@pytest.mark.parametrize("passing", [1, 2])
async def test_a_login_that_can_be_made_again_is_made_again(tmp_path: Path, zygote: Zygote, passing: int) -> None:
    async def go_on(case: Case) -> None:
        await goes_on(case)
        assert not case.presented
        logins = Counter(
            request.grant for request in case.identity.issuer.requests if request.client == case.identity.name
        )
        # A login's own answer may be lost: its commit is the first, and nothing keeps it from being made again.
        again = case.step in IN_DOUBT or (case.step, passing) == ("commit", 1)
        assert logins["password"] == (2 if again else 1)

    async with stage(tmp_path, zygote) as scenes:
        made = cases(scenes, STEPS, Terms(Kind.PASSWORD), passing=passing)
        await play_kills(made, go_on)


@pytest.mark.parametrize("passing", [1, 2])
async def test_a_reusable_refresh_token_is_simply_used_again(tmp_path: Path, zygote: Zygote, passing: int) -> None:
    async def go_on(case: Case) -> None:
        await goes_on(case)
        assert not case.scene.attempts()

    async with stage(tmp_path, zygote, RefreshPolicy(rotation=Rotation.REUSABLE)) as scenes:
        steps = ("publish", "published", *ON_THE_WIRE)
        made = cases(scenes, steps, Terms(refresh_tokens="{rotation: Reusable}"), passing=passing)
        await play_kills(made, go_on)


async def test_within_the_reuse_window_the_replay_follows_at_once(tmp_path: Path, zygote: Zygote) -> None:
    async def go_on(case: Case) -> None:
        await goes_on(case)
        assert case.presented == ([["Accepted", "Replayed"]] if case.step in LOST else [])

    async with stage(tmp_path, zygote, RefreshPolicy(reuse_window=60)) as scenes:
        # The tokens live for ten minutes: nothing but the window makes it replay soon.
        terms = Terms(refresh_tokens="{reuseWindow: 60s}", life=600.0, renewal="{before: 598s}")
        await play_kills(cases(scenes, sorted(IN_DOUBT), terms, passing=2), go_on)


async def test_without_a_window_the_token_is_served_until_shortly_before_its_end(
    tmp_path: Path, zygote: Zygote
) -> None:
    async def go_on(case: Case) -> None:
        record = case.scene.record(case.identity)
        spent, claimed_at = record["refresh_token"], record["claim"]["claimed_at"]
        case.scene.start()
        await case.scene.renewed(case.identity, 1)
        first = case.scene.statuses(case.identity)[0]
        assert first["reason"] == "RefreshInDoubt"
        lead = replay_lead(TIMEOUT, first["expires"] - claimed_at)
        replayed = next(spend for spend in case.scene.spends(case.identity) if spend.token == spent)
        assert [shown.outcome for shown in replayed.presentations] == [Outcome.ACCEPTED]
        assert first["expires"] - lead - 0.5 < replayed.presentations[0].at

    async with stage(tmp_path, zygote) as scenes:
        terms = Terms(life=10.0, renewal="{before: 9s}")
        await play_kills(cases(scenes, ("claimed", "arrived"), terms, passing=2), go_on)


async def test_a_person_is_asked_where_the_resource_says_so(tmp_path: Path, zygote: Zygote) -> None:
    async def go_on(case: Case) -> None:
        before = case.published()
        case.scene.start()
        await case.scene.stalled(case.identity)
        assert not case.presented
        assert case.published() == before
        sent = len(case.identity.issuer.requests)
        # Another restart, and nothing is sent either.
        await case.scene.finish()
        case.scene.start()
        await case.scene.stalled(case.identity)
        assert [r for r in list(case.identity.issuer.requests)[sent:] if r.client == case.identity.name] == []
        case.scene.plant(case.identity)
        await case.scene.renewed(case.identity)

    async with stage(tmp_path, zygote) as scenes:
        steps = sorted(IN_DOUBT - {"late"})
        terms = Terms(refresh_tokens="{inDoubt: AskPerson}")
        await play_kills(cases(scenes, steps, terms, passing=2), go_on)


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

    async with stage(tmp_path, zygote) as scenes:
        await play_kills(cases(scenes, ("claimed", "spend", "answered"), passing=3), go_on)


async def test_a_state_that_was_restored_counts_as_in_doubt(tmp_path: Path, zygote: Zygote) -> None:
    """What it holds was spent by what came after it; while its access token is good there is no need to find out."""
    async with stage(tmp_path, zygote) as scenes:
        issuer = scenes.issuer
        identity = Identity(unique("restored"), Kind.REFRESH, issuer, life=600.0, renewal="{before: 598s}")
        scene = scenes.scene("restored", identity)
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
