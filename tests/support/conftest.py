from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.demo.clients import Client, Grant
from tests.support.asking import DEADLINE, NO_TLS
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def issuer() -> AsyncIterator[FaultIssuer]:
    async with FaultIssuer() as issuer:
        issuer.clients.add(Client("bot", secrets=("s3cret",), grants=tuple(Grant), scopes=("read",)))
        yield issuer


@pytest.fixture
async def http(issuer: FaultIssuer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=issuer.url, trust_env=False, timeout=DEADLINE, verify=NO_TLS) as client:
        yield client
