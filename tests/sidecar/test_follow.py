from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.sidecar.check import check
from keyferry.wire import Problem, timestamp
from tests.sidecar.pod import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyferry.sidecar.follow import Follower
    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker

APPROVAL = Problem(409, "ApprovalRequired", "somebody must log in at https://page.example.org")


@contextlib.asynccontextmanager
async def following(follower: Follower) -> AsyncIterator[None]:
    task = asyncio.create_task(follower.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def standing(pod: PodPlace) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pod.read(".keyferry/status.json"))["identities"]["nightly"]
    return found


def probe(pod: PodPlace) -> tuple[str, bool]:
    lines, good = check(str(pod.directory), time.time())
    return "\n".join(lines), good


async def test_each_renewal_is_pushed_into_the_files(broker: FakeBroker, pod: PodPlace) -> None:
    def written(token: str) -> bool:
        return pod.read() == token

    broker.publish("nightly", files={"token": "one", "old": "1"})
    async with following(pod.follower()):
        await until(lambda: pod.read() == "one", "the first token")
        for number in range(5):
            await until(lambda: broker.held, "a held request")
            broker.publish("nightly", f"next-{number}", files={"token": f"next-{number}"})
            await until(partial(written, f"next-{number}"), "the next token")
    assert not (pod.directory / "nightly/old").exists()
    await until(lambda: len(broker.reports) == 6, "word of each")
    delays = [report["delay_seconds"] for _, report in broker.reports]
    assert delays[0] is None
    assert all(0 <= delay < 60 for delay in delays[1:])
    assert standing(pod)["revision"] == 6


async def test_an_outage_leaves_the_files_and_is_told_once(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", "one")
    async with following(pod.follower()):
        await until(lambda: broker.held, "a held request")
        broker.stop()
        await until(lambda: standing(pod)["problem"] is not None, "word of the trouble")
        await asyncio.sleep(0.3)
        assert pod.read() == "one"
        assert standing(pod)["problem"]["reason"] == "BrokerUnreachable"
        line, good = probe(pod)
        assert good
        assert re.search(r"revision 1, good for [45]\dm", line)
        assert len([line for line in pod.lines if "BrokerUnreachable" in line]) <= 3, "connection lost, and refused"
        await broker.start()
        await until(lambda: standing(pod)["problem"] is None, "recovery")
        assert "the broker answers again" in pod.lines[-1]
        await until(lambda: len(broker.reports) == 2, "a new broker must hear what the pod holds")
        assert broker.reports[-1][1]["revision"] == 1
        await until(lambda: broker.held, "a held request")
        broker.publish("nightly", "two")
        await until(lambda: pod.read() == "two", "the next token")


@pytest.mark.parametrize("fault", ["truncate", "garbage", "reset", "other-json", "no-json"])
async def test_a_broken_answer_changes_nothing(broker: FakeBroker, pod: PodPlace, fault: str) -> None:
    broker.publish("nightly", "one")
    follower = pod.follower()
    await follower.step()
    broker.faults.extend([fault] * 2)
    broker.publish("nightly", "two")
    await follower.step()
    assert pod.read() == "one"
    while broker.faults:
        await follower.step()
    if pod.read() == "one":
        await follower.step()
    assert pod.read() == "two"


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (APPROVAL, "ApprovalRequired: somebody must log in at https://page.example.org"),
        (Problem(404, "NotFound", "there is none"), "spec.consumers"),
        (Problem(401, "Unauthenticated", "the token is not good"), "as the kubelet renews it"),
        (Problem(409, "LifetimeTooShort", "tokens live for 5m"), "LifetimeTooShort: tokens live for 5m"),
    ],
)
async def test_why_there_is_no_token_is_said_plainly(
    broker: FakeBroker, pod: PodPlace, problem: Problem, told: str
) -> None:
    broker.problems["nightly"] = problem
    broker.longest_wait = 0.05
    follower = pod.follower()
    for _ in range(3):
        await follower.step()
    assert len(pod.lines) == 1
    assert told in pod.lines[0]
    text, good = probe(pod)
    assert not good
    assert told in text
    assert "the containers wait: nightly has no token yet" in text
    del broker.problems["nightly"]
    broker.publish("nightly")
    await follower.step()
    assert probe(pod)[1]
    assert [line.split(":")[0] for line in pod.lines[1:]] == ["nightly", "every token is good"]
    broker.problems["nightly"] = problem
    await follower.step()
    assert pod.read() == "token-1", "last-good is never taken away"
    assert probe(pod)[1]


async def test_a_first_token_is_pushed_as_soon_as_there_is_one(broker: FakeBroker, pod: PodPlace) -> None:
    broker.problems["nightly"] = APPROVAL
    async with following(pod.follower()):
        await until(lambda: pod.lines, "word of the trouble, at once")
        await until(lambda: broker.held, "a held request")
        del broker.problems["nightly"]
        broker.publish("nightly")
        await until(lambda: pod.read() == "token-1", "the token")


async def test_what_the_broker_asks_for_is_the_least(broker: FakeBroker, pod: PodPlace) -> None:
    follower = pod.follower()
    broker.retry_after = 30
    broker.faults.extend([Problem(503, "Unavailable", "busy"), APPROVAL])
    pauses = [await follower.step() for _ in range(2)]
    assert all(30 <= pause < 35 for pause in pauses)
    assert pauses[0] != pauses[1]


async def test_containers_wait_for_a_token_that_lives_long_enough(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", lifetime=600.0)
    follower = pod.follower(minimum=5400.0)
    await follower.step()
    assert "LifetimeTooShort: no token of nightly ever lives for 1h30m" in probe(pod)[0]
    broker.publish("nightly", lifetime=6000.0)
    await follower.step()
    assert probe(pod)[1]
    broker.publish("nightly", lifetime=600.0)
    await follower.step()
    assert pod.read() == "token-3", "once they run, any token will do"
    assert broker.asked[-1].request.query == ""
    assert probe(pod)[1]


async def test_the_gate_closes_again_when_the_token_expires(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", lifetime=1000.0)
    await pod.follower().step()
    for later, good in ((800.0, True), (1001.0, False)):
        assert check(str(pod.directory), time.time() + later)[1] is good
    assert "expired" in check(str(pod.directory), time.time() + 3700)[0][0]


async def test_a_new_process_of_the_pod_goes_on(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", lifetime=6000.0)
    await pod.follower(minimum=5400.0).step()
    broker.stop()
    again = pod.follower(minimum=5400.0)
    await again.step()
    assert pod.read() == "token-1"
    assert probe(pod)[1], "the containers run already"
    assert "its files stay as they are" in pod.lines[-1]


async def test_a_write_that_fails_keeps_last_good_and_is_tried_again(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", "one")
    follower = pod.follower()
    await follower.step()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        broker.publish("nightly", "x" * 5000)
        await follower.step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert pod.read() == "one"
    assert "FilesUnwritable: Cannot write" in pod.lines[-1]
    await follower.step()
    assert pod.read() == "x" * 5000


async def test_local_files_name_the_pods_own_endpoint(broker: FakeBroker, pod: PodPlace) -> None:
    files = {".aiod/config.toml": 'auth_server = "@@keyferry:endpoint@@/"\n', "token": "@keyferry:endpoint@"}
    files[".aiod/token.toml"] = 'refresh_token = "@@keyferry:placeholder@@"\n'
    broker.publish("nightly", files=files)
    await pod.follower(endpoint="http://127.0.0.1:7531").step()
    assert pod.read("nightly/.aiod/config.toml") == 'auth_server = "http://127.0.0.1:7531/nightly/"\n'
    assert pod.read("nightly/.aiod/token.toml") == f'refresh_token = "{pod.read(".keyferry/placeholder")}"\n'
    assert pod.read() == "@keyferry:endpoint@"


async def test_local_files_are_left_out_where_nothing_serves_them(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly", files={"token": "t", "labarchives.env": "API_URL='@@keyferry:endpoint@@/labarchives'\n"})
    follower = pod.follower()
    for _ in range(2):
        await follower.step()
        broker.publish("nightly", files={"token": "t", "labarchives.env": "ACCESS_PWD='@@keyferry:placeholder@@'\n"})
    assert pod.read() == "t"
    assert not (pod.directory / "nightly/labarchives.env").exists()
    assert len([line for line in pod.lines if "keyferry.dev/clients" in line]) == 1


def mount(directory: Path, text: str, left: float | None) -> Path:
    """Show a Secret as the kubelet does."""
    data = directory / "..data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "token").write_text(text)
    if left is not None:
        described = {"access_token": text, "expires_at": timestamp(time.time() + left), "revision": 9}
        (data / "token.json").write_text(json.dumps(described))
    for file in data.iterdir():
        if not (directory / file.name).is_symlink():
            (directory / file.name).symlink_to(f"..data/{file.name}")
    return directory


async def test_a_mounted_secret_serves_until_the_broker_can_be_asked(
    broker: FakeBroker, pod: PodPlace, tmp_path: Path
) -> None:
    follower = pod.follower(fallback=mount(tmp_path / "mounted", "mounted", 900.0))
    broker.publish("nightly", "fresh")
    broker.stop()
    await follower.step()
    assert pod.read() == "mounted"
    assert sorted(path.name for path in (pod.directory / "nightly").iterdir()) == ["token", "token.json"]
    assert probe(pod)[1]
    assert standing(pod)["origin"] == "MountedSecret"
    mount(tmp_path / "mounted", "mounted-2", 1800.0)
    await follower.step()
    assert pod.read() == "mounted-2", "the kubelet renewed it"
    await broker.start()
    await follower.step()
    assert pod.read() == "fresh"
    broker.stop()
    mount(tmp_path / "mounted", "stale", 60.0)
    await follower.step()
    assert pod.read() == "fresh", "what is held is better"


async def test_a_mounted_token_of_unknown_life_does_not_meet_a_minimum(
    broker: FakeBroker, pod: PodPlace, tmp_path: Path
) -> None:
    broker.stop()
    mounted = mount(tmp_path / "mounted", "mounted", None)
    await pod.follower(fallback=mounted, minimum=60.0).step()
    assert pod.read() == "mounted"
    text, good = probe(pod)
    assert not good
    assert "nobody knows how long" in text
    await pod.follower(fallback=mounted).step()
    assert probe(pod)[1]


async def test_a_replica_that_leaves_is_left_with_jitter(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    follower = pod.follower(spread=10.0)
    await follower.step()
    asking = asyncio.create_task(follower.step())
    await until(lambda: broker.held, "a held request")
    broker.let_go(closing=True)
    assert 0.0 < await asking <= 2.0
    broker.ends_connections = False
    await follower.step()
    await until(lambda: len(broker.reports) == 2, "the next replica hears what the pod holds")


async def test_an_answer_that_should_have_waited_does_not_make_it_spin(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    broker.longest_wait = 0.0
    follower = pod.follower()
    await follower.step()
    assert sum([await follower.step() for _ in range(20)]) > 5.0
