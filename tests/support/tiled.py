"""A real Tiled server, in a virtual environment of its own because it brings half of scientific Python along."""

from __future__ import annotations

import array
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from tests.support.servers import (
    Lease,
    Server,
    SharedRun,
    environment_with,
    free_port,
    problem_with,
    start_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

VERSION = "0.2.20"
PROVIDER = "toy"
USERS = {"alice": "secret1", "bob": "secret2", "admin": "secret3"}
ADMIN = "admin"
ARRAY = "numbers"  # what the catalog holds
ARRAY_VALUES = list(range(10))
CLIENT_TIMEOUT = 180.0
SIGNING_KEY = "made up for the tests, and longer than 32 characters"


@dataclass(frozen=True)
class Login:
    """A way to log in through a browser, as Tiled's configuration has it."""

    provider: str
    authenticator: str
    arguments: Mapping[str, Any] = field(repr=False)
    writer: Callable[[], str] | None = None
    """Gives an access token that may write, where Tiled takes this login only without any other: no passwords then."""


@dataclass(frozen=True)
class Lifetimes:
    """How long Tiled's credentials live, in seconds. The defaults are Tiled's own."""

    access_token_max_age: int = 900
    refresh_token_max_age: int = 604_800
    session_max_age: int = 31_536_000


def problem() -> str | None:
    """Say in one line why Tiled cannot run here, or None. Installs it if that was not done yet."""
    return problem_with(install)


def install() -> Path:
    """Return the Python of the virtual environment that Tiled, server and client, is installed in."""
    return environment_with("tiled", VERSION, extra="all")


@dataclass
class TiledServer:
    """A running Tiled server with three users (``USERS``) and one array in its catalog."""

    server: Server
    port: int
    client_python: Path
    admin_api_key: str = field(default="", repr=False)
    lease: Lease | None = None  # its own; None where the whole test run shares the server

    @property
    def url(self) -> str:
        """The server's root, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """The base of its HTTP API."""
        return f"{self.url}/api/v1"

    def login(self, username: str = "alice", password: str | None = None) -> dict[str, Any]:
        """Log in with a password and return the answer; raise httpx.HTTPStatusError if it is refused."""
        form = {
            "grant_type": "password",
            "username": username,
            "password": USERS[username] if password is None else password,
        }
        answer: dict[str, Any] = _json(
            httpx.post(f"{self.api_url}/auth/provider/{PROVIDER}/token", data=form, timeout=60)
        )
        return answer

    def principal(self, username: str = "alice") -> dict[str, Any]:
        """Return what the server knows of a user, with ``sessions`` and ``api_keys``; {} before the first login."""
        headers = {"Authorization": f"Apikey {self.admin_api_key}"}
        everybody: list[dict[str, Any]] = _json(
            httpx.get(f"{self.api_url}/auth/principal", params={"limit": "100"}, headers=headers, timeout=60)
        )
        for principal in everybody:
            if any(identity["id"] == username for identity in principal["identities"]):
                return principal
        return {}

    def sessions(self, username: str = "alice") -> list[dict[str, Any]]:
        """Return a user's sessions, revoked ones included."""
        found: list[dict[str, Any]] = self.principal(username).get("sessions", [])
        return found

    def api_keys(self, username: str = "alice") -> list[dict[str, Any]]:
        """Return a user's API keys, without their secrets."""
        found: list[dict[str, Any]] = self.principal(username).get("api_keys", [])
        return found

    def run_client(self, script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a script with the unmodified Tiled client and return its output.

        Credentials come from ``environment`` alone: nothing of the person who runs the tests is read.
        Raises AssertionError with the script's error output if it fails.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TILED_")}
        done = subprocess.run(
            [self.client_python, "-c", script, *arguments],
            env={**inherited, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"the Tiled client failed:\n{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        """Stop a server of the test's own; its data, sessions and keys stay. Doing so again changes nothing."""
        if self.lease is None:
            raise RuntimeError("this server belongs to the whole test run; use start_tiled for one of your own")
        self.lease.release()
        self.server.wait_stopped()

    def start_again(self) -> None:
        """Start a stopped server once more, at the same address, with what it had stored."""
        self.lease = Lease(self.server.directory / "tiled.lease")
        _start(self, self.lease)


def sign_with(tiled: TiledServer, *keys: str) -> None:
    """Start a server of one's own again with other keys: the first signs, each of them is believed."""
    tiled.stop()
    configuration = tiled.server.directory / "tiled.yml"
    settings = yaml.safe_load(configuration.read_text())
    settings["authentication"]["secret_keys"] = list(keys)
    configuration.write_text(yaml.safe_dump(settings))
    tiled.start_again()


def shared_tiled(run: SharedRun) -> TiledServer:
    """Return the Tiled server of this test run, with Tiled's own lifetimes; start it if it is not there."""

    def start() -> dict[str, Any]:
        directory = run.directory / "tiled-files"
        directory.mkdir(mode=0o700)
        started = _prepare(Server(run.directory, "tiled"), directory, Lifetimes(), run.lease)
        return {"port": started.port, "admin_api_key": started.admin_api_key}

    state = run.shared("tiled", start)
    return TiledServer(Server(run.directory, "tiled"), state["port"], install(), state["admin_api_key"])


def start_tiled(directory: Path, lifetimes: Lifetimes, login: Login | None = None) -> TiledServer:
    """Start a server of one's own, whose files go to ``directory``; it ends with ``stop()`` or with this process.

    ``login`` is there beside the three users' passwords, or instead of them.
    """
    lease = Lease(directory / "tiled.lease")
    try:
        tiled = _prepare(Server(directory, "tiled"), directory, lifetimes, lease, login)
    except BaseException:
        lease.release()
        raise
    tiled.lease = lease
    return tiled


def _prepare(
    server: Server, directory: Path, lifetimes: Lifetimes, lease: Lease, extra: Login | None = None
) -> TiledServer:
    """Write the configuration beside the server's log, start it and store the array."""
    configuration = server.directory / "tiled.yml"
    configuration.touch(mode=0o600)
    configuration.write_text(yaml.safe_dump(_configuration(directory, lifetimes, extra)))
    tiled = TiledServer(server, free_port(), install())
    _start(tiled, lease)
    if extra is not None and extra.writer is not None:
        _write_array(tiled, f"Bearer {extra.writer()}")
        return tiled
    login = tiled.login(ADMIN)
    key = httpx.post(
        f"{tiled.api_url}/auth/apikey",
        json={"expires_in": None, "scopes": None, "note": "for the tests' own questions"},
        headers={"Authorization": f"Bearer {login['access_token']}"},
        timeout=60,
    )
    tiled.admin_api_key = _json(key)["secret"]
    _write_array(tiled, f"Apikey {tiled.admin_api_key}")
    return tiled


def _write_array(tiled: TiledServer, authorization: str) -> None:
    """Store the array with plain HTTP, because importing the client takes seconds."""
    size = len(ARRAY_VALUES)
    structure = {
        "data_type": {"endianness": "little", "kind": "i", "itemsize": 8},
        "shape": [size],
        "chunks": [[size]],
        "dims": None,
        "resizable": False,
    }
    source = {"structure_family": "array", "structure": structure, "parameters": {}, "assets": []}
    item = {"id": ARRAY, "structure_family": "array", "metadata": {}, "specs": [], "data_sources": [source]}
    headers = {"Authorization": authorization}
    _json(httpx.post(f"{tiled.api_url}/metadata/", json=item, headers=headers, timeout=60))
    stored = httpx.put(
        f"{tiled.api_url}/array/full/{ARRAY}",
        content=array.array("q", ARRAY_VALUES).tobytes(),
        headers={**headers, "Content-Type": "application/octet-stream"},
        timeout=60,
    )
    stored.raise_for_status()


def _start(tiled: TiledServer, lease: Lease) -> None:
    configuration = tiled.server.directory / "tiled.yml"
    options = ["--host", "127.0.0.1", "--port", str(tiled.port)]
    start_server(
        tiled.server.name,
        [tiled.client_python, "-m", "tiled", "serve", "config", configuration, *options],
        directory=tiled.server.directory,
        lease=lease,
        ready=lambda: _answers(tiled.api_url),
    )


def _configuration(directory: Path, lifetimes: Lifetimes, extra: Login | None) -> dict[str, Any]:
    data = directory / "data"
    data.mkdir(exist_ok=True)
    passwords = Login(PROVIDER, "tiled.authenticators:DictionaryAuthenticator", {"users_to_passwords": USERS})
    logins = [passwords] if extra is None else [extra] if extra.writer else [passwords, extra]
    return {
        "authentication": {
            "providers": [
                {"provider": login.provider, "authenticator": login.authenticator, "args": dict(login.arguments)}
                for login in logins
            ],
            "tiled_admins": [{"provider": PROVIDER, "id": ADMIN}] if passwords in logins else [],
            "secret_keys": [SIGNING_KEY],
            "access_token_max_age": lifetimes.access_token_max_age,
            "refresh_token_max_age": lifetimes.refresh_token_max_age,
            "session_max_age": lifetimes.session_max_age,
        },
        "database": {"uri": f"sqlite:///{directory}/authn.db", "init_if_not_exists": True},
        "trees": [
            {
                "path": "/",
                "tree": "catalog",
                "args": {
                    "uri": f"sqlite:///{directory}/catalog.db",
                    "writable_storage": str(data),
                    "init_if_not_exists": True,
                },
            }
        ],
    }


def _answers(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/", timeout=10).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _json(answer: httpx.Response) -> Any:
    """Decode an answer; raise httpx.HTTPStatusError, with what Tiled said, if it is an error."""
    if answer.is_error:
        message = f"Tiled answered {answer.status_code} at {answer.request.url.path}: {answer.text[:300]}"
        raise httpx.HTTPStatusError(message, request=answer.request, response=answer)
    return answer.json()
