from __future__ import annotations

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.state import Settings, User
from keyferry.demo.token_service import TokenService
from tests.demo.asking import ISSUER, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(clock: Clock) -> TokenService:
    service = TokenService(ISSUER, clock=clock, settings=Settings(access_lifetime=60))
    service.clients.add(
        Client(
            "bot",
            secrets=("old", "new"),
            methods=(AuthMethod.POST,),
            grants=tuple(Grant),
            scopes=("openid", "read", "write"),
        )
    )
    service.add_user(User("ada", "lovelace", email="ada@example.org"))
    return service
