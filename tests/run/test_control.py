from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.issuer import start_demo_issuer
from keyferry.demo.resources import write_files
from keyferry.io.addresses import HostRule
from keyferry.model import ObjectKey
from keyferry.run import control
from keyferry.run.broker import LocalBroker
from keyferry.run.control import ControlClient, ControlServer, NobodyAnswersError
from keyferry.run.requests import Outcome
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings
from keyferry.run.status_json import decode_status, encode_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from keyferry.demo.issuer import DemoIssuer

REPORT = ObjectKey("default", "nightly-report")
INGEST = ObjectKey("default", "ingest")
ARCHIVE = ObjectKey("default", "archive")
PATIENCE = 180.0


@pytest.fixture
async def issuer() -> AsyncIterator[DemoIssuer]:
    issuer = await start_demo_issuer(access_lifetime=600)
    yield issuer
    await issuer.close()


@pytest.fixture
def settings(tmp_path: Path, issuer: DemoIssuer) -> RunSettings:
    files = write_files(issuer, tmp_path)
    return RunSettings(
        paths=(files.resources,),
        out=files.out,
        state=files.state,
        secrets=SecretSettings(directory=files.secrets),
        allowed_hosts=(HostRule.parse("127.0.0.1"),),
    )


@asynccontextmanager
async def serving(settings: RunSettings, **options: Any) -> AsyncIterator[LocalBroker]:
    async with LocalBroker(settings, keep_watch=False, **options) as broker:
        await broker.start()
        async with ControlServer(broker):
            yield broker


async def ask(settings: RunSettings, work: Callable[[ControlClient], Any]) -> Any:
    def blocking() -> Any:
        with ControlClient(settings.state) as client:
            return work(client)

    return await asyncio.to_thread(blocking)


async def send(settings: RunSettings, *lines: bytes) -> list[bytes]:
    """Send lines as they are; return what comes back until the other side hangs up or all are answered."""
    reader, writer = await asyncio.open_unix_connection(str(settings.state / "control.sock"))
    try:
        answers = []
        for line in lines:
            writer.write(line)
            await writer.drain()
            answer = await asyncio.wait_for(reader.readline(), PATIENCE)
            if not answer:
                break
            answers.append(answer)
    except ConnectionError:
        return []
    else:
        return answers
    finally:
        writer.close()


async def test_a_token_is_waited_for_and_never_sent(settings: RunSettings) -> None:
    async with serving(settings) as broker:
        answer = await ask(settings, lambda client: client.want(REPORT, None, PATIENCE))
        assert answer.outcome is Outcome.DONE
        assert answer.status == broker.engine.status(REPORT)
        request = json.dumps({"op": "want", "namespace": "default", "name": "ingest", "timeout": PATIENCE}).encode()
        raw = b"".join(await send(settings, request + b"\n", b'{"op": "status"}\n', request + b"\n"))
    records = [json.loads(path.read_bytes())["record"] for path in settings.state.glob("records/default/*.json")]
    secrets = {record[name] for record in records for name in ("refresh_token",) if name in record}
    secrets |= {record["token"]["access_token"] for record in records if "token" in record}
    assert len(secrets) >= 4
    assert not any(secret.encode() in raw for secret in secrets)


async def test_a_longer_life_is_had_by_renewing(settings: RunSettings, issuer: DemoIssuer) -> None:
    # A first token that was issued long ago, as far as one can tell from its life.
    async with serving(settings) as broker:
        await ask(settings, lambda client: client.want(REPORT, None, PATIENCE))
        entry = broker.engine.roster.entries[REPORT]
        entry.issue_time -= 3000
        issuer.service.settings.access_lifetime = 3600
        answer = await ask(settings, lambda client: client.want(REPORT, 1800.0, PATIENCE))
        assert answer.outcome is Outcome.DONE, answer
        assert answer.status.revision == 2


async def test_a_life_that_was_never_given_is_not_asked_for_on_and_on(settings: RunSettings) -> None:
    async with serving(settings) as broker:
        await ask(settings, lambda client: client.want(REPORT, None, PATIENCE))
        never = await ask(settings, lambda client: client.want(REPORT, 601.0, PATIENCE))
        assert never.outcome is Outcome.FAILED
        assert "10m" in never.message
        assert broker.engine.status(REPORT).revision == 1


async def test_renewals_are_bounded(settings: RunSettings) -> None:
    async with serving(settings, renew_interval=3600.0) as broker:
        await ask(settings, lambda client: client.want(INGEST, None, PATIENCE))
        revision = broker.engine.status(INGEST).revision
        done = await ask(settings, lambda client: client.renew(INGEST, PATIENCE))
        assert (done.outcome, done.status.revision) in {(Outcome.DONE, revision + 1), (Outcome.TOO_SOON, revision)}
        soon = await ask(settings, lambda client: client.renew(INGEST, PATIENCE))
        assert soon.outcome is Outcome.TOO_SOON
        assert 3500 < soon.wait <= 3600


async def test_what_is_not_declared_is_unknown(settings: RunSettings) -> None:
    nobody = ObjectKey("default", "nobody")
    async with serving(settings):
        for work in (
            lambda client: client.want(nobody, None, PATIENCE),
            lambda client: client.renew(nobody, PATIENCE),
        ):
            assert (await ask(settings, work)).outcome is Outcome.UNKNOWN
        assert (await ask(settings, lambda client: client.place(nobody)))["directory"] is None


async def test_a_broker_of_a_few_takes_on_more_when_it_is_asked(settings: RunSettings) -> None:
    async with serving(settings, only=[REPORT]) as broker:
        assert set(broker.engine.roster.entries) == {REPORT}
        answer = await ask(settings, lambda client: client.want(ARCHIVE, None, PATIENCE))
        assert answer.outcome is Outcome.DONE
        assert set(broker.engine.roster.entries) == {REPORT, ARCHIVE}
        found = await ask(settings, lambda client: client.statuses())
        assert found["selective"] is True
        assert {decode_status(item).key for item in found["identities"]} == {REPORT, ARCHIVE}


async def test_where_the_files_are(settings: RunSettings) -> None:
    async with serving(settings):
        place = await ask(settings, lambda client: client.place(REPORT))
    assert Path(place["directory"]) == settings.out / "default" / "nightly-report"
    assert place["files"] == [{"format": "Token", "name": "token"}, {"format": "Json", "name": "token.json"}]


async def test_statuses_survive_the_way(settings: RunSettings) -> None:
    async with serving(settings) as broker:
        await ask(settings, lambda client: client.want(REPORT, None, PATIENCE))
        status = broker.engine.status(REPORT)
    data = json.loads(json.dumps(encode_status(status)))
    assert decode_status({**data, "added_by_a_newer_version": 1}) == status


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b"null\n",
        b'{"op": "nonsense"}\n',
        b'{"op": []}\n',
        b'{"op": "want"}\n',
        b'{"op": "want", "namespace": 1, "name": []}\n',
        b'{"op": "want", "namespace": "default", "name": "ingest", "minimumRemaining": "x"}\n',
        b'{"op": "renew", "namespace": "default", "name": "ingest", "timeout": {}}\n',
        b"[" * 4000 + b"\n",
        b"\xff\xfe\n",
    ],
)
async def test_nonsense_is_answered_and_harms_nobody(settings: RunSettings, line: bytes) -> None:
    async with serving(settings):
        answers = await send(settings, line, b'{"op": "status"}\n')
        assert json.loads(answers[0])["ok"] is False
        assert json.loads(answers[1])["ok"] is True


async def test_a_request_has_a_bounded_size(settings: RunSettings) -> None:
    async with serving(settings):
        assert await send(settings, b'{"op": "' + b"x" * 2 * control.LONGEST_REQUEST + b'"}\n') == []
        assert len(await send(settings, b'{"op": "status"}\n')) == 1


async def test_connections_are_bounded_and_come_free_again(settings: RunSettings) -> None:
    async with serving(settings):
        path = str(settings.state / "control.sock")
        held = [await asyncio.open_unix_connection(path) for _ in range(control.CONNECTIONS)]
        try:
            with pytest.raises(NobodyAnswersError):
                await ask(settings, lambda client: client.statuses())
        finally:
            for _, writer in held:
                writer.close()
        async with asyncio.timeout(PATIENCE):
            while not await send(settings, b'{"op": "status"}\n'):  # noqa: ASYNC110 - nobody tells when one is free
                await asyncio.sleep(0.1)


async def test_the_socket_is_private_and_goes_with_the_broker(settings: RunSettings) -> None:
    path = settings.state / "control.sock"
    async with serving(settings):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(settings.state.stat().st_mode) == 0o700
    assert not path.exists()
    with pytest.raises(NobodyAnswersError):
        ControlClient(settings.state)


async def test_another_users_connection_is_not_heard(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings):
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        # Neither does the broker answer, nor would the client believe it.
        assert await send(settings, b'{"op": "status"}\n') == []
        with pytest.raises(NobodyAnswersError, match="another user"):
            await ask(settings, lambda client: client.statuses())


async def test_a_stale_socket_is_replaced(settings: RunSettings) -> None:
    settings.state.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(settings.state / "control.sock"))
    with pytest.raises(NobodyAnswersError):
        ControlClient(settings.state)
    async with serving(settings):
        assert (await ask(settings, lambda client: client.statuses()))["ok"]


@contextmanager
def long_path() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp())
    try:
        yield base / ("d" * 120) / "state"
    finally:
        shutil.rmtree(base)


async def test_a_long_path_is_no_obstacle(settings: RunSettings) -> None:
    with long_path() as state:
        there = RunSettings(settings.paths, settings.out, state, settings.secrets, settings.allowed_hosts)
        async with serving(there):
            assert (await ask(there, lambda client: client.statuses()))["ok"]
        assert not (state / "control.sock").exists()


async def test_who_waits_is_told_when_the_broker_ends(settings: RunSettings, issuer: DemoIssuer) -> None:
    await issuer.close()
    async with serving(settings):
        waiting = asyncio.create_task(ask(settings, lambda client: client.want(REPORT, None, PATIENCE)))
        await asyncio.sleep(0.5)
    with pytest.raises(NobodyAnswersError):
        await waiting
