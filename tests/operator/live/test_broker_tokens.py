"""The broker API gives a pod the token of its identity, at once, and again as soon as there is another one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyferry.wire import TokenAnswer
from tests.operator.live.pods import Pod, Site, limited, prepare, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.operator.live.conftest import Field

pytestmark = pytest.mark.cluster

CONSUMERS = [{"serviceAccountName": "ingest"}]


def problem(answered: httpx.Response, status: int, reason: str) -> str:
    """Check a refusal; return what it says to people."""
    assert answered.headers["Content-Type"] == "application/problem+json"
    body = answered.json()
    assert (answered.status_code, body["reason"]) == (status, reason)
    assert body["status"] == status
    return str(body["detail"])


def token_of(answered: httpx.Response) -> TokenAnswer:
    assert answered.status_code == 200, answered.text
    return TokenAnswer.from_json(answered.json())


@pytest.fixture
async def site(field: Field) -> AsyncIterator[Site]:
    prepare(field)
    async with serving(field) as site:
        yield site


async def test_a_pod_gets_its_token_and_the_next_one_by_push(
    field: Field, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    field.apply(field.identity("nightly", consumers=CONSUMERS))
    pod = Pod.create(field, "ingest-1", inject="other, nightly")
    await field.until_ready("nightly")
    bearer = pod.token()
    answered = await site.get(bearer)
    first = token_of(answered)
    etag = answered.headers["ETag"]
    assert first.access_token.reveal() == field.token("nightly")
    assert (first.revision, first.token_type) == (1, "Bearer")
    assert {file.path for file in first.files} == {"token", "token.json"}
    declared = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "nightly", field.namespace)
    assert etag.startswith(f'"{declared["metadata"]["uid"]}.1.')
    assert "Preference-Applied" not in answered.headers
    short = await site.get(bearer, etag=etag, wait=1)
    assert (short.status_code, short.headers["Preference-Applied"], short.headers["ETag"]) == (304, "wait=1", etag)
    assert (await site.get(bearer, etag=etag)).status_code == 304
    held = asyncio.create_task(site.get(bearer, etag=etag, wait=55))
    await site.until_held()
    await asyncio.to_thread(field.renew, "nightly", "now")
    answered = await held
    second = token_of(answered)
    assert second.revision == 2
    assert second.access_token.reveal() == field.token("nightly") != first.access_token.reveal()
    assert answered.headers["ETag"] != etag
    assert answered.headers["Preference-Applied"] == "wait=55"
    assert second.age is not None
    assert 0 <= second.age < 55
    assert (await site.get(bearer, etag=f'"x", {etag}')).status_code == 200
    assert (await site.get(bearer, etag="*")).status_code == 304
    assert "keys for service-account tokens" not in caplog.text, "they are the cluster's own, and no review was needed"


async def test_what_is_in_no_secret_comes_from_the_private_state(field: Field, site: Site) -> None:
    files = [
        {"format": "Token", "name": "token"},
        {"format": "AIoD", "apiServer": "https://api.example.org/"},
        {"format": "Env", "name": "app.env", "variables": {"BEARER": "${access_token}"}},
    ]
    field.apply(field.identity("nightly", consumers=CONSUMERS, target={"type": "None", "files": files}))
    bearer = Pod.create(field, "ingest-1").token()
    # Nothing is there yet: who waits gets it as soon as it is.
    first = token_of(await site.get(bearer, wait=55))
    by_path = {file.path: file for file in first.files}
    assert set(by_path) == {"token", ".aiod/config.toml", ".aiod/token.toml", "app.env"}
    assert by_path["token"].content == first.access_token
    assert not by_path["token"].local
    assert by_path[".aiod/config.toml"].local
    assert 'auth_server = "@@keyferry:endpoint@@/"' in by_path[".aiod/config.toml"].content.reveal()
    assert by_path[".aiod/token.toml"].content.reveal().endswith('refresh_token = "@@keyferry:placeholder@@"\n')
    assert first.access_token.reveal() not in by_path[".aiod/token.toml"].content.reveal()
    assert field.target("nightly") is None
    # Other files of the same token are another answer.
    files.append({"format": "Json", "name": "token.json"})
    field.apply(field.identity("nightly", consumers=CONSUMERS, target={"type": "None", "files": files}))
    etag = (await site.get(bearer)).headers["ETag"]
    while "token.json" not in {file.path for file in first.files}:
        answered = await site.get(bearer, etag=etag, wait=5)
        if answered.status_code == 200:
            first = token_of(answered)
            etag = answered.headers["ETag"]
        else:
            first = token_of(await site.get(bearer))
    assert first.revision == 1


async def test_losing_the_right_ends_a_held_request(field: Field, site: Site) -> None:
    field.apply(*(field.identity(name, consumers=CONSUMERS) for name in ("nightly", "daily")))
    bearer = Pod.create(field, "ingest-1", inject="nightly,daily").token()
    await field.until_ready("nightly", "daily")
    etags = {name: (await site.get(bearer, name)).headers["ETag"] for name in ("nightly", "daily")}
    held = {name: asyncio.create_task(site.get(bearer, name, etag=etags[name], wait=55)) for name in etags}
    await site.until_held(2)
    field.apply(field.identity("nightly", consumers=[{"serviceAccountName": "somebody-else"}]))
    no_more = problem(await held["nightly"], 404, "NotFound")
    identity = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "daily", field.namespace)
    field.cluster.api.delete(identity)
    assert problem(await held["daily"], 404, "NotFound") == no_more
    assert problem(await site.get(bearer, "never-there"), 404, "NotFound") == no_more


async def test_a_pod_that_goes_ends_what_is_held_for_it(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field, limited(look=0.5)) as site:
        pod = Pod.create(field, "ingest-1")
        bearer = pod.token()
        await field.until_ready("nightly")
        etag = (await site.get(bearer)).headers["ETag"]
        held = asyncio.create_task(site.get(bearer, etag=etag, wait=55))
        await site.until_held()
        pod.delete()
        answered = await held
        if answered.status_code == 304:  # the machine is slow
            answered = await site.get(bearer, etag=etag, wait=55)
        problem(answered, 401, "Unauthenticated")


async def test_a_token_that_is_too_short_is_renewed_and_one_that_never_will_be_long_enough_is_told(
    field: Field, site: Site
) -> None:
    field.issuer.service.settings.access_lifetime = 600.0
    field.apply(field.identity("nightly", consumers=CONSUMERS))
    bearer = Pod.create(field, "ingest-1").token()
    await field.until_ready("nightly")
    assert token_of(await site.get(bearer, minimum="5m")).revision == 1
    advice = problem(await site.get(bearer, minimum="1h", wait=55), 409, "LifetimeTooShort")
    assert "10m" in advice
    assert "1h" in advice
    await asyncio.sleep(8)  # now it is good for less than a new one
    answered = await site.get(bearer, minimum="594", wait=55)
    while answered.status_code == 503:  # the machine was slow, so that the new one was too short as well
        assert int(answered.headers["Retry-After"]) >= 1
        answered = await site.get(bearer, minimum="594", wait=55)
    assert token_of(answered).revision > 1


async def test_no_token_is_told_with_its_reason(field: Field, site: Site) -> None:
    field.apply(field.identity("nightly", consumers=CONSUMERS, suspend=True))
    bearer = Pod.create(field, "ingest-1").token()
    await field.until_reason("nightly", "Suspended")
    answered = await site.get(bearer)
    assert "suspend" in problem(answered, 503, "Suspended")
    assert answered.headers["Retry-After"]
    answered = await site.get(bearer, wait=1)
    problem(answered, 503, "Suspended")


async def test_requests_that_cannot_be_understood(field: Field, site: Site) -> None:
    field.apply(field.identity("nightly", consumers=CONSUMERS))
    bearer = Pod.create(field, "ingest-1").token()
    for query in (
        "minimum_remaining=soon",
        "minimum_remaining=1h&minimum_remaining=2h",
        "other=1",
        "x",
        "=",
        "%ff=%00",
    ):
        answered = await site.client.get(f"{site.path()}?{query}", headers={"Authorization": f"Bearer {bearer}"})
        detail = problem(answered, 400, "BadRequest")
        assert "soon" not in detail
    await field.until_ready("nightly")
    for prefer in ("wait=soon", "wait=-1", "respond-async", "wait=99999999999999999999"):
        headers = {"Authorization": f"Bearer {bearer}", "Prefer": prefer}
        assert (await site.client.get(site.path(), headers=headers)).status_code == 200


async def test_a_drain_lets_held_requests_go_at_once_and_not_all_back_at_once(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field, limited(held_per_pod=40, burst=100, returning=2.0)) as site:
        bearer = Pod.create(field, "ingest-1").token()
        await field.until_ready("nightly")
        etag = (await site.get(bearer)).headers["ETag"]
        held = [asyncio.create_task(site.get(bearer, etag=etag, wait=55)) for _ in range(20)]
        await site.until_held(20)
        site.operator.stop()
        answers = await asyncio.gather(*held)
        later = [int(answered.headers["Retry-After"]) for answered in answers]
        for answered in answers:
            problem(answered, 503, "Unavailable")
            assert answered.headers["Connection"] == "close"
        assert max(later) - min(later) >= 2, "twenty that come back at two a second take ten seconds"


async def test_a_pod_that_asks_too_often_is_held_off_and_another_is_not(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field, limited(held_per_pod=2, burst=8, rate=0.01)) as site:
        busy, other = Pod.create(field, "busy").token(), Pod.create(field, "other").token()
        await field.until_ready("nightly")
        etag = (await site.get(busy)).headers["ETag"]
        held = [asyncio.create_task(site.get(busy, etag=etag, wait=30)) for _ in range(2)]
        await site.until_held(2)
        problem(await site.get(busy, etag=etag, wait=30), 429, "TooManyRequests")
        answers = [await site.get(busy) for _ in range(6)]
        assert [answered.status_code for answered in answers] == [200] * 4 + [429] * 2
        assert int(answers[-1].headers["Retry-After"]) > 1
        token_of(await site.get(other))
        for task in held:
            task.cancel()
        await site.until_held(0)
