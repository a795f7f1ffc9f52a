from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyferry.cli.environment import environment
from keyferry.cli.exits import CommandError
from tests.cli.test_token import SEEDED
from tests.cli.workshop import PATIENCE, Workshop, wait_until

if TYPE_CHECKING:
    from tests.support.issuer_process import IssuerProcess

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
PLACE = {"directory": "/out/default/one", "files": [{"format": "Token", "name": "t"}]}


@pytest.fixture
def ready(workshop: Workshop) -> Workshop:
    workshop.identities("one", "two")
    assert workshop.once().returncode == 0
    return workshop


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ],
)
def test_the_exit_code_passes_through(ready: Workshop, command: str, code: int) -> None:
    done = ready.call("exec", "one", "--", "sh", "-c", command)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_command_that_cannot_be_started_is_told_as_shells_do(ready: Workshop) -> None:
    missing = ready.call("exec", "one", "--", "no-such-command")
    assert missing.returncode == 127
    assert "no-such-command" in missing.stderr
    plain = ready.base / "plain"
    plain.write_text("not a program")
    assert ready.call("exec", "one", "--", str(plain)).returncode == 126


def test_the_command_finds_its_files(ready: Workshop) -> None:
    done = ready.call("exec", "one", "two", "--", sys.executable, "-c", SHOW)
    found = json.loads(done.stdout)
    assert found["KEYFERRY_DIR"] == str(ready.out / "default")
    assert found["BEARER_TOKEN_FILE"] == str(ready.out / "default/one/token")
    assert Path(found["BEARER_TOKEN_FILE"]).read_text() == ready.stored("one")["token"]["access_token"]
    kept = ready.call("exec", "one", "--", sys.executable, "-c", SHOW, BEARER_TOKEN_FILE="mine")
    assert json.loads(kept.stdout)["BEARER_TOKEN_FILE"] == "mine"


def test_env_files_are_set_on_request(workshop: Workshop) -> None:
    more = "target: {files: [{format: Env, name: e.env, variables: {MY_TOKEN: '${access_token}'}}]}"
    workshop.identities("one", more=more)
    assert workshop.once().returncode == 0
    command = ["--", sys.executable, "-c", SHOW]
    found = json.loads(workshop.call("exec", "one", "--env", *command).stdout)
    assert found["MY_TOKEN"] == workshop.stored("one")["token"]["access_token"]
    assert "BEARER_TOKEN_FILE" not in found
    assert "MY_TOKEN" not in json.loads(workshop.call("exec", "one", *command).stdout)


def test_input_and_arguments_reach_the_command(ready: Workshop) -> None:
    with ready.start("exec", "one", "--", "cat", "-", stdin=subprocess.PIPE) as process:
        assert process.communicate("over\n", timeout=PATIENCE)[0] == "over\n"
        assert process.returncode == 0
    assert ready.call("exec", "one", "--", "echo", "--", "--help").stdout == "-- --help\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_pass_through(ready: Workshop, number: signal.Signals) -> None:
    script = f"import signal, sys; signal.signal({int(number)}, lambda *_: sys.exit(5))"
    script += "; print('up', flush=True); signal.pause()"
    with ready.start("exec", "one", "--", sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 5


def test_a_signal_that_the_command_does_not_handle_ends_both(ready: Workshop) -> None:
    with ready.start("exec", "one", "--", "sh", "-c", "echo up; exec sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


def test_a_command_is_not_started_without_a_good_token(workshop: Workshop) -> None:
    workshop.identities("one", grant=SEEDED)
    workshop.secret("seed", "token", "no-such-refresh-token")
    options = ["--resources", str(workshop.resources), *workshop.broker_options]
    done = workshop.call("exec", "one", *options, "--", "touch", str(workshop.base / "started"))
    assert done.returncode == 3
    assert not (workshop.base / "started").exists()


def test_a_signal_while_it_waits_for_a_token_ends_it(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    here.identities("one")
    issuer.stop()
    options = ["--resources", str(here.resources), *here.broker_options]
    with here.start("exec", "one", *options, "--", "touch", str(here.base / "started")) as process:
        wait_until((here.state / "failures/default/one.json").exists, "a failure")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
    assert not (here.base / "started").exists()


@pytest.mark.parametrize("arguments", [["one"], ["one", "--"], ["--", "true"]])
def test_names_and_a_command_are_needed(workshop: Workshop, arguments: list[str]) -> None:
    done = workshop.call("exec", *arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_tokens_are_kept_fresh_while_the_command_runs(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    issuer.settings(access_lifetime=4)
    here.identities("one")
    script = (
        "import os, time\n"
        "seen = set()\n"
        "while len(seen) < 3:\n"
        "    seen.add(open(os.environ['BEARER_TOKEN_FILE']).read())\n"
        "    time.sleep(0.1)\n"
    )
    options = ["--resources", str(here.resources), *here.broker_options]
    done = here.call("exec", "one", *options, "--", sys.executable, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert here.stored("one")["revision"] >= 3


def test_it_goes_on_by_itself_when_the_running_broker_is_gone(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    issuer.settings(access_lifetime=6)
    here.identities("one")
    release = here.base / "release"
    os.mkfifo(release)
    with here.running() as broker:
        command = ["--", "sh", "-c", f"echo up; read line < {release}; exit 9"]
        with here.start("exec", "one", *command) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            # Not a word to anybody, and its socket stays behind.
            broker.kill()
            broker.wait(PATIENCE)
            left = here.stored("one")["revision"]
            wait_until(lambda: here.stored("one")["revision"] >= left + 2, "renewals by exec itself")
            # Now it is the one that answers.
            assert here.call("token", "one").returncode == 0
            release.write_text("go\n")
            assert process.wait(PATIENCE) == 9
            assert process.stderr is not None
            assert "goes on by itself" in process.stderr.read()


def test_a_broker_of_one_command_serves_the_others(ready: Workshop) -> None:
    ready.age("two")
    with ready.start("exec", "one", "--", "sh", "-c", "echo up; exec sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        done = ready.call("token", "two", "--minimum-remaining", "30m")
        assert done.returncode == 0, done.stderr
        assert ready.stored("two")["revision"] == 2
        assert len(ready.statuses()) == 2
        process.terminate()
        assert process.wait(PATIENCE) == 143


def test_the_environment_of_a_tiled_identity(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
    (one / "TILED_API_KEY").write_text("the-key")
    tiled = [{"format": "Tiled", "name": None}]
    keyed, cached = {"directory": str(one), "files": tiled}, {"directory": str(two), "files": tiled}
    assert environment({}, [keyed, cached], with_env=False) == {
        "KEYFERRY_DIR": str(tmp_path),
        "TILED_API_KEY": "the-key",
        "TILED_CACHE_DIR": str(two / ".tiled"),
    }
    (two / "TILED_API_KEY").write_text("another")
    with pytest.raises(CommandError, match="TILED_API_KEY"):
        environment({}, [keyed, cached], with_env=False)
    assert environment({"TILED_API_KEY": "own"}, [keyed, cached], with_env=False)["TILED_API_KEY"] == "own"


def test_the_first_identity_names_the_bearer_token() -> None:
    other = {"directory": "/out/default/two", "files": [{"format": "Token", "name": "token"}]}
    assert environment({"A": "b"}, [PLACE, other], with_env=False) == {
        "A": "b",
        "KEYFERRY_DIR": "/out/default",
        "BEARER_TOKEN_FILE": "/out/default/one/t",
    }
