from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cli.test_token import SEEDED

if TYPE_CHECKING:
    from tests.cli.workshop import Workshop


def test_the_running_broker_renews_once_a_minute(workshop: Workshop) -> None:
    workshop.identities("one", "two")
    with workshop.running():
        done = workshop.call("renew", "one", "two")
        assert (done.returncode, done.stderr) == (0, "")
        assert "default/one: renewed, revision 2" in done.stdout
        again = workshop.call("renew", "one")
        assert (again.returncode, again.stdout) == (1, "")
        assert "again in" in again.stderr
        assert workshop.status("two")["revision"] == 2


def test_without_a_running_broker_the_age_of_the_token_counts(workshop: Workshop) -> None:
    workshop.identities("one")
    options = ["--resources", str(workshop.resources), *workshop.broker_options]
    first = workshop.call("renew", "one", *options)
    assert first.returncode == 0, first.stderr
    assert workshop.stored("one")["revision"] == 1
    again = workshop.call("renew", "one", *options)
    assert again.returncode == 1
    assert "again in" in again.stderr
    assert workshop.stored("one")["revision"] == 1


def test_a_refusal_is_told(workshop: Workshop) -> None:
    workshop.identities("one", grant=SEEDED)
    workshop.secret("seed", "token", "no-such-refresh-token")
    done = workshop.call("renew", "one", "--resources", str(workshop.resources), *workshop.broker_options)
    assert (done.returncode, done.stdout) == (3, "")
    assert "default/one" in done.stderr
    unknown = workshop.call("renew", "nobody", "--resources", str(workshop.resources))
    assert unknown.returncode == 2
