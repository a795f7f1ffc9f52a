"""What is to be published, and what is: the words between the engine and whatever writes tokens for workloads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.model import ObjectKey


@dataclass(frozen=True, slots=True)
class Publication:
    """What is to lie where an identity's workloads look. Times are Unix seconds."""

    key: ObjectKey
    uid: str
    """Of the identity: tells it from an earlier one of the same name."""
    revision: int
    generation: int
    issued_at: float
    expires_at: float
    spec_hash: str
    files_hash: str
    files: Mapping[str, bytes] = field(repr=False)
    """Content by relative path."""


@dataclass(frozen=True, slots=True)
class Published:
    """What lies there, by its record. Believe nothing but the names unless it is ``intact``."""

    uid: str
    revision: int
    generation: int
    issued_at: float
    expires_at: float
    spec_hash: str
    files_hash: str
    names: tuple[str, ...]
    intact: bool
    """The record is ours and complete, and every file is there as it was written."""
