"""What the tests of the fault-injecting issuer share: a plain client of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import httpx

DEADLINE = 90.0
# A context made once: httpx would load the system's authorities for each client, although these speak plain HTTP.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def ask(http: httpx.AsyncClient, client: str = "bot") -> httpx.Response:
    return await http.post("/token", data={"grant_type": "client_credentials"}, auth=(client, "s3cret"))


async def refresh(http: httpx.AsyncClient, token: str, **options: Any) -> httpx.Response:
    parameters = {"grant_type": "refresh_token", "refresh_token": token}
    return await http.post("/token", data=parameters, auth=("bot", "s3cret"), **options)


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    for _ in iter(condition, True):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def fails_with(error: type[Exception], attempt: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(error):
        await attempt
