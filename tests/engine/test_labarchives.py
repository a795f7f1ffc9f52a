"""LabArchives: a one-hour code is redeemed once, and the login behind it looked after from then on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.errors import Reason, RetryClass
from keyferry.question import Account
from tests.engine.world import Document, key, reference, resource, secret, until
from tests.support.labarchives import LabArchives

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.record import Record
    from tests.engine.world import World

EMAIL = "ada@example.org"
CODE: Document = {
    "type": "LabArchivesCode",
    "labArchivesCode": {"emailFrom": reference("login", "email"), "codeFrom": reference("login", "code")},
}


def provider(server: LabArchives) -> Document:
    spec = {
        "type": "LabArchives",
        "labarchives": {
            "url": server.url,
            "accessKeyIdFrom": reference("organization", "id"),
            "accessPasswordFrom": reference("organization", "password"),
        },
    }
    return resource("TokenProvider", "lab", spec)


def notebook(name: str = "notebook", **spec: Any) -> Document:
    filled = {
        "providerRef": {"name": "lab"},
        "grant": CODE,
        "target": {"type": "None", "files": [{"format": "LabArchives"}]},
    }
    return resource("ServiceIdentity", name, filled | spec)


@pytest.fixture
def server(world: World) -> Iterator[LabArchives]:
    with LabArchives() as server:
        world.write("lab.yaml", provider(server), notebook())
        world.write("organization.yaml", secret("organization", id=server.access_key_id, password="pwd-demo-123"))
        give(world, server.code_for(EMAIL))
        server.clock_offset = world.clock.now() - server.now()
        yield server


def give(world: World, code: str, email: str = EMAIL) -> None:
    """Put a code into the Secret, as a person does."""
    world.write("login.yaml", secret("login", email=email, code=code))


async def record(world: World, name: str = "notebook") -> Record:
    assert world.running is not None
    entry = world.running.engine.roster.entries[key(name)]
    held = await world.running.engine._ports.store.read(key(name), entry.uid)
    assert held is not None
    return held.record


async def logged_in(world: World, revision: int = 1) -> None:
    def done() -> bool:
        status = world.status("notebook")
        return status.revision >= revision and status.ready(world.clock.now()) and status.failure_count == 0

    await until(done)


async def person_needed(world: World) -> None:
    await until(lambda: world.status("notebook").retry is RetryClass.NEEDS_PERSON)


async def test_a_code_becomes_a_login_that_is_asked_about_and_never_redeemed_again(
    world: World, server: LabArchives
) -> None:
    async with world.broker():
        await logged_in(world)
        uid = server.person(EMAIL).uid
        held = await record(world)
        assert held.refresh_token is not None
        assert held.refresh_token.reveal() == uid
        world.renew("notebook")
        await logged_in(world, 2)
    async with world.broker():
        await logged_in(world, 2)
        world.renew("notebook")
        await logged_in(world, 3)
    assert len(server.redemptions) == 1
    assert len(server.called("user_access_info")) == 1
    assert len(server.called("user_info_via_id")) == 2
    assert not world.file("notebook").parent.exists(), "nothing of it is published"


async def test_a_new_code_is_a_new_login(world: World, server: LabArchives) -> None:
    async with world.broker():
        await logged_in(world)
        give(world, server.code_for("eve@example.org"), "eve@example.org")
        await until(lambda: len(server.redemptions) == 2)
        world.renew("notebook")
        await logged_in(world, 2)
        held = await record(world)
        assert held.refresh_token is not None
        assert held.refresh_token.reveal() == server.person("eve@example.org").uid


@pytest.mark.parametrize("offset", [-7200.0, 7200.0])
async def test_a_clock_that_is_off_is_set_by_the_server_and_the_code_not_lost(
    world: World, server: LabArchives, offset: float
) -> None:
    server.clock_offset += offset
    person = server.person(EMAIL)
    person.codes = {code: until + offset for code, until in person.codes.items()}
    async with world.broker():
        await logged_in(world)
    assert len(server.redemptions) == 1
    assert [call.error for call in server.called("user_access_info")] == [4504, 0]
    assert len(server.called("epoch_time")) == 1


async def test_a_refused_code_asks_for_another_and_is_not_sent_again(world: World, server: LabArchives) -> None:
    give(world, "made-up")
    async with world.broker():
        await person_needed(world)
        status = world.status("notebook")
        assert status.reason is Reason.APPROVAL_REQUIRED
        assert "made-up" not in status.message
        await asyncio.sleep(0.5)
        world.renew("notebook")
        await asyncio.sleep(0.5)
        assert len(server.called("user_access_info")) == 1
        give(world, server.code_for(EMAIL))
        await logged_in(world)


async def test_a_refused_code_leaves_the_login_before_it_in_force(world: World, server: LabArchives) -> None:
    async with world.broker():
        await logged_in(world)
        give(world, "made-up")
        await until(lambda: len(server.called("user_access_info")) == 2)
        await logged_in(world)
        world.renew("notebook")
        await logged_in(world, 2)
        held = await record(world)
        assert held.refresh_token is not None
        assert held.refresh_token.reveal() == server.person(EMAIL).uid


async def test_a_login_that_ended_needs_its_person(world: World, server: LabArchives) -> None:
    async with world.broker():
        await logged_in(world)
        server.person(EMAIL).session_over = True
        world.renew("notebook")
        await person_needed(world)
        assert world.status("notebook").reason is Reason.APPROVAL_REQUIRED
        give(world, server.code_for(EMAIL))
        await logged_in(world, 2)


async def test_a_login_that_its_person_must_attend_is_not_used(world: World, server: LabArchives) -> None:
    server.person(EMAIL).auto_login_allowed = False
    async with world.broker():
        await until(lambda: world.status("notebook").stalled())
        assert "auto-login-allowed" in world.status("notebook").message
        assert not world.status("notebook").ready(world.clock.now())


async def test_whose_login_it_is_is_known_and_the_wrong_ones_is_refused(world: World, server: LabArchives) -> None:
    world.write("lab.yaml", provider(server), notebook(expectedSubject={"email": EMAIL}))
    async with world.broker():
        await logged_in(world)
        assert world.status("notebook").authorized_as == Account(email=EMAIL)
        give(world, server.code_for("eve@example.org"), "eve@example.org")
        await until(lambda: len(server.redemptions) == 2)
        world.renew("notebook")
        await logged_in(world, 2)
        held = await record(world)
        assert held.refresh_token is not None
        assert held.refresh_token.reveal() == server.person(EMAIL).uid, "the login before it goes on"
        assert world.status("notebook").authorized_as == Account(email=EMAIL)
    assert any("eve@example.org" in event.message for event in world.told.events)
    assert len(server.called("user_access_info")) == 2


async def test_the_code_of_one_identity_is_not_anothers(world: World, server: LabArchives) -> None:
    async with world.broker():
        await logged_in(world)
        world.write("other.yaml", notebook("other"))
        await until(lambda: world.declared("other") and world.status("other").retry is RetryClass.NEEDS_PERSON)
        assert world.status("other").reason is Reason.SEED_ALREADY_USED
    assert len(server.called("user_access_info")) == 1


async def test_an_answer_that_is_lost_is_never_asked_for_twice(world: World, server: LabArchives) -> None:
    def lose() -> None:
        raise ConnectionResetError

    server.after_redemption = lose
    async with world.broker():
        await until(lambda: len(server.redemptions) == 1)
        await until(lambda: world.status("notebook").retry is not None)
        await person_needed(world)
        assert "may be used up" in world.status("notebook").message
        server.after_redemption = None
        give(world, server.code_for(EMAIL))
        await logged_in(world)
    assert len(server.called("user_access_info")) == 2


async def test_a_wrong_access_key_is_the_administrators_to_mend(world: World, server: LabArchives) -> None:
    world.write("organization.yaml", secret("organization", id=server.access_key_id, password="wrong"))
    async with world.broker():
        await until(lambda: world.status("notebook").stalled())
        assert world.status("notebook").reason is Reason.CLIENT_REJECTED
        world.write("organization.yaml", secret("organization", id=server.access_key_id, password="pwd-demo-123"))
        await logged_in(world)
    assert len(server.redemptions) == 1
