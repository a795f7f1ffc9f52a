"""A broker dies while it redeems a code of LabArchives; each case has a server of its own."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from tests.crash.cases import KILLED, ON_THE_WIRE, Part
from tests.support.labarchives import LabArchives

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crash.cases import Stage, Terms

EMAIL = "ada@example.org"
PATIENCE = 180.0
STEPS = ("claim", "claimed", "spend", "answered", "escrowed", "commit", "committed", *ON_THE_WIRE)
"""What a code passes on the way to its login."""


class NotebookPart(Part):
    """An identity of LabArchives whose broker is killed at ``step``."""

    def __init__(self, stage: Stage, step: str, terms: Terms, lab: LabArchives) -> None:
        super().__init__(stage, step, terms)
        self.lab = lab
        self.step = step
        self._there = threading.Event()
        self._go_on = threading.Event()

    @property
    def sent(self) -> list[str]:
        """Every code that was sent to be redeemed, in order."""
        return [call.parameters["password"] for call in self.lab.called("user_access_info")]

    async def die(self) -> None:
        """Run a broker until it dies."""
        if self.step not in ON_THE_WIRE:
            self.scene.start(step=self.step)
        else:
            if self.step == "spent":
                self.lab.after_redemption = self._hold
            else:
                self.lab.before_answer("user_access_info", self._hold)
            self.scene.start()
            await self.scene.until("the code is on its way", self._there.is_set)
            self.scene.brokers[-1].kill()
            self.lab.after_redemption = None
            if self.step == "arrived":
                self.lab.person(EMAIL).codes.clear()  # what is held goes nowhere
            self._go_on.set()
        assert await self.scene.brokers[-1].ended(PATIENCE) == KILLED

    def _hold(self) -> None:
        self._there.set()
        self._go_on.wait(PATIENCE)


@contextlib.contextmanager
def one_for_each_step() -> Iterator[list[LabArchives]]:
    """Serve LabArchives once for each of ``STEPS``."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(LabArchives()) for _ in STEPS]
