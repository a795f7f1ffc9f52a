"""Which tests are run once more in CI, and what is told of them: asked of a run of pytest's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "pytest", "-p", "tests.support.retries", "-n", "2", "--dist", "worksteal")

SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
timeout = 600
filterwarnings = error
markers =
    cluster: a server
    keycloak: a server
    tiled: a server
    crash: killed
"""

TESTS = '''
import asyncio
import time
from pathlib import Path

import pytest
import pytest_asyncio


def times(name: str) -> int:
    """Count the tries of a test, in whichever process."""
    with (Path(__file__).parent / name).open("a+") as file:
        file.write("x")
        return file.tell()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server():
    yield times("server")


@pytest.mark.keycloak
@pytest.mark.asyncio(loop_scope="module")
async def test_fails_at_first(server):
    assert times("first") > 1, "a slow server"


@pytest.mark.keycloak
@pytest.mark.tiled
def test_cannot_begin_at_first(request):
    if times("begin") == 1:
        raise RuntimeError("a server that was killed")


@pytest.mark.cluster
def test_fails_always():
    assert times("always") > 5, "not chance"


@pytest.mark.cluster
@pytest.mark.crash
def test_of_a_crash():
    assert times("crash") > 1, "a lost token"


def test_without_a_server():
    assert times("own") > 1, "our own mistake"


@pytest.mark.tiled
@pytest.mark.timeout(5)
async def test_hangs():
    times("hangs")
    await asyncio.sleep(600)


@pytest.mark.tiled
@pytest.mark.timeout(15)
def test_hangs_the_second_time():
    assert times("then") > 1, "a slow answer"
    time.sleep(600)
'''


def test_only_those_beside_a_server_and_only_once(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_sample.py").write_text(TESTS)
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*COMMAND, "-c", tmp_path / "pytest.ini", tmp_path],
        cwd=REPOSITORY,
        env={**outside, "CI": "true", "KEYFERRY_RETRY_TIERS": "cluster,keycloak,tiled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    said = done.stdout
    assert done.returncode == 1, said + done.stderr
    tries = {path.name: len(path.read_text()) for path in tmp_path.iterdir() if path.is_file() and not path.suffix}
    assert {name: count for name, count in tries.items() if name != "server"} == {
        "first": 2,
        "begin": 2,
        "always": 2,
        "crash": 1,
        "own": 1,
        "hangs": 1,
        "then": 2,
    }
    for reason in ("a slow server", "a server that was killed", "a slow answer"):
        assert reason in said.partition("= FAILURES =")[0], "in full, and at once"
    last = said.partition("4 TESTS FAILED AT FIRST AND WERE RUN ONCE MORE")[2]
    assert [line.strip().rpartition("::")[2] for line in last.splitlines()[1:] if line.strip()] == [
        "test_cannot_begin_at_first: passed then",
        "test_fails_always: FAILED AGAIN",
        "test_fails_at_first: passed then",
        "test_hangs_the_second_time: FAILED AGAIN",
    ]
