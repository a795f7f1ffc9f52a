"""LabArchives through the page: the login page's callback, and a one-hour code that is typed; each redeemed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry.errors import KeyferryError, Reason, Refused
from keyferry.question import Stage
from keyferry.run.requests import Outcome, login
from keyferry.secret import SecretValue
from tests.engine.test_labarchives import EMAIL, give, logged_in, notebook, provider, record
from tests.engine.test_login import LAPTOP, PHONE, Person
from tests.engine.test_questions import PAGE
from tests.engine.world import PATIENCE, key, secret, until
from tests.support.labarchives import LabArchives

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.question import Question
    from tests.engine.world import Document, World

LOGIN: Document = {"type": "LabArchivesLogin"}


class Scientist(Person):
    """Somebody with a browser and a LabArchives account."""

    def __init__(self, world: World, server: LabArchives, browser: SecretValue = PHONE) -> None:
        super().__init__(world, browser, "notebook")
        self.server = server

    def log_in(self, address: str, who: str | None = EMAIL) -> str:
        assert who is not None
        return self.server.callback_of(address, who)

    async def arrive(self, who: str | None = EMAIL) -> Question:
        return await super().arrive(who)

    async def type(self, code: str, email: str = EMAIL) -> Question:
        return await self.broker.engine.approvals.give_code(self.link, self.browser, email, SecretValue(code))


@pytest.fixture
def server(world: World) -> Iterator[LabArchives]:
    with LabArchives() as server:
        world.write("lab.yaml", provider(server), notebook(grant=LOGIN))
        world.write("organization.yaml", secret("organization", id=server.access_key_id, password="pwd-demo-123"))
        server.clock_offset = world.clock.now() - server.now()
        yield server


@pytest.fixture
def person(world: World, server: LabArchives) -> Scientist:
    return Scientist(world, server)


async def uid_of(world: World) -> str:
    held = await record(world)
    assert held.refresh_token is not None
    return held.refresh_token.reveal()


async def test_a_login_by_callback_is_redeemed_once_and_looked_after(person: Scientist, server: LabArchives) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        question = await person.look()
        assert (question.stage, question.takes_code) == (Stage.LOGIN, True)
        question = await person.arrive()
        assert question.stage is Stage.CONFIRM
        assert question.account is not None
        assert (question.account.email, question.account.name) == (EMAIL, "Ada Example")
        assert server.person(EMAIL).uid not in str(question), "the user id is a credential"
        assert (await person.confirm()).stage is Stage.DONE
        await logged_in(world)
        assert await uid_of(world) == server.person(EMAIL).uid
        world.renew("notebook")
        await logged_in(world, 2)
    assert len(server.redemptions) == 1
    assert len(server.called("user_access_info")) == 1


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
async def test_a_clock_that_is_off_spoils_neither_the_link_nor_the_code(
    person: Scientist, server: LabArchives, offset: float
) -> None:
    server.clock_offset += offset
    async with person.world.broker(page_url=PAGE):
        await person.asked()
        assert (await person.arrive()).stage is Stage.CONFIRM
        assert (await person.confirm()).stage is Stage.DONE
    assert len(server.redemptions) == 1


async def test_a_typed_code_is_redeemed_once(person: Scientist, server: LabArchives) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        code = server.code_for(EMAIL)
        assert (await person.type(code)).stage is Stage.CONFIRM
        assert (await person.confirm()).stage is Stage.DONE
        await logged_in(world)
        assert await uid_of(world) == server.person(EMAIL).uid
    assert server.redemptions == [code]
    told = " ".join(str(each) for each in [*world.told.events, *world.told.statuses])
    assert code not in told


async def test_a_wrong_code_is_told_and_another_may_be_typed(person: Scientist, server: LabArchives) -> None:
    async with person.world.broker(page_url=PAGE):
        await person.asked()
        question = await person.type("made-up")
        assert (question.stage, question.may_ask_again) == (Stage.ENDED, True)
        assert "wrong, lapsed or used up" in question.message
        await person.ask_again()
        assert (await person.type(server.code_for(EMAIL))).stage is Stage.CONFIRM
    assert len(server.called("user_access_info")) == 2


async def test_the_code_of_one_identity_is_not_anothers(person: Scientist, server: LabArchives) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        code = server.code_for(EMAIL)
        await person.type(code)
        await person.confirm()
        world.write("other.yaml", notebook("other", grant=LOGIN))
        other = Scientist(world, server)
        other.name = "other"
        await until(lambda: world.declared("other"))
        await other.asked()
        question = await other.type(code)
        assert question.stage is Stage.ENDED
        assert "used before" in question.message
    assert len(server.called("user_access_info")) == 1


async def test_an_answer_that_is_lost_is_never_asked_for_twice(person: Scientist, server: LabArchives) -> None:
    def lose() -> None:
        raise ConnectionResetError

    server.after_redemption = lose
    async with person.world.broker(page_url=PAGE):
        await person.asked()
        question = await person.arrive()
        assert question.stage is Stage.ENDED
        assert "lost" in question.message
        server.after_redemption = None
        await person.ask_again()
        assert (await person.arrive()).stage is Stage.CONFIRM
        assert (await person.confirm()).stage is Stage.DONE
    assert len(server.called("user_access_info")) == 2


async def test_callbacks_of_others_and_of_other_browsers_are_refused(person: Scientist, server: LabArchives) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        callback = person.log_in(await person.begin())
        for changes in ({"state": "forged"}, {"auth_code": None}, {"email": None}):
            with pytest.raises(Refused):
                await person.come_back(callback, **changes)
        with pytest.raises(Refused, match="another browser"):
            await Scientist(world, server, LAPTOP).come_back(callback)
        assert not server.called("user_access_info")
        await person.come_back(callback)
        with pytest.raises(Refused):
            await person.come_back(callback)
        assert (await person.look()).stage is Stage.CONFIRM
    assert len(server.redemptions) == 1


async def test_a_login_that_ended_leads_to_a_prompt_and_the_next_one_goes_on(
    person: Scientist, server: LabArchives
) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.approve(EMAIL)
        await logged_in(world)
        server.person(EMAIL).session_over = True
        world.renew("notebook")
        await person.asked()
        assert world.status("notebook").reason is Reason.APPROVAL_REQUIRED
        server.person(EMAIL).session_over = False
        await person.approve(EMAIL)
        await logged_in(world, 2)


async def test_a_login_ahead_of_time_leaves_the_one_before_in_use(person: Scientist, server: LabArchives) -> None:
    world = person.world
    async with world.broker(page_url=PAGE) as broker:
        await person.approve(EMAIL)
        await logged_in(world)
        before = await uid_of(world)
        assert broker.engine.login(key("notebook"))
        await person.asked()
        await person.arrive("eve@example.org")
        world.renew("notebook")
        await logged_in(world, 2)
        assert await uid_of(world) == before
        assert (await person.confirm()).stage is Stage.DONE
        await logged_in(world, 3)
        assert await uid_of(world) == server.person("eve@example.org").uid


async def test_a_declined_login_cannot_be_revoked_and_people_are_told(person: Scientist) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        assert (await person.decline()).stage is Stage.ENDED
        await until(lambda: "revocation_failed" in world.told.words("notebook"))
        held = await record(world)
        assert held.refresh_token is None


async def test_a_login_that_its_person_must_attend_is_not_offered(person: Scientist, server: LabArchives) -> None:
    server.person(EMAIL).auto_login_allowed = False
    async with person.world.broker(page_url=PAGE):
        await person.asked()
        question = await person.arrive()
        assert question.stage is Stage.ENDED
        assert "auto-login-allowed" in question.message


async def test_a_secret_whose_code_is_spent_leads_to_the_page(person: Scientist, server: LabArchives) -> None:
    """Of a grant whose code comes from a Secret; what is put there meanwhile counts as well."""
    world = person.world
    world.write("lab.yaml", provider(server), notebook())
    give(world, "made-up")
    async with world.broker(page_url=PAGE):
        await person.asked()
        assert (await person.look()).takes_code
        assert (await person.type(server.code_for(EMAIL))).stage is Stage.CONFIRM
        assert (await person.confirm()).stage is Stage.DONE
        await logged_in(world)
        server.person(EMAIL).session_over = True
        world.renew("notebook")
        await person.asked()
        server.person(EMAIL).session_over = False
        give(world, server.code_for(EMAIL))
        await logged_in(world, 2)
        assert world.status("notebook").prompt is None, "nobody need answer any more"
    assert len(server.redemptions) == 2


async def test_an_identity_of_another_kind_takes_no_code(person: Scientist) -> None:
    world = person.world
    world.basics()
    world.write(
        "person.yaml",
        {**notebook("person"), "spec": {"providerRef": {"name": "idp"}, "grant": {"type": "AuthorizationCode"}}},
    )
    async with world.broker(page_url=PAGE):
        person.name = "person"
        await until(lambda: world.declared("person"))
        await person.asked()
        with pytest.raises(KeyferryError):
            await person.type("code")


async def test_a_login_is_asked_for_while_the_one_of_the_secrets_code_is_good(
    person: Scientist, server: LabArchives
) -> None:
    """What was asked ahead of time is answered by a login; a code in the Secret would be another answer."""
    world = person.world
    world.write("lab.yaml", provider(server), notebook())
    give(world, server.code_for(EMAIL))
    async with world.broker(page_url=PAGE) as broker:
        await logged_in(world)
        asked = await login(broker, key("notebook"), PATIENCE, begin=True)
        assert asked.outcome is Outcome.PERSON
        await person.asked()
        assert (await person.look()).takes_code
        world.renew("notebook")
        await logged_in(world, 2)
        assert await uid_of(world) == server.person(EMAIL).uid, "the login that is there serves on meanwhile"
        assert (await person.arrive("eve@example.org")).stage is Stage.CONFIRM
        assert (await person.confirm()).stage is Stage.DONE
        await logged_in(world, 3)
        assert await uid_of(world) == server.person("eve@example.org").uid
        world.renew("notebook")
        await logged_in(world, 4)
    async with world.broker(page_url=PAGE):
        await logged_in(world, 4)
        assert world.status("notebook").prompt is None, "the Secret's old code is no new answer"
    assert len(server.called("user_access_info")) == 2


async def test_a_code_that_lies_unused_in_the_secret_is_the_login_that_is_asked_for(
    person: Scientist, server: LabArchives
) -> None:
    world = person.world
    world.write("lab.yaml", provider(server), notebook())
    give(world, server.code_for(EMAIL))
    async with world.broker(page_url=PAGE) as broker:
        await logged_in(world)
        give(world, server.code_for("eve@example.org"), "eve@example.org")
        done = await login(broker, key("notebook"), PATIENCE, begin=True)
        await until(lambda: len(server.redemptions) == 2)
        assert done.outcome in {Outcome.DONE, Outcome.PERSON}
        await logged_in(world, 2)
        await until(lambda: world.status("notebook").prompt is None)
        assert await uid_of(world) == server.person("eve@example.org").uid
    assert len(server.called("user_access_info")) == 2


async def test_without_a_page_a_login_says_where_a_new_code_goes(person: Scientist, server: LabArchives) -> None:
    world = person.world
    world.write("lab.yaml", provider(server), notebook())
    give(world, server.code_for(EMAIL))
    async with world.broker() as broker:
        await logged_in(world)
        for _ in range(2):
            asked = await login(broker, key("notebook"), PATIENCE, begin=True)
            assert asked.outcome is Outcome.PERSON
            assert "needs a new one-hour code of LabArchives into Secret default/login, key code" in asked.message
            assert "goes on" in asked.message
        assert world.told.words("notebook").count("note") == 2, "it is told once for each time that it was asked for"
        world.renew("notebook")
        await logged_in(world, 2)
    assert len(server.redemptions) == 1
