"""What a LabArchives login is, and what a call on its behalf needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyferry.providers.labarchives.signature import Signature
    from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook that the person has."""

    id: str
    name: str
    is_default: bool


@dataclass(frozen=True, slots=True)
class LabArchivesUser:
    """A person's login, as LabArchives describes it."""

    uid: SecretValue
    email: str
    full_name: str
    may_log_in_alone: bool
    """False where LabArchives says that this login must not be used without its person (``auto-login-allowed``)."""
    notebooks: tuple[Notebook, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedCall:
    """All that one call of one method needs beside its own parameters."""

    region: str
    """Base URL without ``/api``."""
    uid: SecretValue
    signature: Signature = field(repr=False)
    authorities: str | None = field(default=None, repr=False)
    """A PEM bundle to trust instead of the system's authorities."""
