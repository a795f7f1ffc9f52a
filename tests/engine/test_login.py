"""A person logs in through the page: authorization code with PKCE, begun, finished and confirmed by one browser."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import pytest

from keyferry.demo.state import User
from keyferry.demo.wire import FormRequest
from keyferry.engine.asking import CONFIRM_LIFETIME, LOGIN_LIFETIME
from keyferry.engine.links import named_uid
from keyferry.engine.status import State
from keyferry.errors import KeyferryError, NoSuchQuestion, Reason, Refused, RetryClass
from keyferry.question import Stage
from keyferry.run.requests import Outcome, login
from keyferry.secret import SecretValue
from keyferry.spec.identity import ProviderKind
from tests.engine.test_questions import PAGE, link
from tests.engine.world import PATIENCE, SECRET, Document, identity, key, secret, until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from keyferry.demo.authorization_codes import AuthorizationCode
    from keyferry.demo.refresh_tokens import Family
    from keyferry.question import Question
    from keyferry.run.broker import LocalBroker
    from tests.engine.world import World

LOGIN: Document = {"type": "AuthorizationCode"}
PHONE, LAPTOP = SecretValue("a browser on a telephone"), SecretValue("a browser on a laptop")


class Person:
    """Somebody with a browser, in front of the page and the provider."""

    def __init__(self, world: World, browser: SecretValue = PHONE, name: str = "person") -> None:
        self.world, self.browser, self.name = world, browser, name

    @property
    def broker(self) -> LocalBroker:
        assert self.world.running is not None
        return self.world.running

    async def asked(self) -> SecretValue:
        await until(lambda: self.world.status(self.name).prompt is not None)
        self.link = link(self.world, self.name)
        return self.link

    async def look(self) -> Question:
        return await self.broker.engine.approvals.question(self.link, self.browser)

    async def begin(self) -> str:
        """Press the button; return the address of the provider's login page."""
        return await self.broker.engine.approvals.begin(self.link, self.browser)

    def log_in(self, address: str, who: str | None = "ada") -> str:
        """Log in at the provider, or say no; return where the browser is sent back to."""
        service = self.world.issuer.service
        parts = urlsplit(address)
        assert address.startswith(f"{service.issuer}/authorize?")
        asked = service.authorize(FormRequest(dict(parse_qsl(parts.query))))
        return service.deny(asked) if who is None else service.approve(asked, who)

    async def come_back(self, callback: str, **changes: str | None) -> SecretValue:
        """Follow the redirect to the page's callback, with ``changes`` made on the way."""
        parts = urlsplit(callback)
        uid = changes.pop("provider", None) or parts.path.rpartition("/")[2]
        given = {**dict(parse_qsl(parts.query)), **changes}
        parameters = {name: value for name, value in given.items() if value is not None}
        return await self.broker.engine.approvals.arrive(uid, self.browser, parameters)

    async def confirm(self) -> Question:
        return await self.broker.engine.approvals.confirm(self.link, self.browser)

    async def decline(self) -> Question:
        return await self.broker.engine.approvals.decline(self.link, self.browser)

    async def ask_again(self) -> Question:
        return await self.broker.engine.approvals.ask_again(self.link)

    async def arrive(self, who: str | None = "ada") -> Question:
        """Begin, log in and come back."""
        assert await self.come_back(self.log_in(await self.begin(), who)) == self.link
        return await self.look()

    async def approve(self, who: str = "ada") -> None:
        """Do all that is to be done."""
        await self.asked()
        assert (await self.arrive(who)).stage is Stage.CONFIRM
        assert (await self.confirm()).stage is Stage.DONE


def codes(world: World) -> list[AuthorizationCode]:
    return world.issuer.service.authorization_codes.all


def families(world: World) -> list[Family]:
    return list(world.issuer.service.refresh_tokens.families.values())


def register(world: World, *names: str) -> list[str]:
    """Register the redirect URIs of providers; return their uids in addresses."""
    uids = [named_uid(ProviderKind.TOKEN_PROVIDER, key(name)) for name in names]
    uris = tuple(f"{PAGE}/callback/{uid}" for uid in uids)
    world.add_client("bot", scopes=("openid", "read"), redirect_uris=uris)
    return uids


async def over(world: World) -> None:
    await until(lambda: world.status("person").retry is RetryClass.NEEDS_PERSON)


async def revoked(world: World) -> None:
    """Wait until all that was issued is revoked."""
    await until(lambda: bool(families(world)) and all(family.revoked_at is not None for family in families(world)))


@pytest.fixture
def person(world: World) -> Person:
    world.basics()
    register(world, "idp")
    world.issuer.service.add_user(User("eve", "pw", "eve@example.org"))
    world.write("person.yaml", identity("person", grant=LOGIN, scopes=["openid", "read"]))
    return Person(world)


async def test_who_logs_in_and_confirms_gives_the_workload_its_session(person: Person) -> None:
    world = person.world
    world.issuer.service.settings.access_lifetime = 30
    async with world.broker(page_url=PAGE):
        await person.asked()
        status = world.status("person")
        assert (status.state(world.clock.now()), status.reason) == (State.ASKING, Reason.APPROVAL_REQUIRED)
        assert (await person.look()).stage is Stage.LOGIN
        question = await person.arrive()
        assert question.stage is Stage.CONFIRM
        assert question.begun_here
        assert question.account is not None
        assert (question.account.subject, question.account.email) == ("ada", "ada@example.org")
        assert world.token("person") == "", "nothing is used before the person confirms"
        assert (await person.confirm()).stage is Stage.DONE
        await world.fresh("person", revision=3)
        assert world.status("person").prompt is None
        assert (await person.look()).stage is Stage.DONE
    assert [code.sent for code in codes(world)] == [1]
    assert max(world.issuer.sent_refresh_tokens().values()) == 1
    assert world.told.words("person").count("approval_required") == 1


async def test_nothing_secret_of_it_is_told(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        address = await person.begin()
        await person.come_back(person.log_in(address))
        await person.confirm()
        await world.fresh("person")
    told = " ".join(str(each) for each in [*world.told.events, *world.told.statuses])
    for hidden in (person.link.reveal(), codes(world)[0].value, dict(parse_qsl(urlsplit(address).query))["state"]):
        assert hidden not in told


async def test_who_says_no_is_asked_again_under_the_same_link(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        question = await person.arrive(who=None)
        assert (question.stage, question.may_ask_again) == (Stage.ENDED, True)
        assert "access_denied" in question.message
        await over(world)
        assert world.status("person").prompt is None
        with pytest.raises(KeyferryError):
            await person.begin()
        assert (await person.ask_again()).stage is Stage.LOGIN
        await person.approve()
    assert [code.sent for code in codes(world)] == [1]


@pytest.mark.parametrize("wanted", [{"email": "ada@example.org"}, {"subject": "ada"}])
async def test_the_wrong_person_is_told_so_and_what_came_is_revoked(person: Person, wanted: Document) -> None:
    world = person.world
    world.write("person.yaml", identity("person", grant=LOGIN, scopes=["openid", "read"], expectedSubject=wanted))
    async with world.broker(page_url=PAGE):
        await person.asked()
        assert (await person.look()).expected in wanted.values()
        question = await person.arrive("eve")
        assert question.stage is Stage.ENDED
        assert "log in as ada" in question.message
        await over(world)
        assert world.status("person").reason is Reason.WRONG_SUBJECT
        await revoked(world)
        assert world.token("person") == ""
        await person.ask_again()
        await person.approve()
        await world.fresh("person")


async def test_a_callback_counts_once(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        callback = person.log_in(await person.begin())
        await person.come_back(callback)
        for _ in range(2):
            with pytest.raises(Refused, match="begin the login again"):
                await person.come_back(callback)
        assert (await person.confirm()).stage is Stage.DONE
        with pytest.raises(Refused):
            await person.come_back(callback)
    assert [code.sent for code in codes(world)] == [1]


async def test_what_was_not_begun_here_is_refused_before_anything_is_sent(person: Person) -> None:
    world = person.world
    world.write("other.yaml", world.provider("other"))
    _, other = register(world, "idp", "other")
    async with world.broker(page_url=PAGE):
        await person.asked()
        callback = person.log_in(await person.begin())
        laptop = Person(world, LAPTOP)
        for changes in (
            {"state": "forged"},
            {"state": None},
            {"iss": "https://elsewhere.example.org"},
            {"iss": None},
            {"code": None},
            {"provider": other},
        ):
            with pytest.raises(Refused, match="Nothing was done with it"):
                await person.come_back(callback, **changes)
        with pytest.raises(Refused, match="another browser"):
            await laptop.come_back(callback)
        assert not [record for record in world.requests() if record.grant == "authorization_code"]
        await person.come_back(callback)
        assert (await person.look()).stage is Stage.CONFIRM, "none of that used the login up"


async def test_only_the_browser_that_logged_in_sees_who_and_confirms(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        laptop = Person(world, LAPTOP)
        laptop.link = person.link
        seen = await laptop.look()
        assert (seen.stage, seen.begun_here, seen.account) == (Stage.CONFIRM, False, None)
        for answer in (laptop.confirm, laptop.decline):
            with pytest.raises(Refused, match="browser that logged in"):
                await answer()
        assert (await person.confirm()).stage is Stage.DONE


async def test_of_two_who_begin_at_once_the_later_one_finishes(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        laptop = Person(world, LAPTOP)
        laptop.link = person.link
        first = person.log_in(await person.begin())
        second = laptop.log_in(await laptop.begin(), "eve")
        with pytest.raises(Refused):
            await person.come_back(first)
        await laptop.come_back(second)
        assert not (await person.look()).begun_here
        assert (await laptop.confirm()).stage is Stage.DONE
        assert world.status("person").authorized_as is not None
    assert [code.sent for code in codes(world)] == [0, 1]


async def test_who_begins_anew_gives_up_what_the_login_before_brought(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive("eve")
        question = await person.arrive("ada")
        assert question.account is not None
        assert question.account.subject == "ada"
        await until(lambda: families(world)[0].revoked_at is not None)
        await person.confirm()
        await world.fresh("person")
        assert families(world)[1].revoked_at is None


async def test_who_declines_has_it_revoked(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        question = await person.decline()
        assert (question.stage, question.may_ask_again) == (Stage.ENDED, True)
        await revoked(world)
        with pytest.raises(KeyferryError):
            await person.confirm()
        assert world.token("person") == ""


async def test_a_login_that_nobody_confirms_is_revoked(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        world.clock.jump(CONFIRM_LIFETIME)
        await over(world)
        await revoked(world)
        assert "confirmed" in (await person.look()).message
        assert world.token("person") == ""


async def test_a_login_that_takes_too_long_is_begun_again(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        address = await person.begin()
        world.clock.jump(LOGIN_LIFETIME)
        with pytest.raises(Refused):
            await person.come_back(person.log_in(address))
        assert (await person.look()).stage is Stage.LOGIN
        await person.approve()


async def test_a_code_whose_answer_is_lost_is_never_sent_again(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        world.issuer.faults.add(Fault(FaultKind.RESET_AFTER, path="/token", times=1))
        question = await person.arrive()
        assert question.stage is Stage.ENDED
        assert "lost" in question.message
        await over(world)
        await person.ask_again()
        await person.approve()
    assert [code.sent for code in codes(world)] == [1, 1]


async def test_a_code_that_did_not_reach_the_provider_is_sent_once_it_can(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        world.issuer.faults.add(Fault(FaultKind.STATUS, path="/token", times=1, status=429))
        await person.arrive()
        await until(lambda: len(families(world)) == 1)

        async def confirmable() -> bool:
            return (await person.look()).stage is Stage.CONFIRM

        for _ in range(200):
            if await confirmable():
                break
            await asyncio.sleep(0.1)
        assert (await person.confirm()).stage is Stage.DONE


async def test_an_id_token_of_another_login_is_not_believed(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        callback = person.log_in(await person.begin())
        codes(world)[0].request.nonce = "another"
        await person.come_back(callback)
        question = await person.look()
        assert question.stage is Stage.ENDED
        assert "another login" in question.message
        await revoked(world)


async def test_requests_are_pushed_where_the_server_wants_it(person: Person) -> None:
    world = person.world
    world.issuer.service.settings.requires_push = True
    async with world.broker(page_url=PAGE):
        await person.asked()
        address = await person.begin()
        assert dict(parse_qsl(urlsplit(address).query)).keys() == {"client_id", "request_uri"}
        await person.come_back(person.log_in(address))
        assert (await person.confirm()).stage is Stage.DONE
    assert codes(world)[0].request.pushed


async def test_requests_are_pushed_where_the_resource_names_the_endpoint(person: Person) -> None:
    world = person.world
    world.basics(endpoints={"pushedAuthorizationRequest": f"{world.issuer.issuer}/par"})
    async with world.broker(page_url=PAGE):
        await person.approve()
    assert codes(world)[0].request.pushed


async def test_every_step_outlives_the_process(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
    async with world.broker(page_url=PAGE):
        assert await person.asked() == person.link
        callback = person.log_in(await person.begin())
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.come_back(callback)
        assert (await person.look()).stage is Stage.CONFIRM
    async with world.broker(page_url=PAGE):
        await person.asked()
        question = await person.look()
        assert (question.stage, question.begun_here) == (Stage.CONFIRM, True)
        assert (await person.confirm()).stage is Stage.DONE
        await world.fresh("person")
    assert [code.sent for code in codes(world)] == [1]


async def test_what_is_thrown_away_is_revoked_after_a_restart(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        world.issuer.faults.add(Fault(FaultKind.STATUS, path="/revoke", status=503))
        await person.decline()
        await until(lambda: bool(world.requests("/revoke")))
    world.issuer.faults.clear()
    async with world.broker(page_url=PAGE):
        await revoked(world)


async def test_an_identity_that_goes_takes_an_unconfirmed_login_with_it(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        (world.resources / "person.yaml").unlink()
        await revoked(world)


async def test_a_login_ahead_of_time_never_touches_the_session(person: Person) -> None:
    world = person.world
    world.issuer.service.settings.access_lifetime = 30
    async with world.broker(page_url=PAGE) as broker:
        await person.approve()
        await world.fresh("person")
        assert broker.engine.login(key("person"))
        await person.asked()
        revision = world.status("person").revision
        assert (await person.arrive("eve")).stage is Stage.CONFIRM
        await world.fresh("person", revision=revision + 2)
        assert (await person.look()).stage is Stage.CONFIRM, "renewals go on meanwhile"
        revision = world.status("person").revision
        assert broker.engine.want(key("person"), 3600) == 0
        await world.fresh("person", revision=revision + 1)
        await person.decline()
        revision = world.status("person").revision
        await world.fresh("person", revision=revision + 2)
        assert broker.engine.login(key("person"))
        await person.approve("eve")
        holder = world.status("person").authorized_as
        assert holder is not None
        assert holder.subject == "eve"
        await world.fresh("person", revision=world.status("person").revision + 1)
    assert max(world.issuer.sent_refresh_tokens().values()) == 1


async def test_a_changed_resource_asks_anew_and_forgets_the_login(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        await person.arrive()
        world.write("person.yaml", identity("person", grant=LOGIN, scopes=["read"]))
        await revoked(world)
        await person.asked()
        assert (await person.look()).scopes == ("read",)
        await person.approve()
    assert codes(world)[1].request.scope == ("read",)


async def test_a_second_secret_of_the_client_is_tried_with_the_same_code(person: Person) -> None:
    world = person.world
    secrets = [{"secretKeyRef": {"name": name, "key": "secret"}} for name in ("old", "bot")]
    world.basics(client={"id": "bot", "secretsFrom": secrets})
    world.write("secrets.yaml", secret("old", secret="of last year"), secret("bot", secret=SECRET))
    async with world.broker(page_url=PAGE):
        await person.approve()
        await world.fresh("person")


async def test_without_a_page_it_says_how_to_have_one(person: Person) -> None:
    world = person.world
    async with world.broker():
        await over(world)
        status = world.status("person")
        assert status.reason is Reason.APPROVAL_REQUIRED
        assert "--page-url" in status.message
        assert "page.enabled" in status.message
    async with world.broker(page_url=PAGE):
        world.renew("person")
        await person.approve()


async def test_a_link_that_is_answered_cannot_be_begun_again(person: Person) -> None:
    async with person.world.broker(page_url=PAGE):
        await person.approve()
        with pytest.raises(NoSuchQuestion):
            await person.begin()


async def test_a_suspended_identity_says_so_to_whoever_begins(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE):
        await person.asked()
        world.write("person.yaml", identity("person", grant=LOGIN, scopes=["openid", "read"], suspend=True))
        await until(lambda: world.shown("person") is Reason.SUSPENDED)
        with pytest.raises(KeyferryError, match="suspend"):
            await person.begin()


async def test_without_a_page_a_login_ahead_of_time_says_so_once_and_the_session_goes_on(person: Person) -> None:
    world = person.world
    world.issuer.service.settings.access_lifetime = 600
    async with world.broker(page_url=PAGE):
        await person.approve()
        await until(lambda: world.status("person").ready(world.clock.now()))
    async with world.broker() as broker:
        await until(lambda: world.status("person").ready(world.clock.now()))
        for _ in range(2):
            asked = await login(broker, key("person"), PATIENCE, begin=True)
            assert asked.outcome is Outcome.PERSON
            assert "the session before it goes on" in asked.message
            assert "--page" in asked.message
        world.renew("person")
        await until(lambda: world.status("person").revision == 2)
        assert world.told.words("person").count("note") == 2


async def test_a_question_that_was_open_when_the_page_went_keeps_no_session_from_its_renewal(person: Person) -> None:
    world = person.world
    async with world.broker(page_url=PAGE) as broker:
        await person.approve()
        await until(lambda: world.status("person").ready(world.clock.now()))
        assert broker.engine.login(key("person"))
        await person.asked()
        await person.come_back(person.log_in(await person.begin()))
    async with world.broker():
        await until(lambda: world.declared("person"))
        world.renew("person")
        await until(lambda: world.status("person").revision == 2)
        assert "note" not in world.told.words("person")
        assert world.status("person").prompt is None, "nobody is sent to a page that is not there"
    async with world.broker(page_url=PAGE):
        await person.asked()
        assert (await person.look()).stage in {Stage.CONFIRM, Stage.LOGIN}
