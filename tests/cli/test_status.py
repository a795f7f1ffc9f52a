from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cli.test_token import SEEDED
from tests.cli.workshop import Workshop, wait_until

if TYPE_CHECKING:
    from tests.support.issuer_process import IssuerProcess


def test_what_is_stored_is_shown_without_a_broker(workshop: Workshop) -> None:
    workshop.identities("one", "two")
    assert workshop.once().returncode == 0
    done = workshop.call("status")
    assert done.returncode == 0
    assert "no keyferry runs" in done.stderr
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["IDENTITY", "PROVIDER", "GRANT", "STATE", "EXPIRES", "RENEWS", "LAST", "ERROR"]
    assert rows[1].split()[:4] == ["one", "issuer", "ClientCredentials", "Fresh"]
    assert len(workshop.call("status", "two").stdout.splitlines()) == 3


def test_json_is_in_the_shape_of_the_contract(workshop: Workshop) -> None:
    workshop.identities("one")
    with workshop.running():
        status = workshop.status("one")
    assert status["revision"] == 1
    assert {"issueTime", "expirationTime", "renewalTime"} <= status.keys()
    assert status["failureCount"] == 0
    assert [(item["type"], item["status"], item["reason"]) for item in status["conditions"]] == [
        ("Ready", "True", "Issued"),
        ("Reconciling", "False", "Issued"),
        ("Stalled", "False", "Issued"),
    ]


def test_what_is_stalled_says_why(workshop: Workshop) -> None:
    workshop.identities("one", grant=SEEDED)
    workshop.secret("seed", "token", "no-such-refresh-token")
    assert workshop.once().returncode == 3
    done = workshop.call("status", "one", "-o", "json")
    assert done.returncode == 1
    status = json.loads(done.stdout)["items"][0]["status"]
    conditions = {item["type"]: item for item in status["conditions"]}
    assert (conditions["Ready"]["status"], conditions["Stalled"]["status"]) == ("False", "True")
    assert status["lastError"]["code"] == "invalid_grant"
    assert status["lastError"]["message"] == conditions["Stalled"]["message"] != ""
    assert "no-such-refresh-token" not in done.stdout
    wide = workshop.call("status", "-o", "wide")
    assert (wide.returncode, "Stalled" in wide.stdout) == (1, True)


def test_the_running_broker_tells_the_next_attempt(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    here.identities("one")
    issuer.stop()
    with here.start("run", str(here.resources), *here.broker_options):
        wait_until((here.state / "failures/default/one.json").exists, "a failure")
        done = here.call("status", "one", "-o", "json")
        status = json.loads(done.stdout)["items"][0]["status"]
        assert done.returncode == 1
        assert status["failureCount"] >= 1
        assert status["nextAttemptTime"]


def test_an_unknown_identity_is_a_mistake_and_nothing_is_not_ready(workshop: Workshop) -> None:
    empty = workshop.call("status")
    assert (empty.returncode, "no identities" in empty.stdout) == (1, True)
    unknown = workshop.call("status", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
