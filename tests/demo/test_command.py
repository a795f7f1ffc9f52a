from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from keyferry.demo.issuer import start_demo_issuer
from keyferry.demo.resources import resource_text, write_files
from keyferry.spec.resources import load_documents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE = 180.0
PROGRAM = """
import asyncio, sys
from keyferry.demo.command import run_demo
sys.exit(asyncio.run(run_demo(%s)))
"""
GOES_ON = b"this goes on until Ctrl-C"
NAMES = ("nightly-report", "ingest", "archive", "analysis")


class Demo:
    """The demo in a process and a session of its own, with a directory for temporary files of its own."""

    def __init__(self, directory: Path, arguments: str = "", *, terminal: bool = False) -> None:
        self.directory = directory
        if terminal:
            self.reader, output = pty.openpty()
        else:
            self.reader, output = os.pipe()
        environment = {**os.environ, "TMPDIR": str(directory), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        command = [sys.executable, "-W", "error", "-c", PROGRAM % arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        os.close(output)
        self.output = b""

    def read_until(self, reached: Callable[[bytes], bool]) -> None:
        """Read on until something was printed, or the end."""
        os.set_blocking(self.reader, False)
        until = time.monotonic() + DEADLINE
        while not reached(self.output):
            assert time.monotonic() < until, self.output.decode()
            try:
                part = os.read(self.reader, 65536)
            except BlockingIOError:
                time.sleep(0.02)
                continue
            except OSError:  # how a terminal ends
                return
            if not part:
                return
            self.output += part

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and all that was printed."""
        self.read_until(lambda _output: False)
        return self.process.wait(DEADLINE), self.output.decode()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.reader)

    def assert_nothing_is_left(self) -> None:
        assert list(self.directory.iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(arguments: str = "", *, terminal: bool = False) -> Demo:
        started.append(Demo(tmp_path, arguments, terminal=terminal))
        return started[-1]

    yield start
    for demo in started:
        demo.close()


def rows(output: str) -> dict[str, tuple[str, int, str]]:
    """Return the summary: by identity its grant, its renewals and the words on refresh tokens."""
    found = re.findall(r"^    (\S+) +([A-Z]\w+) +(\d+) +(\S.*)$", output, re.MULTILINE)
    return {name: (grant, int(renewals), words.strip()) for name, grant, renewals, words in found}


def test_off_a_terminal_it_ends_by_itself_once_all_were_renewed_twice(start: Callable[..., Demo]) -> None:
    demo = start()
    code, output = demo.end()
    assert code == 0, output
    summary = rows(output)
    assert summary.keys() == set(NAMES)
    grants = ["ClientCredentials", "RefreshToken", "Password", "DeviceCode"]
    assert [grant for grant, _, _ in summary.values()] == grants
    assert min(renewals for _, renewals, _ in summary.values()) >= 2
    assert summary["nightly-report"][2] == "-"
    for name in ("ingest", "archive", "analysis"):
        spent, words = summary[name][2].split(", ")
        assert (int(spent) >= 2, words) == (True, "none twice")
    for name in NAMES:
        assert re.search(rf"^ +[0-9.]+ s  {name} +obtained: revision 1, good for ", output, re.MULTILINE)
    said = ["analysis +approval_required", "analysis +ada compares the code and approves", "analysis +obtained"]
    assert re.search(".*".join(said), output, re.DOTALL), "nobody was there, and somebody approved"
    assert "keyferry run FILE" in output
    demo.assert_nothing_is_left()


def test_it_fails_where_renewals_do_not_come(start: Callable[..., Demo]) -> None:
    demo = start("lifetime=600, bound=2")
    code, output = demo.end()
    assert code == 1, output
    for name in NAMES:
        assert f"FAILED: {name} was renewed 0 of 2 times within 2 s" in output
    assert "Next:" not in output
    demo.assert_nothing_is_left()


def test_it_goes_on_where_it_is_asked_to_and_its_files_are_private(start: Callable[..., Demo]) -> None:
    demo = start("keep=True, lifetime=2")
    demo.read_until(lambda output: GOES_ON in output)
    assert demo.process.poll() is None
    (base,) = demo.directory.iterdir()
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    for name in NAMES:
        assert (base / "out" / "default" / name / "token").read_text()
    secrets = [path for path in (base / "secrets").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    demo.process.send_signal(signal.SIGINT)
    code, output = demo.end()
    assert code == 0, output
    assert rows(output).keys() == set(NAMES)
    demo.assert_nothing_is_left()


def test_a_signal_ends_it_early_and_leaves_nothing(start: Callable[..., Demo]) -> None:
    demo = start("lifetime=600")
    demo.read_until(lambda output: b"obtained" in output)
    demo.process.send_signal(signal.SIGTERM)
    code, output = demo.end()
    assert code == 128 + signal.SIGTERM, output
    assert "FAILED" not in output
    demo.assert_nothing_is_left()


def test_on_a_terminal_it_shows_the_table_until_it_is_interrupted(start: Callable[..., Demo]) -> None:
    demo = start("lifetime=2", terminal=True)
    demo.read_until(lambda output: GOES_ON in output)
    demo.process.send_signal(signal.SIGINT)
    code, output = demo.end()
    assert code == 0, output
    assert "IDENTITY" in output
    assert "EXPIRES" in output
    assert re.search(r"4 identities: .*\d fresh", output)
    demo.assert_nothing_is_left()


async def test_the_resources_are_valid_and_hold_no_secret(tmp_path: Path) -> None:
    issuer = await start_demo_issuer()
    try:
        files = await asyncio.to_thread(write_files, issuer, tmp_path)
        text = files.resources.read_text()
        assert text == resource_text(issuer.issuer, issuer.accounts)
    finally:
        await issuer.close()
    loaded = load_documents(text.encode(), str(files.resources))
    assert loaded.problems == ()
    assert [identity.key.name for identity in loaded.identities] == list(NAMES)
    secrets = {path: path.read_text() for path in files.secrets.rglob("*") if path.is_file()}
    assert len(secrets) == 7
    assert not [path for path, secret in secrets.items() if path.name != "username" and secret in text]
    for document in yaml.safe_load_all(text):
        for source in _references(document):
            assert files.secrets / "default" / source["name"] / source["key"] in secrets


def _references(value: object) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        for key, member in value.items():
            if key == "secretKeyRef":
                yield member
            else:
                yield from _references(member)
    elif isinstance(value, list):
        for member in value:
            yield from _references(member)
