"""Keeps the garbage collector from going over 10,000 resources again and again, which stay anyway."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY: Final = 1000
"""Identities from which on it is worth while."""
YOUNG: Final = 10_000
"""Objects that are made before the collector looks at them: most of an exchange's are gone by themselves by then."""


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Collect nothing while resources are read and the schedule is built: nearly all of it stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def settle(identities: int) -> None:
    """Leave what is there by now out of later collections, where there is much of it, and collect more seldom."""
    if identities >= MANY:
        gc.freeze()
        gc.set_threshold(YOUNG)
