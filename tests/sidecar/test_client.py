from __future__ import annotations

import time
from asyncio.sslproto import SSLProtocol
from typing import TYPE_CHECKING

import pytest

from keyferry.io.tls import RECORD, use_small_buffers
from keyferry.sidecar.client import BrokerAwayError, BrokerClient, BrokerRefusedError
from keyferry.wire import HeldReport, Problem
from tests.support.fake_broker import POD_TOKEN
from tests.support.pki import Authority

if TYPE_CHECKING:
    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker

BUSY = Problem(503, "Unavailable", "not just now")
ELSEWHERE = Problem(421, "Misdirected", "another replica looks after it")


@pytest.mark.parametrize("way", ["", "drip", "chunked"])
async def test_a_token_comes_whole_however_it_is_sent(broker: FakeBroker, pod: PodPlace, way: str) -> None:
    published = broker.publish("nightly", "secret-token", files={"token": "secret-token", "a/b.ini": "x = ü\n"})
    broker.faults.extend([way] if way else [])
    fetched = await pod.client().token("nightly")
    assert fetched.token is not None
    assert fetched.token.access_token == published.access_token
    assert fetched.token.files == published.files
    assert fetched.etag == broker.etag("nightly")


async def test_what_is_the_same_is_answered_after_the_wait(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    broker.longest_wait = 0.2
    client = pod.client()
    etag = (await client.token("nightly")).etag
    begun = time.monotonic()
    assert (await client.token("nightly", etag=etag, wait=55)).token is None
    assert time.monotonic() - begun >= 0.2
    assert broker.asked[-1].request.headers["prefer"] == "wait=55"
    assert broker.connections == 1, "connections are kept"


@pytest.mark.parametrize("fault", ["truncate", "garbage", "reset", "endless", "other-json", "no-json"])
async def test_a_broken_answer_is_none(broker: FakeBroker, pod: PodPlace, fault: str) -> None:
    broker.publish("nightly", "secret-token")
    broker.faults.append(fault)
    client = pod.client()
    with pytest.raises(BrokerAwayError) as raised:
        await client.token("nightly")
    assert "secret-token" not in str(raised.value)
    assert POD_TOKEN not in str(raised.value)
    assert (await client.token("nightly")).token is not None


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (Problem(401, "Unauthenticated", "no"), BrokerRefusedError),
        (Problem(404, "NotFound", "no"), BrokerRefusedError),
        (Problem(409, "ApprovalRequired", "no"), BrokerRefusedError),
        (Problem(429, "TooManyRequests", "no"), BrokerAwayError),
        (BUSY, BrokerAwayError),
        (Problem(302, "Found", "no"), BrokerAwayError),
    ],
)
async def test_refusals_are_told_apart(
    broker: FakeBroker, pod: PodPlace, problem: Problem, kind: type[BrokerAwayError | BrokerRefusedError]
) -> None:
    broker.faults.append(problem)
    broker.retry_after = 7
    with pytest.raises(kind, match="no") as raised:
        await pod.client().token("nightly")
    error = raised.value
    assert isinstance(error, BrokerAwayError | BrokerRefusedError)
    assert error.retry_after == 7.0
    assert isinstance(error, BrokerAwayError) or error.problem.reason == problem.reason


async def test_another_replica_is_asked_where_one_cannot_answer(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    broker.faults.extend([ELSEWHERE] * 3)
    client = pod.client()
    assert (await client.token("nightly")).token is not None
    assert broker.connections == 4
    broker.faults.extend([ELSEWHERE] * 9)
    with pytest.raises(BrokerAwayError, match="another replica"):
        await client.token("nightly")
    assert len(broker.faults) == 4, "it gives up after some"


async def test_the_pods_token_is_read_each_time(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    client = pod.client()
    broker.tokens = {"renewed"}
    with pytest.raises(BrokerRefusedError):
        await client.token("nightly")
    pod.token.write_text("renewed")
    assert (await client.token("nightly")).token is not None
    for bad in ("", "two\nlines", "x\r\nHost: other"):
        pod.token.write_text(bad)
        with pytest.raises(BrokerAwayError, match="own token"):
            await client.token("nightly")
    pod.token.unlink()
    with pytest.raises(BrokerAwayError, match="No such file"):
        await client.token("nightly")
    assert len(broker.asked) == 2


async def test_a_new_authority_is_trusted_once_its_certificate_is_there(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    client = pod.client()
    assert (await client.token("nightly")).token is not None
    successor = Authority.create("another")
    broker.stop()
    broker.use(successor.server())
    await broker.start()
    with pytest.raises(BrokerAwayError, match="not trusted"):
        await client.token("nightly")
    for text in ("", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        pod.authorities.write_text(text)
        with pytest.raises(BrokerAwayError, match=r"authorities .*ca\.crt"):
            await client.token("nightly")
    pod.authorities.write_text(broker.authority.certificate + successor.certificate)
    assert (await client.token("nightly")).token is not None


async def test_another_hosts_certificate_is_refused(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    broker.stop()
    broker.use(broker.authority.server(("broker.example.org",)))
    await broker.start()
    with pytest.raises(BrokerAwayError, match="not trusted"):
        await pod.client().token("nightly")
    assert broker.asked == []


async def test_a_connection_that_was_closed_meanwhile_is_replaced_unnoticed(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    client = pod.client()
    await client.token("nightly")
    broker.faults.append("reset")
    assert (await client.token("nightly")).token is not None
    assert broker.connections == 2
    broker.stop()
    await broker.start()
    assert (await client.token("nightly")).token is not None
    broker.stop()
    with pytest.raises(BrokerAwayError, match="cannot be reached"):
        await client.token("nightly")


async def test_what_it_says_of_itself(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", lifetime=60.0)
    with pytest.raises(BrokerRefusedError) as raised:
        await pod.client().token("nightly", minimum=5400.0)
    assert raised.value.problem.reason == "LifetimeTooShort"
    assert broker.asked[-1].request.query == "minimum_remaining=1h30m"
    await pod.client().report("nightly", HeldReport(1, 5.0, 0.25))
    assert broker.reports == [("nightly", {"revision": 1, "written_at": 5.0, "delay_seconds": 0.25})]


async def test_half_a_character_is_no_text(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", files={"token": "half \ud83d"})
    with pytest.raises(BrokerAwayError, match="no text"):
        await pod.client().token("nightly")


@pytest.mark.parametrize("url", ["http://broker", "https://", "https://broker/path", "broker:443"])
def test_only_tls_will_do(pod: PodPlace, url: str) -> None:
    with pytest.raises(ValueError, match="https://"):
        BrokerClient(url, None, pod.token, "batch")


async def test_small_buffers_carry_large_answers(
    broker: FakeBroker, pod: PodPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SSLProtocol, "max_size", SSLProtocol.max_size)  # so that it is as before afterwards
    use_small_buffers()
    assert SSLProtocol.max_size == RECORD
    published = broker.publish("nightly", files={"big": "ü" * 500_000})
    fetched = await pod.client().token("nightly")
    assert fetched.token is not None
    assert fetched.token.files == published.files
