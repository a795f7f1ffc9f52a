from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.clocks import FastClock
from tests.engine.world import World
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def clock() -> FastClock:
    return FastClock()


@pytest.fixture
async def issuer(clock: FastClock) -> AsyncIterator[FaultIssuer]:
    async with FaultIssuer(clock=clock.now) as issuer:
        yield issuer


@pytest.fixture
async def world(tmp_path: Path, issuer: FaultIssuer, clock: FastClock) -> World:
    return World(tmp_path, issuer, clock)
