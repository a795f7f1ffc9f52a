"""The approval page's side of a device code: links that show, lapse and ask again, and nothing for anybody else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.device_codes import Decision
from keyferry.engine.settings import LINK_LIFETIME
from keyferry.errors import NoSuchQuestion, Refused, ResourceError
from keyferry.question import Stage
from keyferry.run.viewers import TOKEN_NAME
from keyferry.secret import SecretValue
from tests.engine.world import identity, until

if TYPE_CHECKING:
    from keyferry.question import Question
    from tests.engine.world import World

PAGE = "https://keyferry.example.org"


def link(world: World, name: str = "person") -> SecretValue:
    """Return the link that the status shows."""
    prompt = world.status(name).prompt
    assert prompt is not None
    found = re.fullmatch(rf"{re.escape(PAGE)}/approve/([\w-]{{43}})", prompt.page)
    assert found, "256 bits"
    return SecretValue(found[1])


async def asked(world: World) -> SecretValue:
    await until(lambda: world.status("person").prompt is not None)
    return link(world)


async def ask(world: World, secret: SecretValue) -> Question:
    assert world.running is not None
    return await world.running.engine.approvals.question(secret, None)


async def stage(world: World, secret: SecretValue) -> Stage:
    return (await ask(world, secret)).stage


@pytest.fixture
def person(world: World) -> World:
    world.basics()
    world.write(
        "person.yaml",
        identity("person", grant={"type": "DeviceCode"}, scopes=["read"], consumers=[{"serviceAccountName": "ingest"}]),
    )
    return world


async def test_a_link_shows_what_is_asked_until_it_is_answered(person: World) -> None:
    async with person.broker(page_url=PAGE):
        secret = await asked(person)
        question = await ask(person, secret)
        assert question.stage is Stage.DEVICE
        assert question.device is not None
        code = person.issuer.service.device_codes.all[0]
        assert question.device.user_code == code.user_code
        assert (question.scopes, question.consumers) == (("read",), ("ServiceAccount ingest",))
        assert (question.provider, question.provider_host) == ("TokenProvider idp", person.issuer.issuer[7:])
        assert str(person.file("person").parent) in question.target
        assert not question.may_ask_again
        person.issuer.service.device_codes.decide(code.user_code, Decision.APPROVED, "ada")
        await person.fresh("person")
        assert (await ask(person, secret)).stage is Stage.DONE
    async with person.broker(page_url=PAGE):
        assert (await ask(person, secret)).stage is Stage.DONE, "also after a restart"
        person.clock.jump(LINK_LIFETIME)
        with pytest.raises(NoSuchQuestion):
            await ask(person, secret)
    told = " ".join(str(each) for each in [*person.told.events, *person.told.statuses])
    assert secret.reveal() not in told


async def test_a_link_outlives_the_process_and_many_codes(person: World) -> None:
    async with person.broker(page_url=PAGE):
        secret = await asked(person)
        codes = person.issuer.service.device_codes
        codes.decide(codes.all[0].user_code, Decision.DENIED)
        await until(lambda: person.status("person").prompt is None)
        question = await ask(person, secret)
        assert (question.stage, question.may_ask_again) == (Stage.ENDED, True)
        assert "said no" in question.message
    async with person.broker(page_url=PAGE) as broker:
        assert (await ask(person, secret)).stage is Stage.ENDED
        fresh = await broker.engine.approvals.ask_again(secret)
        assert fresh.stage is Stage.DEVICE
        assert fresh.device is not None
        assert fresh.device.user_code == codes.all[1].user_code
        assert (await broker.engine.approvals.ask_again(secret)).device == fresh.device, "an open question stays"
        assert link(person) == secret
        codes.decide(fresh.device.user_code, Decision.APPROVED, "ada")
        await person.fresh("person")
    assert len(codes.all) == 2


async def test_who_asks_again_by_the_link_does_not_prolong_it(person: World) -> None:
    async with person.broker(page_url=PAGE) as broker:
        secret = await asked(person)
        codes = person.issuer.service.device_codes
        codes.decide(codes.all[0].user_code, Decision.DENIED)
        await until(lambda: person.status("person").prompt is None)
        person.clock.jump(LINK_LIFETIME - 3600)
        assert (await broker.engine.approvals.ask_again(secret)).stage is Stage.DEVICE
        person.clock.jump(3600)
        with pytest.raises(NoSuchQuestion):
            await ask(person, secret)


async def test_a_link_that_nobody_was_given_shows_nothing(person: World) -> None:
    async with person.broker(page_url=PAGE) as broker:
        await asked(person)
        for guess in ("", "x", "a" * 43):
            with pytest.raises(NoSuchQuestion):
                await ask(person, SecretValue(guess))
            with pytest.raises(NoSuchQuestion):
                await broker.engine.approvals.ask_again(SecretValue(guess))


async def test_the_overview_is_for_the_bearer_of_the_viewer_token(person: World) -> None:
    async with person.broker(page_url=PAGE) as broker:
        secret = await asked(person)
        file = person.state / TOKEN_NAME
        assert file.stat().st_mode & 0o777 == 0o600
        (seen,) = await broker.engine.approvals.overview(SecretValue(file.read_text()))
        assert (seen.identity.name, seen.state, seen.grant) == ("person", "Asking", "DeviceCode")
        assert seen.page == f"{PAGE}/approve/{secret.reveal()}"
        with pytest.raises(Refused):
            await broker.engine.approvals.overview(SecretValue("guess"))
    async with person.broker() as broker:
        with pytest.raises(Refused):
            await broker.engine.approvals.overview(SecretValue(file.read_text()))


async def test_a_page_must_have_an_address_that_a_login_can_be_sent_to(person: World) -> None:
    with pytest.raises(ResourceError, match="https"):
        async with person.broker(page_url="http://keyferry.example.org"):
            pass
