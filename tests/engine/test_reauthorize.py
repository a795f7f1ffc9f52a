"""When a login ends, and that people are told so ahead of time: once each, whatever restarts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.device_codes import Decision
from keyferry.demo.refresh_tokens import RefreshPolicy
from keyferry.engine.apply import reauthorize_by
from keyferry.engine.foresight import notice_times
from keyferry.errors import Reason
from keyferry.model import ObjectKey
from keyferry.record import Record
from keyferry.secret import SecretValue
from tests.engine.world import identity, key, until

if TYPE_CHECKING:
    from tests.engine.world import World

DAY = 86400.0
HELD = Record(
    uid="u",
    key=ObjectKey("a", "b"),
    refresh_token=SecretValue("rt"),
    refresh_issued_at=1000.0,
    refresh_expires_at=2800.0,
    refresh_idle=1800.0,
    session_started_at=1000.0,
)
SLIDING = replace(HELD, refresh_slides=True)


@pytest.mark.parametrize(
    ("record", "maximum", "end", "unrefreshed"),
    [
        pytest.param(HELD, None, 2800.0, 2800.0, id="whether it slides is not known yet"),
        pytest.param(SLIDING, None, None, 2800.0, id="idle time only"),
        pytest.param(SLIDING, 36000.0, 37000.0, 2800.0, id="the maximum that the resource tells"),
        pytest.param(replace(SLIDING, session_expires_at=9000.0), 36000.0, 9000.0, 2800.0, id="the provider's word"),
        pytest.param(
            replace(HELD, refresh_expires_at=None, refresh_idle=600.0), None, None, 1600.0, id="idle by the resource"
        ),
        pytest.param(
            replace(HELD, refresh_expires_at=None, refresh_idle=None), None, None, None, id="offline, for ever"
        ),
        pytest.param(replace(HELD, refresh_ended="over"), 36000.0, None, None, id="it ended"),
        pytest.param(replace(HELD, refresh_token=None), 36000.0, None, None, id="no session"),
    ],
)
def test_when_only_a_person_can_go_on(
    record: Record, maximum: float | None, end: float | None, unrefreshed: float | None
) -> None:
    assert reauthorize_by(record, maximum) == end
    assert reauthorize_by(record, maximum, refreshing=False) == unrefreshed


@pytest.mark.parametrize(
    ("life", "leads"),
    [(365 * DAY, (7 * DAY, DAY)), (30 * DAY, (7 * DAY, DAY)), (36000.0, (12000.0, 3600.0)), (0.0, (0.0, 0.0))],
)
def test_people_are_told_a_week_and_a_day_ahead_or_what_the_session_leaves_room_for(
    life: float, leads: tuple[float, float]
) -> None:
    assert notice_times(1000.0, 1000.0 + life) == tuple(1000.0 + life - lead for lead in leads)


def notices(world: World) -> list[str]:
    return [event.message for event in world.told.events if event.event == "login_ends"]


async def test_the_end_of_a_session_is_told_twice_ahead_and_a_login_begins_another(world: World) -> None:
    world.basics()
    world.issuer.service.settings.access_lifetime = 12
    world.issuer.service.refresh_tokens.policy = RefreshPolicy(idle=40, maximum=240, tells=True)
    world.write("person.yaml", identity("person", grant={"type": "DeviceCode"}))

    def approve() -> None:
        prompt = world.status("person").prompt
        assert prompt is not None
        world.issuer.service.device_codes.decide(prompt.user_code, Decision.APPROVED, "ada")

    async with world.broker() as broker:
        await until(lambda: world.declared("person") and world.status("person").prompt is not None)
        approve()
        await world.fresh("person", revision=4)
        begun = next(iter(world.issuer.service.refresh_tokens.families.values())).started_at
        assert world.status("person").reauthorize_by_time is None, "it slides: nobody is needed yet"
        assert not notices(world)
        await until(lambda: world.status("person").reauthorize_by_time is not None)
        assert world.status("person").reauthorize_by_time == pytest.approx(begun + 240, abs=4)
        await until(lambda: len(notices(world)) == 1)
        await world.fresh("person")
    async with world.broker() as broker:
        await world.fresh("person")
        await until(lambda: len(notices(world)) == 2 or world.clock.now() > begun + 240)
        assert len(notices(world)) == 2, "a restart repeats none and forgets none"
        assert "keyferry login person" in notices(world)[-1]
        told = [event for event in world.told.events if event.event == "login_ends"]
        assert {event.reason for event in told} == {Reason.APPROVAL_REQUIRED}
        if world.status("person").prompt is None:
            broker.engine.login(key("person"))
        await until(lambda: world.status("person").prompt is not None)
        approve()
        await until(lambda: world.status("person").prompt is None and world.status("person").revision > 4)
        await world.fresh("person", revision=world.status("person").revision + 2)
        assert world.status("person").reauthorize_by_time is None
        assert len(notices(world)) == 2
