from __future__ import annotations

from pathlib import Path

import pytest

from keyferry.io.addresses import HostRule
from keyferry.run.last_run import LastRun, merged, remember
from keyferry.run.settings import RunSettings
from keyferry.run.sources import SecretSettings


def settings(state: Path) -> RunSettings:
    return RunSettings(
        paths=(Path("/r/one.yaml"), Path("/r/more")),
        out=Path("/out"),
        state=state,
        secrets=SecretSettings(
            directory=Path("/secrets"),
            environment={("bot", "key"): "BOT"},
            service_account_tokens={"https://a=b": Path("/sa")},
        ),
        allowed_hosts=(HostRule.parse("[::1]:8443"), HostRule.parse("localhost")),
        default_namespace="batch",
    )


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    there = settings(tmp_path)
    assert remember(there) == ""
    assert merged(LastRun(), LastRun.read(tmp_path), state=tmp_path, out=Path("/default")) == there


def test_what_is_given_counts_more(tmp_path: Path) -> None:
    remember(settings(tmp_path))
    given = LastRun(resources=(Path("/other"),), secret_env={("bot", "key"): "OTHER"}, namespace="night")
    found = merged(given, LastRun.read(tmp_path), state=tmp_path, out=Path("/default"))
    assert found.paths == (Path("/other"),)
    assert found.secrets.environment == {("bot", "key"): "OTHER"}
    assert found.default_namespace == "night"
    assert found.out == Path("/out")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"resources": 1}', "null", '{"resources": [], "out": 3}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "last-run.json").write_text(text)
    assert LastRun.read(tmp_path) == LastRun()


def test_a_disk_that_does_not_take_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    assert str(tmp_path / "state") in remember(settings(tmp_path / "state"))
