"""A person approves by device code: asked once, polled as the RFC says, and kept alive from then on."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.device_codes import Decision, DeviceCode
from keyferry.demo.state import User
from keyferry.engine.status import State
from keyferry.errors import Reason, RetryClass
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


async def test_the_wrong_person_is_refused(world: World) -> None:
    world.basics()
    world.add_client("bot", scopes=("openid",))
    world.issuer.service.add_user(User("eve", "pw", "eve@example.org"))
    world.write(
        "person.yaml", identity("person", grant=DEVICE, scopes=["openid"], expectedSubject={"email": "ada@example.org"})
    )
    async with world.broker():
        await asked(world)
        decide(world, who="eve")
        await over(world)
        assert world.status("person").reason is Reason.WRONG_SUBJECT
        assert world.token("person") == ""
        await until(lambda: not any(world.valid_tokens().values()))
        world.renew("person")
        await asked(world, 2)
        decide(world)
        await world.fresh("person")


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
