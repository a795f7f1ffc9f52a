"""The three systems' own clients, unmodified, with nothing but what a sidecar gives a pod."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from keyferry.providers.labarchives import AccessKey, LabArchivesUser, Notebook, SignedCall, may_be_signed, sign
from keyferry.providers.tiled import token_directory_name
from keyferry.render import Endpoint
from keyferry.render.aiod import aiod_files
from keyferry.render.labarchives import labarchives_variables
from keyferry.secret import SecretValue
from keyferry.web.presented import ACCESS_KEY_ID
from keyferry.wire import ENDPOINT_MARKER, PLACEHOLDER_MARKER, Problem, encode_call, encode_user
from tests.cli.test_labarchives import EMAIL, HEADLESS, HOUR, REPORT, WORK
from tests.real.engine_support import Place, proxy_to
from tests.real.test_aiod import CALLS
from tests.real.test_tiled_engine import World, running_client
from tests.sidecar.pod import PATIENCE, until
from tests.support import aiod
from tests.support.aiod import AiodApi
from tests.support.labarchives import LabArchives
from tests.support.servers import free_port
from tests.support.tier import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import Any

    from tests.sidecar.pod import PodPlace
    from tests.support.fake_broker import FakeBroker
    from tests.support.tiled import TiledServer

MARKED = Endpoint(ENDPOINT_MARKER, SecretValue(PLACEHOLDER_MARKER), ACCESS_KEY_ID)
METHODS = frozenset({"get_tree_level", "get_entries_for_page", "insert_node", "add_entry", "add_attachment"})


@asynccontextmanager
async def renewing(renew: Callable[[], Any], every: float) -> AsyncIterator[None]:
    async def go_on() -> None:
        while True:
            await asyncio.sleep(every)
            await asyncio.to_thread(renew)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.slow
async def test_aiondemand_calls_past_the_expiry_of_its_tokens(broker: FakeBroker, pod: PodPlace) -> None:
    require("aiondemand", aiod.problem())
    lives: dict[str, float] = {}
    loop = asyncio.get_running_loop()

    def introspect(token: str) -> dict[str, Any]:
        return {"active": lives.get(token, 0.0) > time.time(), "username": "nightly-bot"}

    with AiodApi(introspect) as api:
        files = {f".aiod/{name}": data.decode() for name, data in aiod_files(MARKED, api.url).items()}

        def publish() -> None:
            answer = broker.publish("nightly", files=files, lifetime=6.0)
            lives[answer.access_token.reveal()] = answer.expires_at

        publish()
        port = str(free_port())
        async with (
            pod.running("--clients", "aiod", "--port", port),
            renewing(lambda: loop.call_soon_threadsafe(publish), 3.0),
        ):
            await until(lambda: "the containers may start" in pod.log, "the gate")
            process = await asyncio.create_subprocess_exec(
                *(aiod.install(), "-c", CALLS, "4"),
                env={**os.environ, "HOME": str(pod.directory / "nightly")},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await asyncio.wait_for(process.communicate(), PATIENCE * 2)
            assert (process.returncode, output.decode(), errors.decode()) == (0, "nightly-bot\n", "")
            assert api.refused == []
            assert len(set(api.accepted)) >= 4
            given = "".join(path.read_text() for path in (pod.directory / "nightly/.aiod").iterdir())
            assert not [token for token in api.accepted if token in given]
    assert pod.log.count("revision") >= 4


@pytest.mark.slow
async def test_labapi_writes_for_hours_with_nothing_but_a_placeholder(broker: FakeBroker, pod: PodPlace) -> None:
    with LabArchives() as server:
        key = AccessKey(SecretValue(server.access_key_id), SecretValue(server.access_password))
        person = server.person(EMAIL)
        person.uid = "UID-real"
        signed: list[str] = []
        thought = 0.0

        def signature(body: dict[str, Any]) -> object:
            method = body["method"]
            signed.append(method)
            if not may_be_signed(method, {*METHODS, "entry_attachment"}):
                return Problem(403, "NotSigned", "not listed")
            call = sign(key, method, time.time() + thought)
            return encode_call(SignedCall(server.url, SecretValue(person.uid), call))

        def clock(_: dict[str, Any]) -> None:
            nonlocal thought
            thought = server.clock_offset

        user = LabArchivesUser(SecretValue(""), EMAIL, person.name, True, (Notebook(server.notebook, "Lab", True),))
        broker.labarchives = {"signature": signature, "user": lambda _: encode_user(user), "clock": clock}
        lines = [f"{name}='{value}'\n" for name, value in labarchives_variables(MARKED, EMAIL).items()]
        broker.publish("nightly", files={"labarchives.env": "".join(lines)})
        port = str(free_port())
        async with pod.running("--clients", "labarchives", "--port", port, "--allow-host", "127.0.0.1"):
            await until(lambda: "the containers may start" in pod.log, "the gate")
            given = dict(re.findall(r"^(\w+)='(.*)'$", pod.read("nightly/labarchives.env"), re.MULTILINE))
            assert given["API_URL"] == f"http://127.0.0.1:{port}/nightly/labarchives"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", HEADLESS + REPORT + WORK, "2"),
                env={**os.environ, **given},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            for wanted in (b"['Lab']\n", b"up\n"):
                assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == wanted
            for hours in (0, 2, 26):
                server.clock_offset = hours * HOUR
                process.stdin.write(f"page {hours}\n".encode())
                assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"done\n"
            process.stdin.close()
            assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        assert {call.error for call in server.calls} == {0, 4504}
        assert server.redemptions == [], "no code was needed"
        assert set(signed) >= METHODS
        everything = pod.log + "".join(
            path.read_text() for path in pod.directory.rglob("*") if path.is_file() and path != pod.log_path
        )
        for secret in (person.uid, server.access_key_id, server.access_password):
            assert secret not in everything


@pytest.mark.tiled
@pytest.mark.slow
async def test_tiled_reads_on_over_renewals_and_after_an_outage(
    broker: FakeBroker, pod: PodPlace, tmp_path: Path, start_tiled: Callable[..., TiledServer]
) -> None:
    tiled = await asyncio.to_thread(start_tiled, access_token_max_age=8)
    loop = asyncio.get_running_loop()
    async with proxy_to(tiled.url) as proxy:
        path = f".tiled/tokens/{token_directory_name(f'{proxy.url}/api/v1')}/access_token"

        def renew() -> None:
            token = tiled.login()["access_token"]
            loop.call_soon_threadsafe(lambda: broker.publish("nightly", token, files={path: token}, lifetime=8.0))

        await asyncio.to_thread(renew)
        world = World(tiled, proxy, Place(tmp_path))
        async with pod.running("--clients", "tiled"):
            await until(lambda: pod.read(f"nightly/{path}"), "the token")
            async with running_client(world, pod.directory / "nightly/.tiled") as client:
                async with renewing(renew, 3.0):
                    await until(lambda: broker.identities["nightly"].revision >= 6, "five renewals")
                    await client.reads_on()
                    assert client.errors == []
                await until(lambda: client.errors, "the end of the last token, and that the client gives up on it")
                await until(lambda: pod.read(f"nightly/{path}"), "what it deleted, put back")
                await asyncio.to_thread(renew)
                before = client.reads
                await client.reads_on()
                assert client.reads > before
