from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.providers.labarchives import AccessKey, LabArchivesUser, Notebook, SignedCall, sign
from keyferry.secret import SecretValue
from keyferry.sidecar.source import BrokerSource
from keyferry.web.source import NotAllowed, NotOffered, Unavailable
from keyferry.wire import Problem, encode_call, encode_user, timestamp
from tests.sidecar.pod import PLACEHOLDER, until

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.sidecar.follow import Follower
    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker

KEY = AccessKey(SecretValue("AKID"), SecretValue("password"))


@pytest.fixture
def follower(pod: PodPlace) -> Follower:
    return pod.follower("notebook")


@pytest.fixture
def source(pod: PodPlace, follower: Follower) -> BrokerSource:
    return BrokerSource(follower, pod.client(), PLACEHOLDER)


async def test_the_last_answer_serves_while_it_is_good(
    broker: FakeBroker, follower: Follower, source: BrokerSource
) -> None:
    broker.publish("notebook", "one", lifetime=600.0)
    await follower.step()
    broker.stop()
    token = await source.token()
    assert (token.access_token.reveal(), token.token_type, token.revision, token.scope) == ("one", "Bearer", 1, "read")
    assert token.expires_at > time.time() + 500


async def test_a_token_that_is_about_to_lapse_is_waited_for(
    broker: FakeBroker, follower: Follower, source: BrokerSource
) -> None:
    broker.publish("notebook", "old", lifetime=2.0)
    await follower.step()
    await until(lambda: follower.current is None or follower.current.expires_at < time.time() + 0.4, "it to age")
    asked = asyncio.create_task(source.token())
    await asyncio.sleep(0.05)
    assert not asked.done()
    broker.publish("notebook", "new")
    await follower.step()
    assert (await asked).access_token.reveal() == "new"


async def test_none_comes_where_there_is_none(broker: FakeBroker, pod: PodPlace, follower: Follower) -> None:
    source = BrokerSource(follower, pod.client(), PLACEHOLDER, patience=0.05)
    broker.longest_wait = 0.05
    with pytest.raises(Unavailable, match="not given a token yet"):
        await source.token()
    broker.publish("notebook", "old", lifetime=-5.0)
    broker.problems["notebook"] = Problem(409, "ApprovalRequired", "log in")
    for problem in ({}, broker.problems):
        broker.problems = problem
        await follower.step()
    with pytest.raises(Unavailable, match="ApprovalRequired: log in") as raised:
        await source.token()
    assert raised.value.person


ENDPOINT = "http://127.0.0.1:7531"


async def test_the_last_answer_serves_a_sidecar_that_is_started_again(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("notebook", "one", lifetime=600.0)
    before = pod.follower("notebook", endpoint=ENDPOINT)
    await before.step()
    broker.stop()
    again = pod.follower("notebook", endpoint=ENDPOINT)
    await again.step()
    token = await BrokerSource(again, pod.client(), PLACEHOLDER).token()
    first = await BrokerSource(before, pod.client(), PLACEHOLDER).token()
    assert token == dataclasses.replace(first, expires_at=token.expires_at, issued_at=token.issued_at)
    assert 0 <= first.expires_at - token.expires_at < 1, "written down in whole seconds, and never later"
    assert token.confirmed_at is not None
    assert token.confirmed_at <= time.time()
    await broker.start()
    broker.publish("notebook", "two")
    await again.step()
    assert (await BrokerSource(again, pod.client(), PLACEHOLDER).token()).access_token.reveal() == "two"


async def test_what_is_kept_for_that_is_the_sidecars_alone(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("notebook", "one", lifetime=600.0)
    await pod.follower("notebook").step()
    kept = pod.directory / ".keyferry/tokens/notebook"
    assert not kept.exists(), "nobody asks for it where there are no endpoints"
    await pod.follower("notebook", endpoint=ENDPOINT).step()
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert pod.follower("notebook", endpoint=ENDPOINT).current is not None
    whole = kept.read_bytes()
    for spoilt in (b"", b"{}", whole[:-9], b"[" * 9000, b"\xff"):
        kept.write_bytes(spoilt)
        assert pod.follower("notebook", endpoint=ENDPOINT).current is None
    kept.write_bytes(whole)
    kept.chmod(0o666)
    assert pod.follower("notebook", endpoint=ENDPOINT).current is None, "anybody may have written it"
    kept.unlink()
    kept.symlink_to(pod.directory / "elsewhere")
    (pod.directory / "elsewhere").write_bytes(whole)
    assert pod.follower("notebook", endpoint=ENDPOINT).current is None


async def test_a_mounted_secret_serves_the_endpoints_as_well(broker: FakeBroker, pod: PodPlace, tmp_path: Path) -> None:
    broker.publish("notebook", "fresh")
    broker.stop()
    now = time.time()
    described = {
        "access_token": "mounted",
        "token_type": "Bearer",
        "issued_at": timestamp(now - 60),
        "expires_at": timestamp(now + 600),
        "revision": 3,
    }
    (tmp_path / "token.json").write_text(json.dumps(described))
    follower = pod.follower("notebook", endpoint=ENDPOINT, fallback=tmp_path)
    await follower.step()
    source = BrokerSource(follower, pod.client(), PLACEHOLDER)
    token = await source.token()
    assert (token.access_token.reveal(), token.revision, token.confirmed_at) == ("mounted", 3, None)
    await broker.start()
    await follower.step()
    assert (await source.token()).access_token.reveal() == "fresh"


async def test_a_login_is_no_token(broker: FakeBroker, follower: Follower, source: BrokerSource) -> None:
    broker.publish("notebook", files={})
    answer = broker.identities["notebook"]
    broker.identities["notebook"] = type(answer)(SecretValue(""), "", answer.issued_at, answer.expires_at, "", 1)
    await follower.step()
    with pytest.raises(NotOffered):
        await source.token()


async def test_the_broker_signs(broker: FakeBroker, source: BrokerSource) -> None:
    broker.publish("notebook", files={})
    call = SignedCall("https://api.labarchives.com", SecretValue("uid"), sign(KEY, "add_entry", 5.0))
    user = LabArchivesUser(SecretValue(""), "ada@example.org", "Ada", True, (Notebook("1", "Lab", True),))
    said: list[dict[str, Any]] = []

    def signature(body: dict[str, Any]) -> object:
        said.append(body)
        return encode_call(call)

    broker.labarchives = {
        "signature": signature,
        "user": lambda _: encode_user(user),
        "clock": lambda _: None,
        "refused": lambda _: None,
    }
    assert await source.sign("add_entry") == call
    assert said == [{"method": "add_entry"}]
    assert await source.user() == user
    await source.correct_clock()
    await source.login_refused()
    assert [each.request.path.rpartition("/")[2] for each in broker.asked] == ["signature", "user", "clock", "refused"]


@pytest.mark.parametrize(
    ("problem", "error", "person"),
    [
        (Problem(403, "NotSigned", "not listed"), NotAllowed, None),
        (Problem(404, "NotOffered", "no login"), NotOffered, None),
        (Problem(404, "NotFound", "none"), NotOffered, None),
        (Problem(409, "ApprovalRequired", "log in"), Unavailable, True),
        (Problem(409, "Retrying", "later"), Unavailable, False),
        (Problem(503, "Unavailable", "later"), Unavailable, False),
    ],
)
async def test_refusals_reach_the_client_as_they_are_meant(
    broker: FakeBroker,
    source: BrokerSource,
    problem: Problem,
    error: type[Exception],
    person: bool | None,  # noqa: FBT001
) -> None:
    broker.publish("notebook", files={})
    broker.labarchives = {"signature": lambda _: problem}
    with pytest.raises(error) as raised:
        await source.sign("add_entry")
    if isinstance(raised.value, Unavailable):
        assert raised.value.person is person
        assert raised.value.message == problem.detail


@pytest.mark.parametrize("answer", [{}, {"region": 1}, None])
async def test_a_senseless_answer_signs_nothing(broker: FakeBroker, source: BrokerSource, answer: object) -> None:
    broker.publish("notebook", files={})
    broker.labarchives = {"signature": lambda _: answer}
    with pytest.raises(Unavailable, match="cannot be understood"):
        await source.sign("add_entry")
