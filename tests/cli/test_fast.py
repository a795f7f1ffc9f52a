from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from keyferry.cli import fast
from keyferry.freshness import LONGEST_LEEWAY, leeway
from keyferry.run.settings import default_state
from keyferry.spec.durations import parse_duration

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.workshop import Workshop

HEAVY = {"argparse", "asyncio", "dataclasses", "enum", "json", "pathlib", "pydantic", "re", "rich", "typer"}


def store(state: Path, *, left: float = 600.0, life: float = 3600.0, name: str = "one", **fields: object) -> str:
    now = time.time()
    token = {"access_token": "the-token", "issued_at": now + left - life, "expires_at": now + left, "publishable": True}
    minimum = fields.pop("minimum_remaining", 0.0)
    record = {"version": 1, "record": {"schema": 1, "minimum_remaining": minimum, "token": token | fields}}
    path = state / "records" / "default" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return str(state)


@pytest.mark.parametrize(
    ("left", "minimum", "found"),
    [
        (600.0, None, True),
        (600.0, 500.0, True),
        (600.0, 610.0, False),
        (4.0, None, False),
        (4.5, 0.0, True),
        (-1.0, 0.0, False),
        (-1.0, None, False),
    ],
)
def test_a_token_must_live_long_enough(tmp_path: Path, left: float, minimum: float | None, found: bool) -> None:  # noqa: FBT001
    state = store(tmp_path, left=left)
    assert fast.stored_token(state, "default", "one", minimum) == ("the-token" if found else None)


def test_what_the_record_asks_for_counts_where_nobody_says_otherwise(tmp_path: Path) -> None:
    state = store(tmp_path, left=600.0, minimum_remaining=700.0)
    assert fast.stored_token(state, "default", "one", None) is None
    assert fast.stored_token(state, "default", "one", 500.0) == "the-token"


def test_a_short_token_need_not_live_for_the_whole_leeway(tmp_path: Path) -> None:
    state = store(tmp_path, left=4.9, life=6.0)
    assert fast.stored_token(state, "default", "one", None) == "the-token"
    assert leeway(0.0, 6.0) == 1.5
    assert leeway(0.0, 3600.0) == LONGEST_LEEWAY == fast.LEEWAY


@pytest.mark.parametrize("fields", [{"publishable": False}, {"access_token": "bad\ntoken"}, {"access_token": 7}])
def test_what_must_not_be_published_is_not_printed(tmp_path: Path, fields: dict[str, object]) -> None:
    assert fast.stored_token(store(tmp_path, **fields), "default", "one", None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../default/one", "", ".", "..", "one/", "ONE", "one\0"])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    assert fast.stored_token(store(tmp_path), "default", name, None) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"record": {"token": null}}', "[" * 100_000, "\xff"])
def test_a_damaged_record_is_left_to_the_broker(tmp_path: Path, text: str) -> None:
    state = store(tmp_path)
    (tmp_path / "records/default/one.json").write_text(text, encoding="latin-1")
    assert fast.stored_token(state, "default", "one", None) is None


@pytest.mark.parametrize(
    "text", ["5m", "1h30m", "7d", "0s", "90s", "1d2h3m4s", "", "5", "m", "5m5", "1m1h", "1.5h", "-1s"]
)
def test_durations_are_read_as_everywhere(text: str) -> None:
    try:
        expected: float | None = parse_duration(text)
    except ValueError:
        expected = None
    assert fast.seconds(text) == expected


@pytest.mark.parametrize(
    "words",
    [
        "one",
        "one --minimum-remaining 5m",
        "--minimum-remaining=5m one",
        "one -n batch",
        "one --namespace=batch --state /s",
    ],
)
def test_plain_options_are_understood(words: str) -> None:
    asked = fast.parse(words.split())
    assert asked is not None
    assert asked.name == "one"
    assert asked.minimum == (300.0 if "5m" in words else None)
    assert asked.namespace == ("batch" if "batch" in words else "default")


@pytest.mark.parametrize(
    "words", ["", "one two", "one --help", "one -n", "one --minimum-remaining 5x", "one --out x", "-n= one"]
)
def test_the_rest_is_left_to_the_parser(words: str) -> None:
    assert fast.parse(words.split()) is None


def test_the_state_directory_is_the_same_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "/somewhere"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert fast.default_state() == str(default_state())


def test_nothing_heavy_is_imported_to_print_a_stored_token(workshop: Workshop) -> None:
    store(workshop.state)
    code = "import sys; before = set(sys.modules); from keyferry.cli import main; code = main(); "
    code += "print(code, *sorted(set(sys.modules) - before), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, "token", "one"],
        env=workshop.environment | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    code_text, *modules = done.stderr.split()
    assert (code_text, done.stdout) == ("0", "the-token\n")
    assert "keyferry.cli.fast" in modules
    assert not HEAVY & {module.partition(".")[0] for module in modules}


def test_a_full_disk_is_no_token(workshop: Workshop) -> None:
    store(workshop.state)
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            workshop.command("token", "one"), env=workshop.environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
