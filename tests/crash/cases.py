"""What may befall an identity, on any kind of stage: a kill at a step, or an answer that is lost."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from tests.crash.scene import LIFE, TIMEOUT, Identity, Kind, Scene, unique
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from tests.support.issuer import FaultIssuer
    from tests.support.labarchives import LabArchives

KILLED = -signal.SIGKILL
LEDGER_STEPS = ("claim", "claimed", "spend", "answered", "escrowed", "commit", "committed", "publish", "published")
ON_THE_WIRE = {
    "arrived": FaultKind.STALL_BEFORE,
    "late": FaultKind.LATENCY,
    "spent": FaultKind.STALL_AFTER,
}
"""Steps that only the issuer sees: the request is there; it is there and will be worked on; it was worked on."""
STEPS = (*LEDGER_STEPS, *ON_THE_WIRE)
LOST = {"answered", "late", "spent"}
"""Where the refresh token is spent and the answer is gone."""
IN_DOUBT = {"claimed", "spend", "arrived", *LOST}

ALL_AT_ONCE = 1000
LONGEST_LIFE = 300.0
"""Seconds until a broker must have come to where it is killed, on any machine."""


@dataclass(frozen=True)
class Terms:
    """What the identities of a test have in common."""

    kind: Kind = Kind.REFRESH
    refresh_tokens: str = "{}"
    life: float = LIFE
    renewal: str = "{}"
    timeout: int = TIMEOUT
    lab: LabArchives | None = None

    def identity(self, name: str, issuer: FaultIssuer) -> Identity:
        """Return an identity on these terms, with a name of its own."""
        return Identity(
            unique(name),
            self.kind,
            issuer,
            self.refresh_tokens,
            self.life,
            self.renewal,
            timeout=self.timeout,
            lab=self.lab,
            # A login at LabArchives is not published: requests are signed with it.
            target="{type: None, files: [{format: LabArchives}]}" if self.lab is not None else "{}",
        )


class Stage(Protocol):
    """Where scenes are set up: an issuer, and whoever reads what is published."""

    issuer: FaultIssuer

    def scene(self, name: str, identity: Identity) -> Scene:
        """Set up a scene with one identity."""


class Part:
    """One identity in a scene of its own, and what befalls it."""

    def __init__(self, stage: Stage, name: str, terms: Terms) -> None:
        self.name = name
        self.identity = terms.identity(name, stage.issuer)
        self.scene = stage.scene(name, self.identity)

    @property
    def presented(self) -> list[list[str]]:
        """What became of each refresh token that was presented more than once."""
        spends = self.scene.spends(self.identity)
        return [[shown.outcome.value for shown in spend.presentations] for spend in spends if spend.presented > 1]

    @property
    def reasons(self) -> list[str]:
        """What was reported of it since the last start."""
        return [status["reason"] for status in self.scene.statuses(self.identity)]

    async def killed(self) -> None:
        """Wait until the last broker was killed."""
        status = await self.scene.brokers[-1].ended(LONGEST_LIFE)
        assert status == KILLED, f"it ended with {status} before it was killed; {self.scene.last_words()}"

    def published(self) -> tuple[bytes, bytes]:
        """Return what workloads read now."""
        return self.scene.published(self.identity)


class Case(Part):
    """One kill: at which step, and at which of its passings."""

    grant = "refresh_token"
    """Which requests the steps on the wire are of."""

    def __init__(self, stage: Stage, step: str, passing: int, terms: Terms) -> None:
        super().__init__(stage, f"{step}-{passing}", terms)
        self.step = step
        self.passing = passing

    async def die(self) -> None:
        """Run a broker until it dies."""
        if self.step not in ON_THE_WIRE:
            self.scene.start(step=self.step, passing=self.passing)
        else:
            kind = ON_THE_WIRE[self.step]
            fault = Fault(
                kind,
                client=self.identity.name,
                grant=self.grant,
                skip=self.passing - 1,
                times=1,
                delay=0.5 if kind is FaultKind.LATENCY else None,
            )
            self.identity.issuer.faults.add(fault)
            self.scene.start()
            await self.scene.until("the request is at the issuer", self._on_the_wire)
            self.scene.brokers[-1].kill()
        await self.killed()

    def _on_the_wire(self) -> bool:
        return any(
            request.client == self.identity.name
            and request.fault is not None
            and request.processed == (self.step == "spent")
            for request in self.identity.issuer.requests
        )


P = TypeVar("P", bound=Part)
C = TypeVar("C", bound=Case)


async def play(parts: Iterable[P], act: Callable[[P], Awaitable[None]]) -> None:
    """Have every part act, all of them side by side; then end it in good order and judge its refresh tokens."""

    async def one(part: P) -> None:
        try:
            await act(part)
            await part.scene.finish()
            assert not part.scene.verdict().faults
        except AssertionError as error:
            error.add_note(f"in {part.name}; it reported {part.reasons}")
            raise
        finally:
            await part.scene.close()

    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(one(part))


async def play_kills(cases: Iterable[C], go_on: Callable[[C], Awaitable[None]], *, at_once: int = ALL_AT_ONCE) -> None:
    """Kill at every case's step, ``at_once`` of them at a time, and judge what the next broker makes of it."""
    places = asyncio.Semaphore(at_once)

    async def act(case: C) -> None:
        async with places:
            await case.die()
        await go_on(case)

    await play(cases, act)
