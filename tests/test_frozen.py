from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from keyferry.frozen import replace
from keyferry.model import ObjectKey
from keyferry.record import Record


@dataclass(frozen=True, slots=True)
class Checked:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("negative")


@dataclass(frozen=True)
class WithoutSlots:
    number: int
    names: tuple[str, ...] = ()


@dataclass(slots=True)
class Counting:
    number: int
    serial: int = field(init=False, default=7)


@dataclass(frozen=True, slots=True)
class Below(ObjectKey):
    depth: int = 0


def test_a_copy_has_the_changes_and_all_else_as_it_was() -> None:
    record = Record("uid", ObjectKey("a", "b"), revision=3, refresh_idle=1.5, seed="s")
    changed = replace(record, revision=4, seed="")
    assert changed == dataclasses.replace(record, revision=4, seed="")
    assert (record.revision, record.seed) == (3, "s"), "the one before stays"
    assert replace(record) == record
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.revision = 5  # type: ignore[misc]


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError, match="depht"):
        replace(ObjectKey("a", "b"), depht=1)  # type: ignore[call-arg]


def test_what_is_more_than_its_fields_is_copied_as_python_does() -> None:
    with pytest.raises(ValueError, match="negative"):
        replace(Checked(1), number=-1)
    assert replace(WithoutSlots(1, ("a",)), number=2) == WithoutSlots(2, ("a",))
    counting = Counting(1)
    counting.serial = 8
    assert replace(counting, number=2).serial == dataclasses.replace(counting, number=2).serial
    assert replace(Below("a", "b", 1), name="c") == Below("a", "c", 1)
