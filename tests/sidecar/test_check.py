"""The probe, as the webhook has the kubelet call it."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest

from keyferry.sidecar.check import STATUS, main, parse
from tests.operator.injection.samples import container, injected
from tests.operator.injection.samples import pod as new_pod

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = {
    "expires_at": None,
    "written_at": 1.0,
    "revision": 1,
    "confirmed_at": None,
    "problem": None,
}


def command(name: str) -> list[str]:
    """The arguments of a probe of an injected pod's sidecar."""
    program, role, *arguments = container(injected(new_pod()), "keyferry")[f"{name}Probe"]["exec"]["command"]
    assert (program, role) == ("keyferry", "sidecar")
    return list(arguments)


def test_the_probes_of_an_injected_pod_are_understood() -> None:
    assert parse(command("startup")) == ("/var/run/keyferry", 50)
    assert parse(command("readiness")) == ("/var/run/keyferry", 0)


@pytest.mark.parametrize(
    "words",
    [["--wait"], ["--wait", "-1"], ["--wait=soon"], ["--wait", "50s"], ["--dir"], ["--dir="], ["x"], ["--w", "1"]],
)
def test_other_words_are_not(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", *words]) == 2
    assert "usage:" in capsys.readouterr().err


def write(directory: Path, *, passed: bool) -> None:
    status = {"gate": {"passed": passed, "waiting": "nightly has no token yet"}, "identities": {"nightly": WHOLE}}
    file = directory / STATUS
    file.parent.mkdir(exist_ok=True)
    file.with_suffix(".new").write_text(json.dumps(status))
    file.with_suffix(".new").rename(file)


def test_it_waits_until_the_gate_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, passed=False)
    opening = threading.Timer(0.5, write, (tmp_path,), {"passed": True})
    opening.start()
    assert main(["--check", f"--dir={tmp_path}", "--wait", "600"]) == 0
    opening.join()
    assert "nightly: revision 1, good until revoked" in capsys.readouterr().out


def test_it_ends_although_the_gate_stays_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    assert main(["--check", "--dir", str(tmp_path), "--wait=1"]) == 1
    assert time.monotonic() - begun >= 1
    assert "has not begun to work yet" in capsys.readouterr().err
