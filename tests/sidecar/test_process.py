"""The program, as a kubelet runs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.wire import Problem, timestamp
from tests.sidecar.pod import PATIENCE, until
from tests.support.servers import free_port

if TYPE_CHECKING:
    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker

HEAVY = ("aiohttp", "cryptography", "httpx", "kopf", "kubernetes", "pydantic", "rich", "typer", "yaml")
TOO_MUCH_FOR_A_PROBE = {"argparse", "asyncio", "dataclasses", "enum", "json", "pathlib", "re", "ssl"}


async def test_two_identities_from_the_start_to_the_end(broker: FakeBroker, pod: PodPlace) -> None:
    names = ("nightly", "other")
    broker.publish("nightly", "one")
    broker.problems["other"] = Problem(409, "ApprovalRequired", "somebody must log in")
    assert (await pod.check())[0] == 1
    async with pod.running(names=names):
        await until(lambda: pod.read() == "one", "the first file")
        await until(lambda: "other: ApprovalRequired: somebody must log in" in pod.log, "word of the trouble")
        code, said = await pod.check()
        assert code == 1
        assert re.search(r"nightly: revision 1, good for [45]\dm", said)
        assert "other: no token yet, ApprovalRequired: somebody must log in" in said
        assert "the containers wait: other has no token yet" in said
        del broker.problems["other"]
        broker.publish("other")
        await until(lambda: "the containers may start" in pod.log, "the gate")
        assert (await pod.check())[0] == 0
        await until(lambda: len(broker.held) == 2, "held requests")
        broker.publish("nightly", "two")
        await until(lambda: pod.read() == "two", "the renewal")
        await until(lambda: len(broker.held) == 2, "held requests, during which it is told to end")
    assert pod.read() == "two", "the files go with the pod, not with the sidecar"
    assert "Traceback" not in pod.log
    assert "token-1" not in pod.log
    assert (await pod.check())[0] == 0


async def test_it_ends_when_told_also_while_nothing_answers(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    broker.faults.append("hang")
    async with pod.running():
        await until(lambda: broker.asked, "a question")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "0"], "--port: must be a port"),
        (["--clients", "curl"], "--clients: must be some of bearer, tiled, aiod, labarchives"),
        (["--minimum-remaining", "soon"], "--minimum-remaining: must be a duration"),
        (["--fallback", "nightly"], "--fallback: must be NAME=DIR"),
        (["--fallback", "other=/x"], "--fallback is for an identity that is named"),
        (["--broker", "http://broker"], "https://"),
        (["Nightly"], "cannot be a name"),
        (["--unknown"], "--unknown"),
    ],
)
async def test_a_wrong_call_is_refused(pod: PodPlace, arguments: list[str], told: str) -> None:
    process = await asyncio.create_subprocess_exec(*pod.command(*arguments), stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode in {1, 2}
    assert told in errors.decode()
    assert errors.decode().count("\n") == 1


async def test_a_taken_port_is_told(broker: FakeBroker, pod: PodPlace) -> None:
    broker.publish("nightly")
    port = broker.url.rpartition(":")[2]
    async with pod.running("--clients", "aiod", "--port", port) as process:
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 1
    assert f"cannot be served on 127.0.0.1, port {port}" in pod.log
    assert "Traceback" not in pod.log


async def test_endpoints_answer_with_the_current_token(broker: FakeBroker, pod: PodPlace) -> None:
    port = free_port()
    broker.publish("nightly", "one", files={"placeholder": "@@keyferry:placeholder@@", "url": "@@keyferry:endpoint@@"})
    async with (
        pod.running("--clients", "aiod,bearer", "--port", str(port)),
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        await until(lambda: "the containers may start" in pod.log, "the gate")
        placeholder = pod.read("nightly/placeholder")
        form = {"grant_type": "refresh_token", "refresh_token": placeholder}
        url = pod.read("nightly/url")
        assert url == f"http://127.0.0.1:{port}/nightly"
        for token in ("one", "two"):
            answer = await http.post(f"{url}/oauth/token", data=form)
            assert answer.json()["access_token"] == token
            await until(lambda: broker.held, "a held request")
            broker.publish("nightly", "two", files={"placeholder": "@@keyferry:placeholder@@"})
            await until(lambda: not (pod.directory / "nightly/url").exists(), "the next answer")
        form["refresh_token"] = "p" * 43
        assert (await http.post(f"{url}/oauth/token", data=form)).status_code == 400
        broker.stop()
        form["refresh_token"] = placeholder
        assert (await http.post(f"{url}/oauth/token", data=form)).json()["access_token"] == "two"


async def test_endpoints_of_a_sidecar_that_is_killed_and_started_again_answer_while_the_broker_is_away(
    broker: FakeBroker, pod: PodPlace
) -> None:
    port = free_port()
    broker.publish("nightly", "one", files={"placeholder": "@@keyferry:placeholder@@"})
    arguments = ("--clients", "aiod", "--port", str(port))
    async with pod.running(*arguments) as process:
        await until(lambda: "the containers may start" in pod.log, "the gate")
        await until(lambda: broker.held, "a held request")
        process.kill()
        await process.wait()
    broker.stop()
    confirmed = json.loads(pod.read(".keyferry/status.json"))["identities"]["nightly"]["confirmed_at"]
    async with pod.running(*arguments), httpx.AsyncClient(trust_env=False, timeout=60) as http:
        headers = {"Authorization": f"Bearer {pod.read('nightly/placeholder')}"}
        answer: httpx.Response | None = None
        while answer is None:
            with contextlib.suppress(httpx.ConnectError):  # it has not begun to serve
                answer = await http.get(f"http://127.0.0.1:{port}/nightly/token", headers=headers, timeout=PATIENCE)
            await asyncio.sleep(0.05)
        assert answer.json()["access_token"] == "one"
        assert answer.json()["confirmed_at"] == timestamp(confirmed)
        assert "BrokerUnreachable" in pod.log


async def test_what_tileds_client_deletes_comes_back(broker: FakeBroker, pod: PodPlace) -> None:
    path = ".tiled/tokens/https%3A%2F%2Ftiled.example.org%2Fapi%2Fv1%2F/access_token"
    broker.publish("nightly", files={path: "one"})
    async with pod.running("--clients", "tiled"):
        for _ in range(2):
            await until(lambda: pod.read(f"nightly/{path}") == "one", "the file")
            (pod.directory / "nightly" / path).unlink()
        await until(lambda: pod.read(f"nightly/{path}") == "one", "the file")


class Reader(threading.Thread):
    """Reads files as fast as it can, as a workload may; ``wrong`` is what it found missing or torn."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(daemon=True)
        self._paths = paths
        self.stop = threading.Event()
        self.reads = 0
        self.seen: set[str] = set()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            for path in self._paths:
                try:
                    first, _, rest = path.read_text().partition(":")
                except OSError as error:
                    self.wrong.append(str(error))
                    continue
                self.reads += 1
                self.seen.add(first)
                if not first.isdigit() or rest != body(int(first)):
                    self.wrong.append(f"{path} of {first!r} with {len(rest)} characters")


def body(number: int) -> str:
    return f"{number % 10}" * 150_000


@pytest.mark.slow
@pytest.mark.crash
async def test_killed_at_any_moment_no_file_is_torn_or_missing(broker: FakeBroker, pod: PodPlace) -> None:
    paths = ["token", "conf/app.ini", ".tiled/tokens/x/access_token"]
    number = 0

    def publish() -> None:
        nonlocal number
        number += 1
        broker.publish("nightly", f"t{number}", files={path: f"{number}:{body(number)}" for path in paths})

    publish()
    dice = random.Random(7)  # noqa: S311 - to vary when
    reader = Reader([pod.directory / "nightly" / path for path in paths])
    for round_number in range(10):
        process = await asyncio.create_subprocess_exec(*pod.command(), stderr=subprocess.DEVNULL)
        try:
            await until(lambda: broker.held, "the sidecar at work")
            if round_number == 0:
                reader.start()
            for _ in range(dice.randrange(3, 9)):
                publish()
                await asyncio.sleep(dice.uniform(0.0, 0.004))
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await until(lambda: not broker.held, "the end of its connections")
    reader.stop.set()
    await asyncio.to_thread(reader.join, PATIENCE)
    assert reader.wrong == []
    assert reader.reads > 100
    assert len(reader.seen) > 10
    async with pod.running():
        await until(lambda: pod.read().startswith(f"{number}:"), "the current revision, without help")
        own = len(["placeholder", "status.json"])
        await until(
            lambda: len(list(filter(Path.is_file, pod.directory.rglob("*")))) == len(paths) + own, "no leftover"
        )


def imported(code: str, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; before = set(sys.modules); {code}", *arguments],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_sidecar_imports_nothing_heavy() -> None:
    show = "import json; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    assert not imported(f"import keyferry.sidecar.service; {show}") & set(HEAVY)


def test_the_probe_imports_next_to_nothing(pod: PodPlace) -> None:
    show = "print('[' + ', '.join(f'\"{n}\"' for n in {n.partition('.')[0] for n in set(sys.modules) - before}) + ']')"
    modules = imported(
        f"from keyferry.cli import main; main(); {show}", "sidecar", "--check", "--dir", str(pod.directory)
    )
    assert "keyferry" in modules
    assert not modules & TOO_MUCH_FOR_A_PROBE
