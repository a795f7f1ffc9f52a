from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.test_token import SEEDED
from tests.cli.workshop import CLIENT_CREDENTIALS, IDENTITY, PATIENCE, SECRET, Workshop, wait_until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    from tests.cli.conftest import Inside
    from tests.support.issuer_process import IssuerProcess

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_once_ends_well_when_all_are_fresh(workshop: Workshop) -> None:
    workshop.identities("one", "two")
    done = workshop.once()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = events(done.stdout)
    for line in lines:
        assert {"time", "level", "event", "namespace", "identity", "reason", "message"} <= line.keys()
        assert TIME.fullmatch(line["time"])
    obtained = [line for line in lines if line["event"] == "obtained"]
    assert sorted(line["identity"] for line in obtained) == ["one", "two"]
    assert all(TIME.fullmatch(line["expirationTime"]) and line["nextAttemptTime"] for line in obtained)
    assert lines[0]["event"] == "started"
    assert str(workshop.out) in lines[0]["message"]
    assert stat.S_IMODE((workshop.out / "default/one/token").stat().st_mode) == 0o600


def test_the_next_commands_know_how_it_was_run_and_no_secret_is_written_down(workshop: Workshop) -> None:
    workshop.identities("one")
    workshop.environment["BOT_SECRET"] = SECRET
    options = ["--secret-env", "bot/secret=BOT_SECRET", "--allow-host", "127.0.0.1", "--once"]
    assert workshop.call("run", "resources", *options).returncode == 0
    text = (workshop.state / "last-run.json").read_text()
    assert SECRET not in text
    assert json.loads(text)["resources"] == [str(workshop.resources)]
    assert json.loads(text)["secretEnv"] == [{"name": "bot", "key": "secret", "variable": "BOT_SECRET"}]
    workshop.age("one")
    assert workshop.call("token", "one", "--minimum-remaining", "30m").returncode == 0


def test_once_fails_when_the_client_is_refused(workshop: Workshop) -> None:
    workshop.identities("one")
    workshop.secret("bot", "secret", "not-the-secret")
    done = workshop.once()
    assert done.returncode == 1
    finished = events(done.stdout)[-1]
    assert finished["event"] == "finished"
    assert "ClientRejected" in finished["message"]
    assert "not-the-secret" not in done.stdout + done.stderr


def test_once_fails_after_its_timeout(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    here.identities("one")
    issuer.stop()
    done = here.once("--timeout", "2s")
    assert done.returncode == 1
    assert "0 of 1" in events(done.stdout)[-1]["message"]


def test_once_says_that_a_person_is_needed(workshop: Workshop) -> None:
    workshop.identities("one", grant=SEEDED)
    workshop.secret("seed", "token", "no-such-refresh-token")
    done = workshop.once()
    assert done.returncode == 3, done.stdout
    assert "no-such-refresh-token" not in done.stdout


def test_resources_that_are_all_wrong_start_nothing_and_are_all_named(workshop: Workshop) -> None:
    workshop.write("a.yaml", IDENTITY.format(name="one", grant="{type: Nonsense}", more="colour: red"))
    workshop.write("b.yaml", "kind: [")
    for options in ([], ["--once"]):
        done = workshop.call("run", str(workshop.resources), *options)
        assert done.returncode == 2
        told = "\n".join(line["message"] for line in events(done.stdout))
        assert re.search(r"a\.yaml:\d+: .*spec\.grant", told)
        assert re.search(r"a\.yaml:\d+: .*colour", told)
        assert "b.yaml" in told
        assert "nothing was started" in done.stderr
    assert not workshop.out.exists() or not list(workshop.out.rglob("token"))


def test_what_is_right_works_beside_what_is_wrong(workshop: Workshop) -> None:
    workshop.identities("one")
    workshop.write("wrong.yaml", IDENTITY.format(name="two", grant="{type: Nonsense}", more=""))
    workshop.write(
        "lost.yaml", IDENTITY.format(name="three", grant=CLIENT_CREDENTIALS, more="").replace("issuer", "no")
    )
    done = workshop.once()
    assert done.returncode == 2
    assert (workshop.out / "default/one/token").exists()
    first = [line["message"] for line in events(done.stdout) if line["event"] == "invalid_resource"]
    assert any("wrong.yaml:" in message for message in first)
    assert any("lost.yaml:" in message for message in first)


@pytest.mark.parametrize("options", [["--once"], []])
def test_a_path_that_is_not_there_is_a_mistake(workshop: Workshop, options: list[str]) -> None:
    done = workshop.call("run", str(workshop.base / "nowhere"), *options)
    assert done.returncode == 2
    assert "nowhere" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--secret-env", "bot"],
        ["--service-account-token", "file"],
        ["--allow-host", "a b"],
        ["--timeout", "1"],
        ["--metrics", "x:y"],
        ["--log-level", "loud"],
        ["--no-such-option"],
    ],
)
def test_a_wrong_option_is_a_mistake(inside: Inside, options: list[str]) -> None:
    code, out, err = inside("run", "resources", *options)
    assert (code, out) == (2, "")
    assert options[0] in err


def test_of_two_runs_on_one_state_the_second_says_why_it_does_not(workshop: Workshop) -> None:
    workshop.identities("one")
    with workshop.running() as first:
        second = workshop.call("run", str(workshop.resources), *workshop.broker_options)
        assert second.returncode == 4
        assert f"pid {first.pid} " in second.stderr
        assert "--state" in second.stderr
        assert first.poll() is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_order(workshop: Workshop, number: signal.Signals, code: int) -> None:
    workshop.identities("one")
    with workshop.running() as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (code, "")
        assert events(out)[-1]["event"] == "stopping"
        assert not (workshop.state / "control.sock").exists()


def test_a_spend_under_way_is_finished_before_the_end(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    here.identities("one", grant=SEEDED)
    here.secret("seed", "token", issuer.seed_refresh_token("workshop", "ada"))
    issuer.add_fault(Fault(FaultKind.LATENCY, delay=4.0))
    with here.start("run", str(here.resources), *here.broker_options) as process:
        wait_until(lambda: here.claimed("one"), "a claim")
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
    record = here.stored("one")
    assert record["revision"] == 1
    assert "claim" not in record


def test_a_second_interrupt_ends_it_at_once(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    here.identities("one", grant=SEEDED)
    here.secret("seed", "token", issuer.seed_refresh_token("workshop", "ada"))
    issuer.add_fault(Fault(FaultKind.STALL_BEFORE))
    with here.start("run", str(here.resources), *here.broker_options) as process:
        wait_until(lambda: here.claimed("one"), "a claim")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert any('"stopping"' in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    # Not even the request's own end was waited for.
    assert here.claimed("one")


def test_metrics_are_served_where_they_are_asked_for(workshop: Workshop) -> None:
    workshop.identities("one")
    with workshop.start(
        "run", str(workshop.resources), *workshop.broker_options, "--metrics", "127.0.0.1:0"
    ) as process:
        assert process.stdout is not None
        line = next(line for line in iter(process.stdout.readline, "") if '"metrics"' in line)
        url = json.loads(line)["message"].split()[-1]
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            assert b"keyferry_" in answer.read()


def test_debugging_shows_nothing_secret(workshop: Workshop) -> None:
    workshop.identities("one")
    done = workshop.once("--log-level", "debug")
    assert done.returncode == 0
    token = workshop.stored("one")["token"]["access_token"]
    assert SECRET not in done.stdout + done.stderr
    assert token not in done.stdout + done.stderr
    loggers = {line["logger"].partition(".")[0] for line in events(done.stdout) if "logger" in line}
    assert loggers <= {"keyferry"}
    quiet = workshop.call(
        "run", str(workshop.resources), *workshop.broker_options, "--once", KEYFERRY_LOG_LEVEL="error"
    )
    assert (quiet.returncode, quiet.stdout) == (0, "")


def test_a_reader_that_is_gone_does_not_end_it(workshop: Workshop) -> None:
    workshop.identities("one")
    with workshop.start("run", str(workshop.resources), *workshop.broker_options) as process:
        assert process.stdout is not None
        process.stdout.close()
        wait_until(workshop.statuses, "a fresh token")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
