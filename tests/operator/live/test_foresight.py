"""That a login ends is said in status, by a metric and in an Event before it does, on a real API server."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from keyferry_operator.process import Probes
from tests.operator.live.test_credentials import SECRET, add_bot, by_refresh_token

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LIFE = 45.0
"""Seconds that a session lasts at most; people are told when a third of it is left."""


def told(field: Field) -> list[dict[str, Any]]:
    events = field.cluster.api.items("events.k8s.io/v1", "Event", field.namespace)
    return [event for event in events if event["regarding"]["name"] == "person" and "the login behind" in event["note"]]


async def test_people_hear_of_a_logins_end_before_it_comes(field: Field) -> None:
    add_bot(field.issuer)
    field.issuer.service.settings.access_lifetime = 3600.0
    provider = field.provider()
    provider["spec"]["oauth"]["refreshTokens"] = {"maximum": f"{LIFE:.0f}s"}
    field.apply(
        provider,
        field.secret("bot", secret=SECRET),
        field.secret("seed", token=field.issuer.seed_refresh_token("bot", "ada")),
        field.identity("person", grant=by_refresh_token("seed")),
    )
    begun = time.time()
    async with field.operator() as operator:
        await field.until_ready("person")
        ends = datetime.fromisoformat(field.status("person")["reauthorizeByTime"]).timestamp()
        assert begun + LIFE - 1 <= ends <= time.time() + LIFE
        probes = Probes(operator, "127.0.0.1:0")
        await probes.start()
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                lines = (await client.get(probes.url)).text.splitlines()
        finally:
            await probes.close()
        (shown,) = [line for line in lines if line.startswith("keyferry_identity_reauthorize_by_timestamp_seconds{")]
        assert 'identity="person"' in shown
        assert float(shown.split()[-1]) == pytest.approx(ends, abs=1)
        await field.until(lambda: told(field))
        event = told(field)[0]
    assert (event["type"], event["reason"]) == ("Warning", "ApprovalRequired")
    assert f"put a new refresh token into Secret {field.namespace}/seed" in event["note"]
    assert datetime.fromisoformat(event["eventTime"]).timestamp() < ends, "while there is time to do something about it"
    assert field.status("person")["revision"] == 1, "the session serves on"
