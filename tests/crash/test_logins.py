"""A broker is killed at every step of a login: its code is sent once at most, and what arrived is not lost."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import pytest

from keyferry.demo.clients import Grant
from keyferry.demo.refresh_tokens import RefreshPolicy, Rotation
from keyferry.demo.wire import FormRequest
from tests.crash.cases import LOST, Case, Part, Terms, play
from tests.crash.files import FileScene, stage
from tests.crash.notebooks import EMAIL, STEPS, NotebookPart, one_for_each_step
from tests.crash.scene import APPROVAL, PAGE, Kind
from tests.crash.visitor import AGAIN, welcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from keyferry.demo.authorization_codes import AuthorizationCode
    from tests.crash.cases import Stage
    from tests.crash.zygote import Zygote
    from tests.support.labarchives import LabArchives

pytestmark = pytest.mark.crash

TIMEOUT = 5
"""Seconds after which a request is given up: a code whose answer takes longer is lost, on a slow machine as well."""
KEPT = {"claim", "escrowed", "commit", "committed", "publish", "published"}
"""Where the code was not sent yet, or what it brought is in the escrow or was taken in."""


def with_page(part: Part) -> FileScene:
    """Have a part's brokers know of a page."""
    assert isinstance(part.scene, FileScene)
    part.scene.page_url = PAGE
    return part.scene


@contextlib.asynccontextmanager
async def visited(part: LoginCase | NotebookCase) -> AsyncIterator[None]:
    """Have the person's logins answered meanwhile."""
    welcoming = asyncio.create_task(welcome(part.base, part.log_in))
    try:
        yield
    finally:
        welcoming.cancel()
        await asyncio.gather(welcoming, return_exceptions=True)


class LoginCase(Case):
    """A person logs in, and the broker dies on the way to the session."""

    grant = Grant.AUTHORIZATION_CODE.value

    def __init__(self, stage: Stage, step: str) -> None:
        super().__init__(stage, step, 1, Terms(Kind.LOGIN, refresh_tokens="{rotation: Reusable}", timeout=TIMEOUT))
        self.base = with_page(self).base

    def log_in(self, address: str) -> str:
        """Log in at the issuer."""
        service = self.identity.issuer.service
        return service.approve(service.authorize(FormRequest(dict(parse_qsl(urlsplit(address).query)))), "ada")

    @property
    def codes(self) -> list[AuthorizationCode]:
        codes = self.identity.issuer.service.authorization_codes.all
        return [code for code in codes if code.request.client_id == self.identity.name]


async def test_a_login_is_redeemed_once_and_confirmed_after_any_kill(tmp_path: Path, zygote: Zygote) -> None:
    async def act(case: LoginCase) -> None:
        async with visited(case):
            await case.die()
            case.scene.start()
            if case.step not in KEPT:
                await case.scene.until(
                    "it is lost", lambda: _ended(case) and case.scene.reported(case.identity, APPROVAL)
                )
                sent = [code.sent for code in case.codes]
                assert sent in ([0], [1])
                await case.scene.finish()
                case.scene.start()  # nor is it sent after another restart
                await case.scene.stalled(case.identity)
                await case.scene.pause(0.5)
                assert [code.sent for code in case.codes] in ([0], [1]), "nobody is asked again by itself"
                (case.base / AGAIN).touch()
            await case.scene.renewed(case.identity)
        sent = [code.sent for code in case.codes]
        assert max(sent) == 1, "a code is sent once"
        assert len(sent) == (1 if case.step in KEPT else 2)

    # What becomes of the session later is another test's.
    async with stage(tmp_path, zygote, RefreshPolicy(rotation=Rotation.REUSABLE)) as scenes:
        steps = (*STEPS, "publish", "published")
        await play([LoginCase(scenes, step) for step in steps], act)


class NotebookCase(NotebookPart):
    """The same at LabArchives; each case has a server of its own."""

    def __init__(self, stage: Stage, step: str, lab: LabArchives) -> None:
        super().__init__(stage, step, Terms(Kind.LABARCHIVES_LOGIN, lab=lab, timeout=TIMEOUT), lab)
        self.base = with_page(self).base

    def log_in(self, address: str) -> str:
        """Log in at LabArchives."""
        return self.lab.callback_of(address, EMAIL)


def _ended(part: Part) -> bool:
    return bool((part.scene.record(part.identity).get("approval") or {}).get("ended"))


@pytest.fixture
def labs() -> Iterator[list[LabArchives]]:
    with one_for_each_step() as servers:
        yield servers


async def test_a_login_at_labarchives_is_redeemed_once_and_confirmed_after_any_kill(
    tmp_path: Path, zygote: Zygote, labs: list[LabArchives]
) -> None:
    async def act(case: NotebookCase) -> None:
        async with visited(case):
            await case.die()
            case.scene.start()
            if case.step not in KEPT:
                await case.scene.until(
                    "it is lost", lambda: _ended(case) and case.scene.reported(case.identity, APPROVAL)
                )
                before = case.sent
                assert len(before) == (case.step in {*LOST, "arrived"})
                await case.scene.finish()
                case.scene.start()
                await case.scene.stalled(case.identity)
                await case.scene.pause(0.5)
                assert case.sent == before, "nor is it sent after another restart"
                (case.base / AGAIN).touch()
            await case.scene.until("it has its login", lambda: case.scene.reported(case.identity, "Issued"))
        assert len(set(case.sent)) == len(case.sent), "a code is sent once"
        assert case.scene.record(case.identity)["refresh_token"] == case.lab.person(EMAIL).uid

    async with stage(tmp_path, zygote) as scenes:
        await play([NotebookCase(scenes, step, lab) for step, lab in zip(STEPS, labs, strict=True)], act)
