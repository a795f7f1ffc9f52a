"""``keyferry exec --home``: files for clients that look for them in ``HOME`` alone."""

from __future__ import annotations

import json
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.workshop import Workshop

AIOD = "target: {files: [{format: AIoD, apiServer: 'https://api.example.org'}]}"
LOG_IN = """
import json, os, pathlib, tomllib, urllib.parse, urllib.request
home = pathlib.Path.home() / ".aiod"
config, token = (tomllib.loads((home / name).read_text()) for name in ("config.toml", "token.toml"))
form = {"grant_type": "refresh_token", "client_id": "aiod-sdk"} | token
url = config["auth_server"] + "realms/aiod/protocol/openid-connect/token"
with urllib.request.urlopen(url, urllib.parse.urlencode(form).encode()) as answer:
    print(json.dumps([os.environ["HOME"], config, token, json.load(answer)]))
"""


@pytest.fixture
def ready(workshop: Workshop) -> Workshop:
    workshop.identities("one", "two", more=AIOD)
    assert workshop.once().returncode == 0
    return workshop


def test_the_files_are_there_while_the_command_runs(ready: Workshop) -> None:
    home = ready.base / "elsewhere"
    done = ready.call("exec", "one", "--home", "elsewhere", "--", sys.executable, "-c", LOG_IN)
    assert (done.returncode, done.stderr) == (0, "")
    told, config, token, answer = json.loads(done.stdout)
    assert told == str(home)
    assert config["api_server"] == "https://api.example.org/"
    assert set(token) == {"refresh_token"}
    assert answer["access_token"] == ready.stored("one")["token"]["access_token"]
    assert list(home.glob(".aiod/*")) == []


def test_without_it_the_command_keeps_its_home_and_is_told(ready: Workshop) -> None:
    done = ready.call("exec", "one", "--", "sh", "-c", "echo $HOME; ls -a $HOME")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{ready.base}\n")
    assert ".aiod" not in done.stdout
    assert "--home" in done.stderr


def test_somebodys_own_files_are_never_touched(ready: Workshop) -> None:
    own = ready.base / "mine/.aiod/token.toml"
    own.parent.mkdir(parents=True)
    own.write_text("refresh_token = 'mine'\n")
    done = ready.call("exec", "one", "--home", "mine", "--", "touch", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not Keyferry's" in done.stderr
    assert [path.name for path in own.parent.iterdir()] == ["token.toml"]
    assert tomllib.loads(own.read_text()) == {"refresh_token": "mine"}
    assert not (ready.base / "started").exists()


def test_one_home_is_of_one_identity(ready: Workshop) -> None:
    done = ready.call("exec", "one", "two", "--home", "both", "--", "touch", "started")
    assert done.returncode == 2
    assert "one command for each" in done.stderr
    assert not (ready.base / "started").exists()
