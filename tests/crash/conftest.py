from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash.zygote import Zygote

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Return the process that forks brokers."""
    with Zygote() as zygote:
        yield zygote
