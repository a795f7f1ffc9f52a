from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sidecar.pod import PodPlace
from tests.support.fake_broker import FakeBroker
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture
async def broker(authority: Authority, tmp_path: Path) -> AsyncIterator[FakeBroker]:
    async with FakeBroker(authority, tmp_path) as broker:
        yield broker


@pytest.fixture
def pod(broker: FakeBroker, tmp_path: Path) -> Iterator[PodPlace]:
    place = PodPlace(tmp_path, broker.url, broker.authority.certificate)
    yield place
    for client in place.clients:
        client.close()
