"""What Tiled's guide does with its client and its command line, done with what Keyferry gives. Nothing is modified."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.engine_support import Place, run_keyferry
from tests.support.tiled import ADMIN, ARRAY, USERS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.tiled import TiledServer

OVERSEER = f"""
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: overseer}}
spec:
  providerRef: {{name: tiled}}
  grant:
    type: Password
    password:
      usernameFrom: {{secretKeyRef: {{name: tiled-{ADMIN}, key: username}}}}
      passwordFrom: {{secretKeyRef: {{name: tiled-{ADMIN}, key: password}}}}
  apiKey: {{scopes: [read:principals, write:principals, admin:apikeys], expiresIn: 1h}}
  target: {{files: [{{format: Tiled}}]}}
"""

BEGIN = """
import json, os, sys
from pathlib import Path

Path(os.environ["TILED_PROFILES"]).mkdir(exist_ok=True)
Path(os.environ["TILED_PROFILES"], "here.yml").write_text(json.dumps({"here": {"uri": sys.argv[1]}}))

import typer.testing
from tiled.client import from_uri
from tiled.commandline.main import cli_app

def tiled(*words):
    done = typer.testing.CliRunner().invoke(cli_app, [*words, "--profile", "here"])
    if done.exit_code:
        raise SystemExit(f"tiled {' '.join(words)}: {done.output} {done.exception!r}")
    return done.output.strip()

def reads(**options):
    assert from_uri(sys.argv[1], **options)[sys.argv[2]].read().tolist() == list(range(10))
"""

WITH_A_KEY = """
reads()
reads(remember_me=False)
key = os.environ.pop("TILED_API_KEY")
reads(api_key=key)
os.environ["TILED_API_KEY"] = key
assert from_uri(sys.argv[1]).context.whoami()["identities"][0]["id"] == "alice"
try:
    from_uri(sys.argv[1]).context.create_api_key()
except Exception as error:
    assert "create:apikeys" in str(error), error
else:
    raise SystemExit("a key without that scope minted another")
"""

WITH_A_TOKEN_DIRECTORY = """
reads()
assert tiled("whoami") == "bob"
made = from_uri(sys.argv[1]).context.create_api_key(expires_in="7d", note="for this week's experiment")
secret = tiled("api_key", "create", "--expires-in", "7d", "--note", "by the command line", "--scopes", "read:metadata")
assert made["first_eight"] in (listed := tiled("api_key", "list")) and "by the command line" in listed, listed
reads(api_key=made["secret"])
for key in (made["secret"], secret):
    tiled("api_key", "revoke", key[:8])
assert "by the command line" not in tiled("api_key", "list")
try:
    from_uri(sys.argv[1]).logout()
except Exception as error:
    print(type(error).__name__)
reads()
"""

AS_ADMINISTRATOR = """
people = json.loads(tiled("admin", "list-principals"))
assert {identity["id"] for each in people for identity in each["identities"]} >= {"alice", "bob"}, people
shown = json.loads(tiled("admin", "show-principal", people[0]["uuid"]))
assert shown["uuid"] == people[0]["uuid"]
service = json.loads(tiled("admin", "create-service-principal", "--role", "user"))["uuid"]
secret = tiled("admin", "api-key", "create", service, "--expires-in", "3600", "--note", "a service")
# `tiled admin api-key list` ends with a TypeError of its own in this version, with whatever credential.
assert "a service" in tiled("admin", "show-principal", service)
tiled("admin", "api-key", "revoke", service, secret[:8])
"""


@pytest.mark.tiled
@pytest.mark.slow
async def test_the_clients_own_ways_work_with_what_is_published(tiled_server: TiledServer, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.add_examples("tiled", {"https://tiled.example.org/api/v1": tiled_server.api_url})
    place.drop("dashboard", "beamline", "beamline-key")
    (place.resources / "overseer.yaml").write_text(OVERSEER)
    place.add_secrets({f"tiled-{user}": {"username": user, "password": USERS[user]} for user in USERS})
    await run_keyferry("run", place.resources, *place.options, "--once")
    for identity, script in (
        ("analysis", WITH_A_KEY),
        ("streaming", WITH_A_TOKEN_DIRECTORY),
        ("overseer", AS_ADMINISTRATOR),
    ):
        directory = place.settings.out / "default" / identity
        given = {"TILED_PROFILES": str(tmp_path / "profiles"), "TILED_CACHE_DIR": str(directory / ".tiled")}
        if (directory / "TILED_API_KEY").exists():
            given["TILED_API_KEY"] = (directory / "TILED_API_KEY").read_text()
        await asyncio.to_thread(tiled_server.run_client, BEGIN + script, tiled_server.url, ARRAY, environment=given)
