"""The engine and the unmodified Tiled client against a real Tiled server, with the files of ``examples/tiled``."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from keyferry.errors import Reason
from keyferry.run.broker import LocalBroker
from tests.real.engine_support import (
    PATIENCE,
    Log,
    Place,
    Proxy,
    Seen,
    documented,
    exemplified,
    key_of,
    keyferry_command,
    proxy_to,
    until,
    until_revision,
)
from tests.support.tiled import ADMIN, ARRAY, ARRAY_VALUES, USERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.tiled import TiledServer

PLACEHOLDER = "https://tiled.example.org/api/v1"
ROTATIONS = 5
ACCESS_LIFE, SESSION_IDLE, KEY_LIFE = 8, 25, 12
LAPSE_MARGIN = 10
LOGIN, REFRESH, MINT, REVOKE = (
    "/auth/provider/toy/token",
    "/auth/session/refresh",
    "/auth/apikey",
    "/auth/session/revoke",
)

OTHERS = """
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {name: long-key}
spec:
  providerRef: {name: tiled}
  grant:
    type: Password
    password:
      usernameFrom: {secretKeyRef: {name: tiled-admin, key: username}}
      passwordFrom: {secretKeyRef: {name: tiled-admin, key: password}}
  apiKey: {expiresIn: 1h}
  target: {files: [{format: Tiled}]}
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {name: mistyped}
spec:
  providerRef: {name: tiled}
  grant:
    type: Password
    password:
      usernameFrom: {secretKeyRef: {name: tiled-mistyped, key: username}}
      passwordFrom: {secretKeyRef: {name: tiled-mistyped, key: password}}
"""

READ_ON_AND_ON = """
import json, sys, time
from tiled.client import from_uri

client = from_uri(sys.argv[1])[sys.argv[2]]
while True:
    try:
        said = {"read": client.read().tolist()}
    except Exception as error:
        said = {"error": type(error).__name__}
    print(json.dumps(said), flush=True)
    time.sleep(0.2)
"""

READ_ONCE = """
import json, sys
from tiled.client import from_uri
print(json.dumps(from_uri(sys.argv[1])[sys.argv[2]].read().tolist()))
"""


@dataclass
class World:
    """A Tiled server of short lifetimes behind the proxy, and the examples made to fit it."""

    tiled: TiledServer
    proxy: Proxy
    place: Place
    log: Log = field(default_factory=Log)

    def logins(self, user: str, password: str | None = None) -> int:
        """Return how often Keyferry tried to log in so."""
        wanted = {"username": user, "password": password or USERS[user]}
        return sum(wanted.items() <= seen.form().items() for seen in self.proxy.asked(LOGIN))

    def minted(self, note: str) -> list[dict[str, Any]]:
        """Return the keys that Keyferry minted with a note that ends so, as the server answered."""
        answers = [seen.said() for seen in self.proxy.asked(MINT) if seen.status == 200]
        return [answer for answer in answers if answer["note"].endswith(note)]

    async def sessions(self, user: str) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.tiled.sessions, user)

    async def keys(self, user: str, note: str) -> list[dict[str, Any]]:
        """Return a user's keys at the server whose note ends so."""
        found = await asyncio.to_thread(self.tiled.api_keys, user)
        return [key for key in found if (key["note"] or "").endswith(note)]

    async def accepts(self, api_key: str) -> bool:
        """Tell whether the server takes a key."""
        async with httpx.AsyncClient(timeout=60) as http:
            answer = await http.get(f"{self.tiled.api_url}/auth/apikey", headers={"Authorization": f"Apikey {api_key}"})
        assert answer.status_code in {200, 401}, answer.text
        return answer.status_code == 200

    async def read_once(self, environment: dict[str, str]) -> None:
        """Read the array in a new process of the unmodified client."""
        output = await asyncio.to_thread(
            self.tiled.run_client, READ_ONCE, self.proxy.url, ARRAY, environment=environment
        )
        assert json.loads(output) == ARRAY_VALUES


class RunningClient:
    """One process of the unmodified Tiled client that reads the array again and again."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.reads = 0
        self.errors: list[str] = []

    async def listen(self) -> None:
        """Take in what it prints."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "error" in said:
                self.errors.append(said["error"])
            else:
                assert said["read"] == ARRAY_VALUES
                self.reads += 1

    async def reads_on(self, more: int = 3) -> None:
        """Wait for further reads."""
        wanted = self.reads + more
        await until(lambda: self.reads >= wanted, f"the client reads on (errors: {self.errors[-3:]})")


@asynccontextmanager
async def running_client(world: World, cache: Path) -> AsyncIterator[RunningClient]:
    """Run the client with nothing but a token directory to authenticate with."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TILED_")}
    environment["TILED_CACHE_DIR"] = str(cache)
    process = await asyncio.create_subprocess_exec(
        world.tiled.client_python, "-c", READ_ON_AND_ON, world.proxy.url, ARRAY,
        env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    client = RunningClient(process)
    listening = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        process.kill()
        await process.wait()
        await listening


@asynccontextmanager
async def world_of(tiled: TiledServer, base: Path) -> AsyncIterator[World]:
    """Prepare a directory in which ``keyferry run resources`` would work with the server."""
    async with proxy_to(tiled.url) as proxy:
        world = World(tiled, proxy, Place(base))
        world.place.add_examples(
            "tiled", {PLACEHOLDER: f"{proxy.url}/api/v1", "expiresIn: 12h": f"expiresIn: {KEY_LIFE}s"}
        )
        world.place.drop("beamline", "beamline-key")  # for people; see test_tiled_person
        (world.place.resources / "others.yaml").write_text(OTHERS)
        secrets = {f"tiled-{user}": {"username": user, "password": password} for user, password in USERS.items()}
        secrets["tiled-mistyped"] = {"username": "alice", "password": "wrong"}
        session = await asyncio.to_thread(tiled.login, ADMIN)
        secrets["tiled-dashboard"] = {"refresh_token": session["refresh_token"]}
        world.place.add_secrets(secrets)
        yield world


@asynccontextmanager
async def broker_of(world: World) -> AsyncIterator[LocalBroker]:
    """Run a broker while the block runs."""
    async with LocalBroker(world.place.settings) as broker:
        broker.reporter.listeners.append(world.log)
        await broker.start()
        assert not broker.problems
        yield broker


def test_the_page_shows_what_is_tested() -> None:
    shown = documented("tiled.md")
    assert len(shown) == 5
    assert all(resource in exemplified("tiled") for resource in shown)


@pytest.mark.tiled
@pytest.mark.slow
async def test_tokens_and_keys_over_many_lifetimes(start_tiled: Callable[..., TiledServer], tmp_path: Path) -> None:
    lifetimes = {"access_token_max_age": ACCESS_LIFE, "refresh_token_max_age": SESSION_IDLE, "session_max_age": 3600}
    tiled = await asyncio.to_thread(start_tiled, **lifetimes)
    async with world_of(tiled, tmp_path) as world, AsyncExitStack() as stack:
        admins_before = len(await world.sessions(ADMIN))
        async with broker_of(world) as broker:
            cache = broker.directory(key_of("streaming")) / ".tiled"
            await until(cache.exists, "the token directory is written")
            client = await stack.enter_async_context(running_client(world, cache))
            await asyncio.gather(
                keys_are_renewed_by_one_session(world, broker),
                a_session_is_kept_alive_behind_a_long_key(world, broker),
                a_given_session_is_carried_on(world, broker),
                a_running_client_reads_on(world, broker, client, cache),
                a_stray_key_is_removed_after_a_crash(tiled, tmp_path / "crash"),
            )
        await the_client_gives_up(client, cache)
        async with broker_of(world) as broker:
            await the_client_recovers(world, client, cache)
            await the_bill_is_right(world, broker, admins_before)
            await what_is_deleted_is_revoked(world, broker)


async def keys_are_renewed_by_one_session(world: World, broker: LocalBroker) -> None:
    """Each key is published while the one before it is still good, and is left to lapse."""
    for revision in range(1, ROTATIONS + 2):
        await until_revision(broker, "analysis", revision)
        current = await until(lambda: key_file(broker, "analysis"), "the key is published")
        assert await world.accepts(current)
    keys = world.minted("nightly analysis")
    assert len(keys) > ROTATIONS
    overlapping = [key for key in keys if lapses(key) > time.time() + 1]
    assert len(overlapping) > 1, "a key goes on beside its successor"
    for key in overlapping:
        assert await world.accepts(key["secret"]) or lapses(key) <= time.time()
    assert {tuple(key["scopes"]) for key in keys} == {("read:metadata", "read:data")}


async def a_session_is_kept_alive_behind_a_long_key(world: World, broker: LocalBroker) -> None:
    """The session of a key that lives for an hour is refreshed within its idle life of seconds, without a new key."""
    await until_revision(broker, "long-key", 1)
    key = await until(lambda: key_file(broker, "long-key"), "the key is published")
    await world.read_once({"TILED_API_KEY": key})
    begun = next(seen.at for seen in world.proxy.asked(LOGIN) if seen.form()["username"] == ADMIN)
    await until(
        lambda: any(seen.at > begun + SESSION_IDLE + 1 for seen in session_of(world, ADMIN)),
        "the session is refreshed after its first idle life",
    )
    assert len(session_of(world, ADMIN)) >= SESSION_IDLE // (SESSION_IDLE / 3)
    assert len(world.minted("default/long-key")) == 1
    assert broker.engine.status(key_of("long-key")).revision == 1


async def a_given_session_is_carried_on(world: World, broker: LocalBroker) -> None:
    """A session that a person began mints keys without a password; it is known whose it is, and when it is over."""
    await until_revision(broker, "dashboard", 3)
    assert await world.accepts(key_file(broker, "dashboard"))
    status = broker.engine.status(key_of("dashboard"))
    assert status.authorized_as is not None
    assert status.authorized_as.subject
    ends = {
        datetime.fromisoformat(session["expiration_time"]).replace(tzinfo=UTC).timestamp()
        for session in await world.sessions(ADMIN)
    }
    assert status.reauthorize_by_time in ends, "its refresh tokens slide on, but not past the session's own end"


async def a_running_client_reads_on(world: World, broker: LocalBroker, client: RunningClient, cache: Path) -> None:
    """One process reads on: over rotations, after its file was deleted, and after its session was ended."""
    await client.reads_on()
    start = broker.engine.status(key_of("streaming")).revision
    for revision in range(start + 1, start + ROTATIONS + 1):
        await until_revision(broker, "streaming", revision)
        await client.reads_on()
    assert not client.errors

    await a_fresh_token_is_in_use(world)
    [file] = token_files(cache)
    file.unlink()
    await until(file.exists, "the deleted file is put back", patience=30)
    await client.reads_on()
    assert not client.errors

    newest = session_of(world, "bob")[-1].said()["refresh_token"]
    async with httpx.AsyncClient(timeout=60) as http:
        ended = await http.post(f"{world.tiled.api_url}{REVOKE}", json={"refresh_token": newest})
    assert ended.status_code == 204
    await until(lambda: world.logins("bob") == 2, "a session that was ended is followed by one new login")
    await until_revision(broker, "streaming", broker.engine.status(key_of("streaming")).revision + 2)
    await client.reads_on()
    assert not client.errors
    assert world.logins("bob") == 2
    used = {seen.headers["Authorization"] for seen in world.proxy.asked(ARRAY, "GET", ours=False)}
    assert len(used) > 2, "the client went from token to token"


async def a_fresh_token_is_in_use(world: World) -> None:
    """Wait until the client takes up another token than before: it then needs no file for some seconds."""

    def newest() -> str:
        return next(
            seen.headers["Authorization"] for seen in reversed(world.proxy.seen) if not seen.ours and seen.status == 200
        )

    before = newest()
    await until(lambda: newest() != before, "the client takes up the next token")


async def a_stray_key_is_removed_after_a_crash(tiled: TiledServer, base: Path) -> None:
    """The process is killed after a key was minted and before it is noted: the next one finds and removes that key."""
    async with proxy_to(tiled.url) as proxy:
        world = World(tiled, proxy, Place(base))
        world.place.add_examples("tiled", {PLACEHOLDER: f"{proxy.url}/api/v1", "expiresIn: 12h": "expiresIn: 1h"})
        world.place.drop("streaming", "dashboard", "beamline", "beamline-key")
        world.place.add_secrets({"tiled-alice": {"username": ADMIN, "password": USERS[ADMIN]}})
        minted, never = asyncio.Event(), asyncio.Event()

        async def hold(seen: Seen) -> None:
            if seen.path.endswith(MINT) and seen.method == "POST":
                minted.set()
                await never.wait()

        proxy.answered = hold
        process = await asyncio.create_subprocess_exec(
            *keyferry_command("run", world.place.resources, *world.place.options), stdout=asyncio.subprocess.DEVNULL
        )
        try:
            await asyncio.wait_for(minted.wait(), PATIENCE)
        finally:
            process.kill()
            await process.wait()
        proxy.answered = None
        never.set()
        [stray] = await world.keys(ADMIN, "nightly analysis")
        assert not (world.place.settings.out / "default" / "analysis").exists()

        async with broker_of(world) as broker:
            await until_revision(broker, "analysis", 1)
            key = await until(lambda: key_file(broker, "analysis"), "the key is published")
        [left] = await world.keys(ADMIN, "nightly analysis")
        assert key.startswith(left["first_eight"])
        assert left["first_eight"] != stray["first_eight"]
        assert left["note"] == stray["note"], "the same identity"
        assert world.logins(ADMIN) == 1, "the session from before the crash is used on"


async def the_client_gives_up(client: RunningClient, cache: Path) -> None:
    """Without a broker the token lapses, and the client deletes the file."""
    assert not client.errors
    await until(lambda: client.errors, "the client fails once its token has lapsed")
    await until(lambda: not token_files(cache), "the client deletes the stale token")


async def the_client_recovers(world: World, client: RunningClient, cache: Path) -> None:
    """The broker is back: the file is, the same process reads on, and so does a new one."""
    await until(lambda: token_files(cache), "the file is back")
    await client.reads_on()
    assert set(client.errors) == {"CannotRefreshAuthentication"}
    await world.read_once({"TILED_CACHE_DIR": str(cache)})


async def the_bill_is_right(world: World, broker: LocalBroker, admins_before: int) -> None:
    """What all of that cost the server: one session for each identity, and few keys."""
    assert (world.logins("alice"), len(await world.sessions("alice"))) == (1, 1)
    assert (world.logins("bob"), len(await world.sessions("bob"))) == (2, 2)
    # The long key's, and that of the process that was killed.
    assert (world.logins(ADMIN), len(await world.sessions(ADMIN))) == (1, admins_before + 2)

    assert world.logins("alice", "wrong") == 1, "a refused password is never tried again"
    mistyped = broker.engine.status(key_of("mistyped"))
    assert (mistyped.reason, mistyped.stalled(), mistyped.revision) == (Reason.GRANT_REJECTED, True, 0)

    kept = await world.keys("alice", "nightly analysis")
    assert len(kept) <= (KEY_LIFE + LAPSE_MARGIN) / (KEY_LIFE * 0.4) + 2, Counter(key["note"] for key in kept)
    lapse = {answer["first_eight"]: lapses(answer) for answer in map(Seen.said, minting(world))}
    for seen in world.proxy.asked(MINT, "DELETE"):
        assert seen.at > lapse[seen.query["first_eight"]], "a key was removed while jobs could still hold it"


async def what_is_deleted_is_revoked(world: World, broker: LocalBroker) -> None:
    """Identities that are taken out of the files leave neither a key nor a session behind."""
    names = ("analysis", "long-key", "dashboard", "streaming")
    secret = key_file(broker, "long-key")
    assert await world.accepts(secret)
    world.place.drop(*names)
    await asyncio.gather(*(until(partial(world.log.of, name, "revoked"), f"{name} is revoked") for name in names))
    assert not await world.accepts(secret)
    assert not await world.keys("alice", "nightly analysis")
    assert not await world.keys(ADMIN, "default/long-key")
    assert not await world.keys(ADMIN, "dashboard")
    sessions = [*await world.sessions("alice"), *await world.sessions("bob")]
    assert all(session["revoked"] for session in sessions)
    # The administrator's that are left: the tests' own, and that of the process that was killed.
    assert sum(not session["revoked"] for session in await world.sessions(ADMIN)) == 2
    for name in names:
        assert not [path for path in broker.directory(key_of(name)).rglob("*") if path.is_file()]


def key_file(broker: LocalBroker, name: str) -> str:
    """Return the API key as a job would find it, or '' while there is none."""
    directory = broker.directory(key_of(name))
    if not (directory / "TILED_API_KEY").exists():
        return ""
    return (directory / "TILED_API_KEY").read_text()


def token_files(cache: Path) -> list[Path]:
    """Return the token file of the client's token directory, if it is there."""
    return list(cache.rglob("access_token"))


def minting(world: World) -> list[Seen]:
    return [seen for seen in world.proxy.asked(MINT) if seen.status == 200]


def lapses(key: dict[str, Any]) -> float:
    """Return when a key ends (Unix seconds)."""
    moment = datetime.fromisoformat(key["expiration_time"])
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def session_of(world: World, user: str) -> list[Seen]:
    """Return a user's last login by Keyferry, and the refreshes that followed from it."""
    found: list[Seen] = []
    tokens: set[str] = set()
    for seen in world.proxy.seen:
        if not seen.ours or seen.status != 200:
            continue
        if seen.path.endswith(LOGIN) and seen.form()["username"] == user:
            found, tokens = [seen], {seen.said()["refresh_token"]}
        elif seen.path.endswith(REFRESH) and seen.sent()["refresh_token"] in tokens:
            found.append(seen)
            tokens.add(seen.said()["refresh_token"])
    return found
