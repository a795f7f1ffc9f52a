"""Answers for the page whatever a test lays down, and remembers what was asked."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyferry.errors import NoSuchQuestion, Refused
from keyferry.model import ObjectKey
from keyferry.question import Account, DeviceCode, Overview, Question, Stage
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.errors import KeyferryError

LINK, VIEWER = SecretValue("link-" + "x" * 40), SecretValue("viewer-token")
PATH = f"/approve/{LINK.reveal()}"
ADA = Account("5f0c1f9e-7f6b-4b0e-9a35-1d2c3b4a5f60", "ada@example.org", "Ada Lovelace")


def question(stage: Stage, **changes: object) -> Question:
    """Return a question as an engine would put it."""
    plain = Question(
        identity=ObjectKey("batch", "nightly-ingest"),
        provider="TokenProvider/aiod",
        provider_host="auth.example.org",
        grant="DeviceCode" if stage is Stage.DEVICE else "AuthorizationCode",
        stage=stage,
        expires_at=time.time() + 560,
        scopes=("openid", "offline_access", "read:data"),
        audiences=("https://api.example.org",),
        target="the Secret nightly-ingest-token in the namespace batch",
        consumers=("service account ingest", "identity reports"),
        expected="ada@example.org",
        device=device() if stage is Stage.DEVICE else None,
        account=ADA if stage in {Stage.CONFIRM, Stage.DONE} else None,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def device(provider: str = "https://auth.example.org") -> DeviceCode:
    return DeviceCode("WDJB-MJHT", f"{provider}/device", f"{provider}/device?user_code=WDJB-MJHT")


@dataclass
class FakeApprovals:
    """Implements ``keyferry.question.Approvals``."""

    current: Question = field(default_factory=lambda: question(Stage.LOGIN))
    address: str = "https://auth.example.org/authorize?state=abc"
    trouble: KeyferryError | None = None
    asked: list[tuple[object, ...]] = field(default_factory=list)
    identities: list[Overview] = field(default_factory=list)

    async def question(self, link: SecretValue, browser: SecretValue | None) -> Question:
        return self._answer(link, "question", browser)

    async def begin(self, link: SecretValue, browser: SecretValue) -> str:
        self._answer(link, "begin", browser)
        return self.address

    async def arrive(
        self, provider_uid: str, browser: SecretValue | None, parameters: Mapping[str, str]
    ) -> SecretValue:
        self._answer(LINK, "arrive", provider_uid, browser, dict(parameters))
        return LINK

    async def give_code(self, link: SecretValue, browser: SecretValue, email: str, code: SecretValue) -> Question:
        return self._answer(link, "code", browser, email, code)

    async def confirm(self, link: SecretValue, browser: SecretValue) -> Question:
        return self._answer(link, "confirm", browser)

    async def decline(self, link: SecretValue, browser: SecretValue) -> Question:
        return self._answer(link, "decline", browser)

    async def ask_again(self, link: SecretValue) -> Question:
        return self._answer(link, "again")

    async def overview(self, viewer: SecretValue) -> list[Overview]:
        if viewer != VIEWER:
            raise Refused("This token may not list any identity.")
        return self.identities

    def _answer(self, link: SecretValue, *asked: object) -> Question:
        self.asked.append(asked)
        if self.trouble is not None:
            raise self.trouble
        if link != LINK:
            raise NoSuchQuestion("no question goes by this link")
        return self.current


def overviews(now: float) -> list[Overview]:
    """Return a list as an installation has it."""
    return [
        Overview(
            ObjectKey("batch", "nightly-ingest"),
            "TokenProvider/aiod",
            "ClientCredentials",
            "Fresh",
            "",
            now + 3000,
            now + 1800,
            None,
        ),
        Overview(
            ObjectKey("lab", "plate-reader-archive"),
            "TokenProvider/labarchives",
            "LabArchivesLogin",
            "Asking",
            "a person must log in again",
            None,
            None,
            None,
            f"http://page.example.org{PATH}",
        ),
        Overview(
            ObjectKey("lab", "beamline"),
            "ClusterTokenProvider/keycloak",
            "DeviceCode",
            "Renewing",
            "",
            now + 240,
            now - 2,
            now + 9 * 86400,
        ),
    ]
