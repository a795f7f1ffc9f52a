"""What the approval page wants of an identity: carried out in the identity's own turns, one after the other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.errors import KeyferryError
    from keyferry.secret import SecretValue


def _future() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Wish:
    """One wish, until it is carried out or refused."""

    browser: str
    """Keyed hash of the value that the browser which wishes keeps in its cookie; empty: it has none."""
    done: asyncio.Future[str] = field(default_factory=_future, kw_only=True)

    def grant(self, result: str = "") -> None:
        """Say that it was carried out."""
        if not self.done.done():
            self.done.set_result(result)

    def refuse(self, error: KeyferryError) -> None:
        """Say why it cannot be."""
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever waits sees it; that nobody waits any more is no defect


@dataclass(slots=True, eq=False)
class Begin(Wish):
    """Begin a login; the result is the address to send the browser to."""


@dataclass(slots=True, eq=False)
class Arrive(Wish):
    """Take what the browser came back with."""

    parameters: Mapping[str, str] = field(repr=False)


@dataclass(slots=True, eq=False)
class GiveCode(Wish):
    """Take a vendor's one-time code that was typed."""

    email: SecretValue
    code: SecretValue


@dataclass(slots=True, eq=False)
class Confirm(Wish):
    """Use what the login brought."""


@dataclass(slots=True, eq=False)
class Decline(Wish):
    """Throw away what the login brought."""


@dataclass(slots=True, eq=False)
class Forget(Wish):
    """Forget what was thrown away: it is revoked, or cannot be."""

    name: str
