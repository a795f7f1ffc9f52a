from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cli.workshop import Workshop

if TYPE_CHECKING:
    from tests.support.issuer_process import IssuerProcess

SEEDED = "{type: RefreshToken, refreshToken: {from: {secretKeyRef: {name: seed, key: token}}}}"


def test_the_stored_token_is_printed_alone(workshop: Workshop) -> None:
    workshop.identities("one")
    assert workshop.once().returncode == 0
    done = workshop.call("token", "one")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{workshop.stored('one')['token']['access_token']}\n"
    assert done.stdout == (workshop.out / "default/one/token").read_text() + "\n"


def test_without_a_running_broker_the_command_renews_by_itself(workshop: Workshop) -> None:
    workshop.identities("one", "two")
    assert workshop.once().returncode == 0
    workshop.age("one", "two")
    before = workshop.stored("one")
    done = workshop.call("token", "one", "--minimum-remaining", "30m")
    assert done.returncode == 0, done.stderr
    after = workshop.stored("one")
    assert after["revision"] == before["revision"] + 1
    assert done.stdout.strip() == after["token"]["access_token"] != before["token"]["access_token"]
    # It worked on the one that was asked for.
    assert workshop.stored("two")["revision"] == 1


def test_the_first_token_comes_without_any_run(workshop: Workshop) -> None:
    workshop.identities("one")
    options = ["--secrets", str(workshop.base / "secrets"), "--allow-host", "127.0.0.1"]
    done = workshop.call("token", "one", *options, KEYFERRY_RESOURCES=str(workshop.resources))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == workshop.stored("one")["token"]["access_token"]


def test_the_running_broker_is_asked_to_renew(workshop: Workshop) -> None:
    workshop.identities("one")
    assert workshop.once().returncode == 0
    workshop.age("one")
    with workshop.running():
        done = workshop.call("token", "one", "--minimum-remaining", "30m")
        assert done.returncode == 0, done.stderr
        assert workshop.status("one")["revision"] == 2
        assert done.stdout.strip() == workshop.stored("one")["token"]["access_token"]
        unknown = workshop.call("token", "nobody")
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert "default/nobody" in unknown.stderr


def test_a_life_that_the_provider_never_gives_is_refused_without_trying_on_and_on(workshop: Workshop) -> None:
    workshop.identities("one")
    assert workshop.once().returncode == 0
    for _ in range(2):
        done = workshop.call("token", "one", "--minimum-remaining", "2h")
        assert (done.returncode, done.stdout) == (1, "")
        assert "live for 1h" in done.stderr
    assert workshop.stored("one")["revision"] == 1


def test_without_resources_it_says_what_to_name(workshop: Workshop) -> None:
    done = workshop.call("token", "one")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--resources" in done.stderr


def test_an_identity_that_nobody_declared_is_named(workshop: Workshop) -> None:
    workshop.identities("one")
    assert workshop.once().returncode == 0
    done = workshop.call("token", "other")
    assert (done.returncode, done.stdout) == (2, "")
    assert "default/other" in done.stderr
    assert "default/one" in done.stderr


def test_a_person_is_needed_when_the_seed_is_refused(workshop: Workshop) -> None:
    workshop.identities("one", grant=SEEDED)
    workshop.secret("seed", "token", "no-such-refresh-token")
    done = workshop.call("token", "one", "--resources", str(workshop.resources), *workshop.broker_options)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "no-such-refresh-token" not in done.stderr


def test_an_issuer_that_is_away_costs_no_more_than_the_timeout(workshop: Workshop, issuer: IssuerProcess) -> None:
    here = Workshop(workshop.base, issuer)
    here.identities("one")
    issuer.stop()
    options = ["--resources", str(here.resources), *here.broker_options, "--timeout", "2s"]
    done = here.call("token", "one", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert "default/one" in done.stderr
    wrong = here.call("token", "one", "--timeout", "soon")
    assert (wrong.returncode, wrong.stdout) == (2, "")
