"""A person approves by device code: asked once, polled as the RFC says, and kept alive from then on."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.device_codes import Decision, DeviceCode
from keyferry.demo.state import User
from keyferry.engine.status import State
from keyferry.errors import Reason, RetryClass
from keyferry.question import Account
from keyferry.run.requests import Outcome, login
from keyferry.run.status_json import decode_status, encode_status, public_status
from tests.engine.world import Document, identity, key, until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tests.engine.world import World

DEVICE: Document = {"type": "DeviceCode"}


def codes(world: World) -> list[DeviceCode]:
    return world.issuer.service.device_codes.all


def decide(world: World, decision: Decision = Decision.APPROVED, who: str = "ada") -> None:
    prompt = world.status("person").prompt
    assert prompt is not None
    world.issuer.service.device_codes.decide(prompt.user_code, decision, who)


async def asked(world: World, times: int = 1) -> None:

    def shown() -> bool:
        prompt = world.status("person").prompt
        return len(codes(world)) >= times and prompt is not None and prompt.user_code == codes(world)[-1].user_code

    await until(shown)


async def over(world: World) -> None:
    await until(lambda: world.status("person").retry is RetryClass.NEEDS_PERSON)


@pytest.fixture
def person(world: World) -> World:
    world.basics()
    world.write("person.yaml", identity("person", grant=DEVICE))
    return world


async def test_a_person_is_asked_once_and_the_session_lives_on(person: World) -> None:
    person.issuer.service.settings.access_lifetime = 30
    async with person.broker():
        await asked(person)
        status = person.status("person")
        assert status.prompt is not None
        assert status.prompt.verification_uri_complete.endswith(status.prompt.user_code)
        assert (status.state(person.clock.now()), status.reason) == (State.ASKING, Reason.APPROVAL_REQUIRED)
        assert status.stalled()
        assert status.failure_count == 0
        decide(person)
        await person.fresh("person", revision=3)
        assert person.status("person").prompt is None
    assert len(codes(person)) == 1
    assert max(person.issuer.sent_refresh_tokens().values()) == 1
    assert person.told.words("person").count("approval_required") == 1


async def test_it_polls_no_sooner_than_the_provider_says(person: World) -> None:
    async with person.broker():
        await asked(person)
        await until(lambda: len(codes(person)[0].polls) >= 4)
        polls = codes(person)[0].polls
        assert min(later - sooner for sooner, later in itertools.pairwise(polls)) > 4
        codes(person)[0].interval = 8  # from now on the agreed five seconds are too soon
        await until(lambda: any(record.outcome == "slow_down" for record in person.requests()))
        reports = len(person.told.statuses)
        slowed = len(polls)
        await until(lambda: len(polls) >= slowed + 3)
        gaps = [later - sooner for sooner, later in itertools.pairwise(polls[slowed - 1 :])]
        assert min(gaps) > 9, "slow_down holds for good"
        assert len(person.told.statuses) == reports, "a poll is no news"
        decide(person)
        await person.fresh("person")


async def test_the_prompt_outlives_the_process(person: World) -> None:
    async with person.broker():
        await asked(person)
        prompt = person.status("person").prompt
    async with person.broker():
        await asked(person)
        assert person.status("person").prompt == prompt
        decide(person)
        await person.fresh("person")
    async with person.broker():
        await person.fresh("person")
    assert len(codes(person)) == 1


@pytest.mark.parametrize("decision", [Decision.DENIED, Decision.NONE])
async def test_who_says_no_or_nothing_is_not_asked_again_until_somebody_wants_it(
    person: World, decision: Decision
) -> None:
    person.issuer.service.device_codes.lifetime = 20 if decision is Decision.NONE else 600
    async with person.broker():
        await asked(person)
        if decision is not Decision.NONE:
            decide(person, decision)
        await over(person)
        status = person.status("person")
        assert status.prompt is None
        assert status.reason is Reason.APPROVAL_REQUIRED
        assert "keyferry login" in status.message
        requests = len(person.issuer.requests)
        await asyncio.sleep(1)
        assert len(person.issuer.requests) == requests
    async with person.broker():
        await over(person)
        assert len(codes(person)) == 1, "nor by a restart"
        assert person.renew("person") == 0
        await asked(person, 2)
        decide(person)
        await person.fresh("person")


async def test_a_changed_resource_asks_anew(person: World) -> None:
    async with person.broker():
        await asked(person)
        person.write("person.yaml", identity("person", grant=DEVICE, scopes=["read"]))
        await asked(person, 2)
        decide(person)
        await person.fresh("person")
        assert codes(person)[1].scope == ("read",)


async def test_the_session_that_ends_leads_to_one_more_prompt(person: World) -> None:
    async with person.broker():
        await asked(person)
        decide(person)
        await person.fresh("person")
        before = person.token("person")
        for family in person.issuer.service.refresh_tokens.families.values():
            person.issuer.service.refresh_tokens.revoke(family, "Requested")
        person.renew("person")
        await asked(person, 2)
        assert person.token("person") == before, "the last good token stays"
        decide(person)
        await person.fresh("person", revision=2)


async def test_a_login_ahead_of_time_leaves_the_old_session_in_use(person: World) -> None:
    person.issuer.service.settings.access_lifetime = 30
    async with person.broker():
        await asked(person)
        decide(person)
        await person.fresh("person")
        assert person.running is not None
        assert person.running.engine.login(key("person"))
        await asked(person, 2)
        revision = person.status("person").revision
        await person.fresh("person", revision=revision + 2)
        assert person.status("person").prompt is not None, "renewals go on while the person is asked"
        families = len(person.issuer.service.refresh_tokens.families)
        decide(person)
        await until(lambda: person.status("person").prompt is None)
        assert len(person.issuer.service.refresh_tokens.families) == families + 1
        await person.fresh("person", revision=revision + 4)
    assert max(person.issuer.sent_refresh_tokens().values()) == 1


async def test_nobody_is_asked_where_nobody_would_see_it(person: World) -> None:
    async with person.broker(prompts=False):
        await over(person)
        assert "keyferry login person -n default" in person.status("person").message
        assert not codes(person)


@pytest.fixture
def known(world: World) -> World:
    """Return a world in which it matters who approves, and eve does as well as ada."""
    world.basics()
    world.add_client("bot", scopes=("openid",))
    world.issuer.service.add_user(User("eve", "pw", "eve@example.org"))
    world.issuer.service.add_user(User("mal", "pw", "ada@example.org", email_verified=False))
    world.write("person.yaml", expecting({"email": "ada@example.org"}))
    return world


def expecting(subject: Document) -> Document:
    return identity("person", grant=DEVICE, scopes=["openid"], expectedSubject=subject)


def live_sessions(world: World) -> int:
    return sum(family.revoked_at is None for family in world.issuer.service.refresh_tokens.families.values())


async def test_who_approved_is_known_from_then_on(known: World) -> None:
    ada = Account("ada", "ada@example.org")
    async with known.broker():
        await asked(known)
        assert known.status("person").authorized_as is None
        decide(known)
        await known.fresh("person")
        assert known.status("person").authorized_as == ada
        known.renew("person")  # a refresh brings no ID token, and an opaque access token says nothing
        await known.fresh("person", revision=2)
    async with known.broker():
        await known.fresh("person")
        status = known.status("person")
        assert status.authorized_as == ada
        assert decode_status(json.loads(json.dumps(encode_status(status)))) == status
        shown = public_status(status, known.clock.now())
        assert shown["authorizedAs"] == {"subject": "ada", "email": "ada@example.org"}


async def test_the_wrong_person_is_refused_and_told_so(known: World) -> None:
    async with known.broker():
        await asked(known)
        decide(known, who="eve")
        await over(known)
        status = known.status("person")
        assert status.reason is Reason.WRONG_SUBJECT
        for said in ("approved by eve@example.org", "only ada@example.org may", "log in as ada@example.org", "login"):
            assert said in status.message
        assert status.authorized_as is None
        assert known.token("person") == ""
        await until(lambda: not any(known.valid_tokens().values()))
        assert live_sessions(known) == 0
    async with known.broker():
        await over(known)
        assert len(codes(known)) == 1, "nobody is asked again by itself"
        known.renew("person")
        await asked(known, 2)
        decide(known)
        await known.fresh("person")
        assert known.status("person").authorized_as == Account("ada", "ada@example.org")


async def test_who_cannot_be_told_is_refused(known: World) -> None:
    """Her address is the one that is wanted, but the provider never verified it."""
    async with known.broker():
        await asked(known)
        decide(known, who="mal")
        await over(known)
        status = known.status("person")
        assert status.reason is Reason.WRONG_SUBJECT
        assert "cannot be checked" in status.message
        await until(lambda: not any(known.valid_tokens().values()))
        assert live_sessions(known) == 0
        known.renew("person")
        await asked(known, 2)
        decide(known)
        await known.fresh("person")


@pytest.mark.parametrize("answer", ["eve", "no"])
async def test_a_login_ahead_of_time_that_comes_to_nothing_leaves_the_session_in_use(known: World, answer: str) -> None:
    async with known.broker() as broker:
        await asked(known)
        decide(known)
        await known.fresh("person")
        assert (await login(broker, key("person"), 60, begin=True)).outcome is Outcome.PERSON
        if answer == "no":
            decide(known, Decision.DENIED)
        else:
            decide(known, who=answer)
        told = await login(broker, key("person"), 60, begin=False)
        assert told.outcome is Outcome.PERSON
        assert "the session before it goes on" in told.message
        assert ("eve@example.org" in told.message) == (answer == "eve")
        await until(lambda: known.status("person").reason is Reason.ISSUED)
        assert live_sessions(known) == 1
        known.renew("person")
        await known.fresh("person", revision=2)
        status = known.status("person")
        assert status.authorized_as == Account("ada", "ada@example.org")
        assert public_status(status, known.clock.now())["approval"] == {"message": status.unapproved}
    assert max(known.issuer.sent_refresh_tokens().values()) == 1
    assert len(codes(known)) == 2


async def test_a_wrong_persons_first_login_is_given_up_also_where_it_could_not_be_revoked_at_once(known: World) -> None:
    known.issuer.faults.add(Fault(FaultKind.STATUS, path="/revoke", status=503))
    async with known.broker():
        await asked(known)
        decide(known, who="eve")
        await over(known)
        assert live_sessions(known) == 1
        known.issuer.faults.clear()
        known.renew("person")
        await asked(known, 2)
        assert live_sessions(known) == 0, "it is revoked before anybody is asked again"
        decide(known)
        await known.fresh("person")


async def test_a_wrong_persons_login_that_the_provider_will_not_revoke_is_told_of_once(known: World) -> None:
    known.issuer.faults.add(Fault(FaultKind.ERROR, path="/revoke", status=400, error="unauthorized_client"))
    async with known.broker():
        await asked(known)
        decide(known, who="eve")
        await over(known)
        known.renew("person")
        await asked(known, 2)
        await until(lambda: len(codes(known)[1].polls) >= 2)
        notes = [event for event in known.told.events if "could not be revoked" in event.message]
        assert len(notes) == 2, "of its refresh token and of its access token"
        decide(known)
        await known.fresh("person")


async def test_a_wrong_persons_login_is_given_up_also_where_that_was_cut_off(known: World) -> None:
    """It was committed, and the process ended before it was revoked."""
    armed: list[str] = []

    def cut_off(step: str) -> None:
        if step == "committed" and armed:
            armed.clear()
            raise RuntimeError

    async with known.broker(checkpoint=cut_off) as broker:
        await asked(known)
        decide(known)
        await known.fresh("person")
        assert broker.engine.login(key("person"))
        await asked(known, 2)
        armed.append("now")
        decide(known, who="eve")
        await until(lambda: not armed)
        assert live_sessions(known) == 2
    async with known.broker():
        await until(lambda: live_sessions(known) == 1)
        await known.fresh("person")
        assert known.status("person").authorized_as == Account("ada", "ada@example.org")
        known.renew("person")
        await known.fresh("person", revision=2)
    assert len(codes(known)) == 2
    assert max(known.issuer.sent_refresh_tokens().values()) == 1


async def test_a_lost_poll_is_made_again(person: World) -> None:
    async with person.broker():
        await asked(person)
        faults = person.issuer.faults
        lost = [
            faults.add(Fault(FaultKind.STATUS, path="/token", times=1, status=503)),
            faults.add(Fault(FaultKind.RESET_BEFORE, path="/token", times=1)),
        ]
        await until(lambda: all(faults.used(number) for number in lost))
        assert person.status("person").prompt is not None
        reasons = {event.reason for event in person.told.events} | {told.reason for told in person.told.statuses}
        assert Reason.REFRESH_IN_DOUBT not in reasons, "there is no refresh token yet that could be in doubt"
        decide(person)
        await person.fresh("person")
    assert len(codes(person)) == 1


async def test_an_approval_whose_answer_is_lost_is_asked_for_again(person: World) -> None:
    """The code is used up and nobody has the tokens: only the person can help, and is told so."""
    async with person.broker():
        await asked(person)
        decide(person)
        person.issuer.faults.add(Fault(FaultKind.RESET_AFTER, path="/token", times=1))
        await over(person)
        assert codes(person)[0].redeemed
        person.renew("person")
        await asked(person, 2)
        decide(person)
        await person.fresh("person")


async def test_no_event_holds_the_code(person: World) -> None:
    async with person.broker():
        await asked(person)
        code = codes(person)[0]
        decide(person)
        await person.fresh("person")
    told = " ".join(str(event) for event in person.told.events) + " ".join(
        str(status) for status in person.told.statuses
    )
    assert code.user_code not in told
    assert code.value not in told


async def test_the_first_prompt_needs_an_endpoint(world: World) -> None:
    world.basics(issuer=None, endpoints={"token": f"{world.issuer.issuer}/token"})
    world.write("person.yaml", identity("person", grant=DEVICE))
    async with world.broker():
        await until(lambda: world.status("person").stalled())
        assert world.status("person").reason is Reason.GRANT_NOT_SUPPORTED
        assert "deviceAuthorization" in world.status("person").message
