"""What a sidecar relies on, asked of a broker: of the operator's, and of the one that the tests put in its place."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from keyferry.sidecar.client import BrokerRefusedError
from keyferry.wire import HeldReport
from tests.sidecar.pod import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.sidecar.pod import PodPlace


async def refusal(asking: Awaitable[object]) -> tuple[int, str]:
    """Return the status and the reason of a refusal."""
    with pytest.raises(BrokerRefusedError) as raised:
        await asking
    problem = raised.value.problem
    assert problem.detail
    return problem.status, problem.reason


async def ask_everything(pod: PodPlace, renew: Callable[[], Awaitable[object]], held: Callable[[], int]) -> None:
    """Ask for ``nightly``, which has a token of an hour; ``held`` counts the requests that wait at the broker."""
    client = pod.client()
    first = await client.token("nightly")
    assert first.token is not None
    assert first.token.revision >= 1
    assert first.token.expires_at - first.token.issued_at == 3600
    assert first.token.access_token
    assert "token" in {file.path for file in first.token.files}
    assert first.etag.startswith('"')
    assert f".{first.token.revision}." in first.etag
    again = await client.token("nightly", etag=first.etag)
    assert (again.token, again.etag) == (None, first.etag)
    lapsed = await client.token("nightly", etag=first.etag, wait=1)
    assert (lapsed.token, lapsed.leaving) == (None, False)
    assert (await client.token("nightly", minimum=60.0)).etag == first.etag

    waiting = asyncio.create_task(client.token("nightly", etag=first.etag, wait=55))
    async with asyncio.timeout(PATIENCE * 3):
        while not held():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)
        await renew()
        second = await waiting
    assert second.token is not None
    assert second.token.revision == first.token.revision + 1
    assert second.token.age is not None
    assert second.etag != first.etag
    await client.report("nightly", HeldReport(second.token.revision, time.time(), 0.5))

    assert await refusal(client.token("nightly", minimum=86400.0)) == (409, "LifetimeTooShort")
    assert await refusal(client.token("never-there")) == (404, "NotFound")
    assert await refusal(client.report("never-there", HeldReport(1, time.time()))) == (404, "NotFound")
    for what in ("user", "clock", "refused"):
        assert await refusal(client.labarchives("nightly", what)) == (404, "NotOffered")
    assert await refusal(client.labarchives("nightly", "signature", {"method": "add_entry"})) == (404, "NotOffered")
    pod.token.write_text("no-token-of-a-pod")
    assert await refusal(client.token("nightly")) == (401, "Unauthenticated")
    assert await refusal(client.token("never-there")) == (401, "Unauthenticated")
