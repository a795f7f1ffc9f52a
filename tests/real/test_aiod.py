"""The unmodified AI-on-Demand client against a real Keycloak: as a bot and as a person, past its tokens' expiry."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from keyferry.run.broker import LocalBroker
from tests.real.engine_support import (
    PATIENCE,
    Place,
    documented,
    exemplified,
    keyferry_command,
    prompted,
    run_keyferry,
    until,
    until_revision,
)
from tests.support import aiod
from tests.support.aiod import AiodApi
from tests.support.tier import require
from tests.support.visitor import Visitor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.keycloak import Keycloak, Realm

ISSUER, API = "https://auth.aiodp.eu/aiod-auth/realms/aiod", "https://api.aiodp.eu/"
CALLS = """
import sys, time
import aiod, aiod.authentication

seen = set()
while len(seen) < int(sys.argv[1]):
    user = aiod.get_current_user()
    seen.add(aiod.authentication.get_token().headers["Authorization"])
    time.sleep(0.5)
print(user.name)
"""


def place_of(realm: Realm, api: AiodApi, base: Path) -> Place:
    """Return the examples, made to fit the realm."""
    material = realm.material
    place = Place(base)
    replacements = {
        ISSUER: realm.issuer(),
        API: api.url,
        "my-bot": material.basic.id,
        "aiod-sdk": material.public_client,
    }
    place.add_examples("aiod", replacements)
    place.add_secrets({"aiod-bot": {"client_secret": material.basic.secret}})
    return place


async def approve(place: Place, realm: Realm) -> None:
    """Have the person approve what the example asks for, as the page on AI-on-Demand says."""
    async with LocalBroker(place.settings) as broker:
        await broker.start()
        prompt = await prompted(broker, "ada")
        await asyncio.to_thread(Visitor().approve, prompt.verification_uri_complete, realm.material.alice)
        await until_revision(broker, "ada", 1)


def test_the_page_shows_what_is_tested() -> None:
    shown = documented("aiod.md")
    assert len(shown) == 3
    assert all(resource in exemplified("aiod") for resource in shown)


@pytest.mark.keycloak
@pytest.mark.slow
@pytest.mark.parametrize(("identity", "name"), [("crawler", "service-account-basic-bot"), ("ada", "alice")])
async def test_one_process_calls_past_the_expiry_of_its_tokens(
    keycloak: Keycloak, rotating_realm: Realm, tmp_path: Path, identity: str, name: str
) -> None:
    require("keycloak", aiod.problem())
    home = tmp_path / "home"
    with AiodApi(lambda token: keycloak.introspect(token, rotating_realm.name)) as api:
        place = place_of(rotating_realm, api, tmp_path)
        if identity == "ada":
            await approve(place, rotating_realm)
        options = ["--resources", place.resources, *place.options, "--home", home]
        process = await asyncio.create_subprocess_exec(
            *keyferry_command("exec", identity, *options, "--", aiod.install(), "-c", CALLS, "4"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        files: dict[str, str] = {}
        await until(lambda: api.accepted or process.returncode is not None, "a call")
        for file in home.glob(".aiod/*"):
            assert file.stat().st_mode & 0o777 == 0o600
            files[file.name] = file.read_text()
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE * 2)
        assert (process.returncode, output.decode(), errors.decode()) == (0, f"{name}\n", "")
        assert len(set(api.accepted)) >= 3
        assert api.refused == []
        assert set(files) == {"config.toml", "token.toml"}
        for secret in (*api.accepted, rotating_realm.material.basic.secret, rotating_realm.issuer()):
            assert secret not in "".join(files.values())
        (placeholder,) = [line.split('"')[1] for line in files["token.toml"].splitlines() if "refresh_token" in line]
        assert not keycloak.introspect(placeholder, rotating_realm.name)["active"]
        assert list(home.glob(".aiod/*")) == [], "they go with the command"


@pytest.mark.keycloak
@pytest.mark.slow
async def test_files_alone_serve_a_job_that_is_shorter_than_its_token(
    keycloak: Keycloak, keycloak_realm: Realm, tmp_path: Path
) -> None:
    require("keycloak", aiod.problem())
    with AiodApi(lambda token: keycloak.introspect(token, keycloak_realm.name)) as api:
        place = place_of(keycloak_realm, api, tmp_path)
        place.drop("ada")
        await run_keyferry("run", place.resources, *place.options, "--once")
        process = await asyncio.create_subprocess_exec(
            aiod.install(),
            *("-c", CALLS, "1"),
            env={**os.environ, "HOME": str(place.settings.out / "default" / "crawler")},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert output == b"service-account-basic-bot\n"
        assert api.refused == []
