"""A person approves at a real Keycloak, for a real Tiled server, and the unmodified Tiled client reads on and on.

Tiled has two ways: it runs the flow itself, as with ORCID, or leaves it to an identity provider, whose tokens it takes.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from keyferry.errors import Reason, RetryClass
from keyferry.run.broker import LocalBroker
from tests.real.engine_support import PATIENCE, Log, Place, key_of, keyferry_command, prompted, until, until_revision
from tests.support.tier import require
from tests.support.tiled import ARRAY, ARRAY_VALUES
from tests.support.tiled import problem as tiled_problem
from tests.support.tiled_logins import UPSTREAM_CLIENT, browser_login, upstream_login
from tests.support.visitor import Visitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from keyferry.engine.status import Prompt
    from tests.support.keycloak import Keycloak, Realm
    from tests.support.tiled import Login, TiledServer

pytestmark = [pytest.mark.keycloak, pytest.mark.tiled, pytest.mark.slow]

PLACEHOLDER = "https://tiled.example.org/api/v1"
ACCESS_LIFE, KEY_LIFE = 8, 40
ROTATIONS = 5
NAMES = ("beamline", "beamline-key")
ASKED = (*NAMES, "stranger")

STRANGER = """
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {name: stranger}
spec:
  providerRef: {name: tiled}
  grant: {type: DeviceCode}
  expectedSubject: {subject: somebody-else}
  target: {files: [{format: Tiled}]}
"""

READ_OVER_ROTATIONS = """
import sys, time
from tiled.client import from_uri

client = from_uri(sys.argv[1])
seen = set()
while len(seen) <= int(sys.argv[3]):
    assert client[sys.argv[2]].read().tolist() == list(range(10))
    seen.add(client.context.http_client.auth.sync_get_token("access_token"))
    time.sleep(0.2)
print(len(seen))
"""

READ_ONCE = """
import json, sys
from tiled.client import from_uri
print(json.dumps(from_uri(sys.argv[1])[sys.argv[2]].read().tolist()))
"""


@dataclass
class Scene:
    """A Tiled server with a login through a browser, a person, and the examples made to fit."""

    tiled: TiledServer
    realm: Realm
    place: Place
    log: Log = field(default_factory=Log)

    def approves(self, prompt: Prompt) -> None:
        """Do what the prompt says: log in at Keycloak, and type the code where it is asked for.

        Each time in a new private window: Keycloak takes what one client gets in one browser's login for one session.
        """
        person = Visitor()
        page = person.approve(prompt.verification_uri_complete or prompt.verification_uri, self.realm.material.alice)
        if page.asks_for("user_code"):
            page = person.submit(page, user_code=prompt.user_code)
        assert "uccess" in page.text, page.text

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[LocalBroker]:
        """Run a broker over the examples while the block runs, and listen to it."""
        async with LocalBroker(self.place.settings) as broker:
            broker.reporter.listeners.append(self.log)
            await broker.start()
            assert not broker.problems
            yield broker

    async def reads_under_exec(self) -> None:
        """Have one process of the client read over many tokens under ``keyferry exec``."""
        options = ("--resources", self.place.resources, *self.place.options)
        script = ("-c", READ_OVER_ROTATIONS, self.tiled.url, ARRAY, str(ROTATIONS))
        process = await asyncio.create_subprocess_exec(
            *keyferry_command("exec", "beamline", *options, "--", self.tiled.client_python, *script),
            env={name: value for name, value in os.environ.items() if not name.startswith("TILED_")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE * 2)
        assert (process.returncode, output.decode().split()[-1:]) == (0, [str(ROTATIONS + 1)]), errors.decode()


@pytest.fixture(params=[browser_login, upstream_login], ids=["by-tiled", "by-the-identity-provider"])
async def scene(
    request: pytest.FixtureRequest,
    keycloak: Keycloak,
    rotating_realm: Realm,
    start_tiled: Callable[..., TiledServer],
    tmp_path: Path,
) -> Scene:
    require("tiled", tiled_problem())
    describe: Callable[[Keycloak, Realm], Login] = request.param
    login = await asyncio.to_thread(describe, keycloak, rotating_realm)
    tiled = await asyncio.to_thread(partial(start_tiled, login, access_token_max_age=ACCESS_LIFE))
    place = Place(tmp_path)
    place.add_examples("tiled", {PLACEHOLDER: tiled.api_url, "expiresIn: 12h": f"expiresIn: {KEY_LIFE}s"})
    place.drop("analysis", "streaming", "dashboard")
    (place.resources / "stranger.yaml").write_text(STRANGER)
    return Scene(tiled, rotating_realm, place)


async def test_a_person_approves_once_and_the_client_reads_on(scene: Scene, keycloak: Keycloak) -> None:
    async with scene.broker() as broker:
        asked = [await prompted(broker, name) for name in ASKED]
    async with scene.broker() as broker:
        assert [await prompted(broker, name) for name in ASKED] == asked, "a prompt outlives its process"
        for prompt in asked:
            await asyncio.to_thread(scene.approves, prompt)
        for name in NAMES:
            await until_revision(broker, name, 1)
        await the_wrong_person_is_refused(broker)
        key_file = broker.directory(key_of("beamline-key")) / "TILED_API_KEY"
        await until(key_file.exists, "the key is published")
        key = key_file.read_text()
        await a_key_reads_and_does_no_more(scene, key)
        tokens = broker.directory(key_of("beamline")) / ".tiled" / "tokens"
        names = sorted(path.name for path in tokens.rglob("*") if path.is_file())
        assert names == ["access_token"], "neither a refresh token nor an ID token"
    await scene.reads_under_exec()
    async with scene.broker() as broker:
        await until_revision(broker, "beamline", ROTATIONS + 1)
        await what_is_deleted_is_revoked(scene, keycloak, broker, key)


async def the_wrong_person_is_refused(broker: LocalBroker) -> None:
    """Whoever approved is not who was expected: nothing is published, and nobody is asked again by itself."""
    key = key_of("stranger")
    assert await broker.engine.wait_for(key, lambda status: status.reason is Reason.WRONG_SUBJECT, PATIENCE)
    status = broker.engine.status(key)
    assert (status.revision, status.retry) == (0, RetryClass.NEEDS_PERSON)
    assert not broker.directory(key).exists() or not any(broker.directory(key).iterdir())


async def a_key_reads_and_does_no_more(scene: Scene, key: str) -> None:
    """The key that the person's login minted serves a client, with the scopes that were asked for."""
    output = await asyncio.to_thread(
        scene.tiled.run_client, READ_ONCE, scene.tiled.url, ARRAY, environment={"TILED_API_KEY": key}
    )
    assert json.loads(output) == ARRAY_VALUES
    async with httpx.AsyncClient(timeout=60) as http:
        own = await http.get(f"{scene.tiled.api_url}/auth/apikey", headers={"Authorization": f"Apikey {key}"})
    assert own.json()["scopes"] == ["read:metadata", "read:data"]


async def what_is_deleted_is_revoked(scene: Scene, keycloak: Keycloak, broker: LocalBroker, key: str) -> None:
    """The key is gone at Tiled, and the sessions where they were begun, the wrong person's before all."""
    assert await live_sessions(scene, keycloak) == len(NAMES), "the wrong person's session has ended already"
    scene.place.drop(*ASKED)
    for name in NAMES:
        await until(partial(scene.log.of, name, "revoked"), f"{name} is revoked")
    async with httpx.AsyncClient(timeout=60) as http:
        own = await http.get(f"{scene.tiled.api_url}/auth/apikey", headers={"Authorization": f"Apikey {key}"})
    assert own.status_code == 401
    assert await live_sessions(scene, keycloak) == 0
    for name in NAMES:
        assert not [path for path in broker.directory(key_of(name)).rglob("*") if path.is_file()]


async def live_sessions(scene: Scene, keycloak: Keycloak) -> int:
    """Return how many sessions the person has, at Tiled or for Tiled at Keycloak."""
    subject = scene.realm.subject_of(scene.realm.material.alice)
    if scene.tiled.admin_api_key:
        sessions = await asyncio.to_thread(scene.tiled.sessions, subject)
        return sum(not session["revoked"] for session in sessions)
    client = await asyncio.to_thread(keycloak.admin.client, scene.realm.name, UPSTREAM_CLIENT)
    path = f"{scene.realm.name}/users/{subject}/offline-sessions/{client['id']}"
    found: list[Any] = await asyncio.to_thread(keycloak.admin.request, "GET", path)
    return len(found)
