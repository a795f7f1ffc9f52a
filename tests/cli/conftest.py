from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

import pytest

from keyferry.cli.app import run_app
from tests.cli.workshop import CLIENT, Workshop
from tests.support.issuer_process import IssuerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


Inside: TypeAlias = "Callable[..., tuple[int, str, str]]"


@pytest.fixture(scope="session")
def shared_issuer() -> Iterator[IssuerProcess]:
    with IssuerProcess() as issuer:
        issuer.settings(access_lifetime=3600)
        issuer.add_client(CLIENT)
        yield issuer


@pytest.fixture
def issuer() -> Iterator[IssuerProcess]:
    """Return an issuer of the test's own, for faults and short lifetimes."""
    with IssuerProcess() as issuer:
        issuer.settings(access_lifetime=3600)
        issuer.add_client(CLIENT)
        yield issuer


@pytest.fixture
def inside(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Return a function that runs a command in this process, where that makes no difference, and its output."""
    monkeypatch.chdir(workshop.base)
    for name in [name for name in os.environ if name.startswith(("KEYFERRY_", "XDG_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "COLUMNS"):
        monkeypatch.setenv(name, workshop.environment[name])

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_app(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def workshop(tmp_path: Path, shared_issuer: IssuerProcess) -> Workshop:
    return Workshop(tmp_path, shared_issuer)
