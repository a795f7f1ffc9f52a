"""Codes that people give or approve work once: a broker is killed at every step that one passes.

A device code may be asked about again until it is answered (RFC 8628 3.5). A one-hour code of LabArchives is never
sent twice, whatever became of the first time, and by no other identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry.demo.clients import Grant
from tests.crash.cases import LOST, ON_THE_WIRE, Case, Terms, play, play_kills
from tests.crash.files import stage
from tests.crash.notebooks import EMAIL, STEPS, NotebookPart, one_for_each_step
from tests.crash.scene import Identity, Kind, unique
from tests.support.asking import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyferry.demo.device_codes import DeviceCode
    from tests.crash.files import FileStage
    from tests.crash.zygote import Zygote
    from tests.support.labarchives import LabArchives

pytestmark = pytest.mark.crash

DEVICE_STEPS = ("ask", "answered", "escrowed", "commit", "committed", "publish", "published", *ON_THE_WIRE)
NEVER_LEFT = {"claim"}
"""Where nothing was announced yet, so that the code is still good."""
KEPT = {"escrowed", "commit", "committed"}
"""Where the answer is in the escrow, or was taken in."""


class DeviceCase(Case):
    """A person has approved, and the broker dies on the way to the tokens."""

    grant = Grant.DEVICE_CODE.value

    @property
    def codes(self) -> list[DeviceCode]:
        codes = self.identity.issuer.service.device_codes.all
        return [code for code in codes if code.client_id == self.identity.name]

    async def redeemed(self) -> None:
        """Wait until the request of the dead broker has been worked on: the next one could ask before it."""
        await eventually(lambda: all(code.redeemed for code in self.codes))


async def test_what_a_person_approved_is_redeemed_once_and_not_lost_after_it_arrived(
    tmp_path: Path, zygote: Zygote
) -> None:
    async def go_on(case: DeviceCase) -> None:
        if case.step in LOST:
            await case.redeemed()
        case.scene.start()
        if case.step in LOST:
            await case.scene.stalled(case.identity)
            assert [code.redeemed for code in case.codes] == [True], "nobody is asked again by itself"
            case.identity.scopes = "[read]"  # asks for something else, and so anew
            case.scene.declare()
        await case.scene.renewed(case.identity)
        assert [code.redeemed for code in case.codes] == [True] * (2 if case.step in LOST else 1)
        assert not case.presented
        families = case.identity.issuer.service.refresh_tokens.families.values()
        begun = [family for family in families if family.client_id == case.identity.name]
        assert len(begun) == len(case.codes), "each code was redeemed once"

    async with stage(tmp_path, zygote) as scenes:
        scenes.issuer.service.device_codes.approver = "ada"
        scenes.issuer.service.device_codes.interval = 1.0
        await play_kills([DeviceCase(scenes, step, 1, Terms(Kind.DEVICE)) for step in DEVICE_STEPS], go_on)


class CodeCase(NotebookPart):
    """A one-hour code lies in the Secret, and the broker dies on the way to the login; each has a server of its own."""

    def __init__(self, stage: FileStage, step: str, lab: LabArchives) -> None:
        super().__init__(stage, step, Terms(Kind.LABARCHIVES, lab=lab), lab)
        self.code = self.give(self.identity, lab.code_for(EMAIL))

    def give(self, identity: Identity, code: str) -> str:
        """Put a code into an identity's Secret."""
        self.scene.give(identity, "email", EMAIL)
        self.scene.give(identity, "code", code)
        return code

    async def go_on(self) -> None:
        """Start the next broker, with another identity that was given the same code."""
        twin = Identity(
            unique("twin"), Kind.LABARCHIVES, self.identity.issuer, lab=self.lab, target=self.identity.target
        )
        self.scene.add(twin)
        self.give(twin, self.code)
        self.scene.declare()
        self.scene.start()
        await self.scene.until("the other one is refused", lambda: self.scene.reported(twin, "SeedAlreadyUsed"))
        if self.step not in KEPT | NEVER_LEFT:
            await self.scene.stalled(self.identity)
            await self.scene.finish()
            self.scene.start()  # nor after another restart
            await self.scene.stalled(self.identity)
            assert self.sent == [self.code] * (self.step in {*LOST, "arrived"})
            fresh = self.give(self.identity, self.lab.code_for(EMAIL))
            await self.logged_in()
            assert self.sent[-1] == fresh
        await self.logged_in()
        assert len(set(self.sent)) == len(self.sent), "a code is sent once"
        assert self.scene.record(self.identity)["refresh_token"] == self.lab.person(EMAIL).uid

    async def logged_in(self) -> None:
        await self.scene.until("it has its login", lambda: self.scene.reported(self.identity, "Issued"))


@pytest.fixture
def labs() -> Iterator[list[LabArchives]]:
    with one_for_each_step() as servers:
        yield servers


async def test_a_one_hour_code_is_sent_once_and_by_one_identity(
    tmp_path: Path, zygote: Zygote, labs: list[LabArchives]
) -> None:
    async def act(case: CodeCase) -> None:
        await case.die()
        await case.go_on()

    async with stage(tmp_path, zygote) as scenes:
        await play([CodeCase(scenes, step, lab) for step, lab in zip(STEPS, labs, strict=True)], act)
