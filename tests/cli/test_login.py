from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.device_codes import Decision
from tests.cli.workshop import wait_until
from tests.support.faults import Fault, FaultKind

if TYPE_CHECKING:
    import subprocess

    from tests.cli.workshop import Workshop

DEVICE = "{type: DeviceCode}"
CODE = re.compile(r"\b[B-Z]{4}-[B-Z]{4}\b")


def asked(told: subprocess.Popen[str]) -> str:
    """Read what the person is shown, up to the code; return the code."""
    assert told.stderr is not None
    shown = ""
    while not CODE.search(shown):
        line = told.stderr.readline()
        assert line, f"it ended after {shown!r}"
        shown += line
    assert "/device?user_code=" in shown
    return str(CODE.findall(shown)[-1])


@pytest.mark.parametrize("running", [True, False])
def test_a_person_approves_in_front_of_the_terminal(workshop: Workshop, running: bool) -> None:  # noqa: FBT001
    workshop.identities("one", grant=DEVICE)
    if running:
        with workshop.running(fresh=False):
            _approve(workshop)
            assert workshop.call("token", "one").returncode == 0
    else:
        _approve(workshop, "--resources", str(workshop.resources), *workshop.broker_options)
    assert workshop.stored("one")["revision"] == 1


def _approve(workshop: Workshop, *options: str) -> None:
    with workshop.start("login", "one", *options) as login:
        workshop.issuer.decide(asked(login), Decision.APPROVED)
        out, _ = login.communicate(timeout=120)
    assert login.returncode == 0
    assert "default/one: approved, revision 1, good until" in out


def test_who_says_no_is_told_how_to_be_asked_again(workshop: Workshop) -> None:
    workshop.identities("one", grant=DEVICE)
    with (
        workshop.running(fresh=False),
        workshop.start("login", "one") as login,
    ):
        workshop.issuer.decide(asked(login), Decision.DENIED)
        assert login.stderr is not None
        err = login.stderr.read()  # communicate() would miss what came together with the line of the code
        assert login.wait(120) == 3
        assert re.search(r"It lapses at .*\d\d:\d\d\.", err)
        assert "said no" in err
        assert "keyferry login" in err


def test_commands_that_ask_nobody_say_which_one_does(workshop: Workshop) -> None:
    workshop.identities("one", grant=DEVICE)
    done = workshop.call("token", "one", "--resources", str(workshop.resources), *workshop.broker_options)
    assert (done.returncode, done.stdout) == (3, "")
    assert "keyferry login one -n default" in done.stderr
    once = workshop.once()
    assert once.returncode == 3


def test_the_status_shows_the_question(workshop: Workshop) -> None:
    workshop.identities("one", grant=DEVICE)
    with workshop.running(fresh=False):
        wait_until(lambda: "approval" in workshop.status("one"), "the identity asks")
        approval = workshop.status("one")["approval"]
        assert CODE.fullmatch(approval["userCode"])
        assert approval["verificationURIComplete"].endswith(approval["userCode"])
        for command in ("token", "renew"):
            refused = workshop.call(command, "one")
            assert refused.returncode == 3
            assert "default/one waits for a person: `keyferry login one -n default` shows where" in refused.stderr
        workshop.issuer.decide(approval["userCode"], Decision.APPROVED)
        wait_until(lambda: workshop.status("one").get("revision") == 1, "the token is there")
        assert "approval" not in workshop.status("one")


def test_other_grants_need_no_login(workshop: Workshop) -> None:
    workshop.identities("one")
    done = workshop.call("login", "one", "--resources", str(workshop.resources), *workshop.broker_options)
    assert done.returncode == 1
    assert "needs no login: its grant is ClientCredentials" in done.stderr


def test_a_question_that_lapsed_is_said_to_have(workshop: Workshop) -> None:
    workshop.issuer.add_fault(Fault(FaultKind.SET_FIELD, path="/device_authorization", name="expires_in", value=10))
    workshop.identities("one", grant=DEVICE)
    done = workshop.call("login", "one", "--resources", str(workshop.resources), *workshop.broker_options)
    assert done.returncode == 3
    assert re.search(r"nobody answered (before|in time)", done.stderr)
    status = workshop.call("status", "--resources", str(workshop.resources), "--state", str(workshop.state))
    assert "waits for a person. Open" not in status.stdout
