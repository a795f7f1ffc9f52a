"""A real Keycloak: downloaded with Maven and built once into the cache, then one server for a whole test run.

An optimized build takes 57 s of processor time to start on a new database, 30 s on a copy of one that was migrated when
Keycloak was installed, and 17 s if Java also uses its first compiler only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import TypeAdapter

from tests.support import cluster
from tests.support.keycloak_realm import Material, Person, RealmOptions, realm_representation, subject_of
from tests.support.servers import (
    InstallError,
    Lease,
    Server,
    SharedRun,
    cache_dir,
    free_port,
    install_once,
    run_installer,
    start_server,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = "26.7.3"
ARTIFACT = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
DOWNLOAD = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
RECIPE = "1"  # raise it when what install() leaves behind changes
JAVA_NEEDED = 17
BUILD_OPTIONS = (
    "--db=dev-file",
    "--features=preview",
    "--health-enabled=true",
    "--http-management-health-enabled=false",  # else it opens one more port
    "--https-client-auth=request",
)
ENVIRONMENT = {
    "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx512m",
    "JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1 -XX:-UseG1GC -XX:+UseSerialGC",
}
ADMIN_CLIENT, ADMIN_SECRET = "keyferry-tests", "keyferry-tests-secret"
ADMIN_ENVIRONMENT = {"KC_BOOTSTRAP_ADMIN_CLIENT_ID": ADMIN_CLIENT, "KC_BOOTSTRAP_ADMIN_CLIENT_SECRET": ADMIN_SECRET}
MAIN_REALM, ROTATING_REALM = "keyferry", "rotating"
ROTATING_LIFESPAN = 8
MATERIAL = TypeAdapter(Material)


def problem() -> str | None:
    """Say in one line why Keycloak cannot run here, or None. Downloads and builds it if that was not done yet."""
    java = _java()
    if java is None or _java_version(java) < JAVA_NEEDED:
        return f"Java {JAVA_NEEDED} or later is needed (Debian: apt-get install openjdk-17-jre-headless maven)"
    if shutil.which("mvn") is None and not (home_in_cache() / ".complete").exists():
        return "Maven is needed to download Keycloak (Debian: apt-get install maven)"
    try:
        install()
    except InstallError as error:
        return str(error)
    return None


def home_in_cache() -> Path:
    """Return where the built Keycloak lies, or will lie."""
    return cache_dir() / f"keycloak-{VERSION}-{RECIPE}"


def install() -> Path:
    """Return the directory of the built Keycloak (``server``) and of its migrated database (``database``)."""
    return install_once(home_in_cache().name, _install)


def _java() -> str | None:
    """Return the java that kc.sh will use."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None)


def _java_version(java: str) -> int:
    answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(found[1]) if found else 0


def _install(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        options = [f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={scratch}", "-Dstyle.color=never"]
        run_installer(
            ["mvn", "-q", "-B", DOWNLOAD, *options], what="downloading Keycloak with Maven", cwd=Path(scratch)
        )
        with zipfile.ZipFile(next(Path(scratch).glob("*.zip"))) as archive:
            archive.extractall(scratch)
        Path(scratch, f"keycloak-{VERSION}").rename(target / "server")
    script = target / "server" / "bin" / "kc.sh"
    script.chmod(0o755)
    run_installer(["bash", script, "build", *BUILD_OPTIONS], what="building Keycloak")
    _migrate_database(target, script)


def _migrate_database(target: Path, script: Path) -> None:
    """Leave a database behind in which the schema, the master realm and the administrator's client exist."""
    database = target / "database"
    database.mkdir()
    lease = Lease(database / "lease")
    port = free_port()
    server = start_server(
        "migrate",
        ["bash", script, *_start_options(database, port)],
        directory=database,
        lease=lease,
        environment=ENVIRONMENT | ADMIN_ENVIRONMENT,
        ready=lambda: _answers(f"http://127.0.0.1:{port}"),
    )
    lease.release()
    server.wait_stopped()


def _start_options(database: Path, port: int) -> list[str]:
    return [
        "start",
        "--optimized",
        "--cache=local",  # else it looks for a cluster, on every network interface
        "--http-enabled=true",
        "--http-host=127.0.0.1",
        f"--http-port={port}",
        "--hostname-strict=false",  # the issuer is the address that was asked
        f"--db-url=jdbc:h2:file:{database}/kc;NON_KEYWORDS=VALUE;DB_CLOSE_ON_EXIT=FALSE",
    ]


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/realms/master", timeout=10).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


class Admin:
    """Keycloak's admin API. Every method raises httpx.HTTPStatusError where Keycloak refuses."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""
        self._token_ends = 0.0

    def request(self, method: str, path: str, body: Any = None, params: Mapping[str, str] | None = None) -> Any:
        """Send a request to ``/admin/realms/<path>`` and return the decoded JSON, or None without a body."""
        answer = httpx.request(
            method,
            f"{self._url}/admin/realms/{path}".rstrip("/"),
            json=body,
            params=params,
            headers={"Authorization": f"Bearer {self._current_token()}"},
            timeout=60,
        )
        if answer.is_error:
            message = f"Keycloak refused {method} {path}: {answer.status_code} {answer.text}"
            raise httpx.HTTPStatusError(message, request=answer.request, response=answer)
        return answer.json() if answer.content else None

    def create_realm(self, representation: Mapping[str, Any]) -> None:
        """Import a realm, with the clients, users and identity providers in it."""
        self.request("POST", "", representation)

    def update_realm(self, realm: str, **changes: Any) -> None:
        """Change settings of a realm, such as ``accessTokenLifespan``."""
        self.request("PUT", realm, {"realm": realm, **changes})

    def delete_realm(self, realm: str) -> None:
        """Delete a realm and all that is in it."""
        self.request("DELETE", realm)

    def client(self, realm: str, client_id: str) -> dict[str, Any]:
        """Return the representation of the client named ``client_id``."""
        found: list[dict[str, Any]] = self.request("GET", f"{realm}/clients", params={"clientId": client_id})
        return found[0]

    def put_client(self, realm: str, representation: Mapping[str, Any]) -> None:
        """Create a client, or change the one of the same ``clientId`` (what is not named stays)."""
        client_id = representation["clientId"]
        if self.request("GET", f"{realm}/clients", params={"clientId": client_id}):
            existing = self.client(realm, client_id)
            self.request("PUT", f"{realm}/clients/{existing['id']}", {**existing, **representation})
        else:
            self.request("POST", f"{realm}/clients", representation)

    def delete_client(self, realm: str, client_id: str) -> None:
        """Delete the client named ``client_id``."""
        self.request("DELETE", f"{realm}/clients/{self.client(realm, client_id)['id']}")

    def put_user(self, realm: str, representation: Mapping[str, Any]) -> None:
        """Create a user, or change the one of the same ``username``."""
        params = {"username": representation["username"], "exact": "true"}
        found = self.request("GET", f"{realm}/users", params=params)
        if found:
            self.request("PUT", f"{realm}/users/{found[0]['id']}", {**found[0], **representation})
        else:
            self.request("POST", f"{realm}/users", representation)

    def put_identity_provider(self, realm: str, representation: Mapping[str, Any]) -> None:
        """Create an identity provider, or replace the one of the same ``alias``."""
        path = f"{realm}/identity-provider/instances"
        alias = representation["alias"]
        if any(found["alias"] == alias for found in self.request("GET", path)):
            self.request("PUT", f"{path}/{alias}", representation)
        else:
            self.request("POST", path, representation)

    def sessions(self, realm: str, user_id: str) -> list[dict[str, Any]]:
        """Return the sessions of a user."""
        found: list[dict[str, Any]] = self.request("GET", f"{realm}/users/{user_id}/sessions")
        return found

    def _current_token(self) -> str:
        if time.monotonic() > self._token_ends:
            answer = httpx.post(
                f"{self._url}/realms/master/protocol/openid-connect/token",
                data={"grant_type": "client_credentials"},
                auth=(ADMIN_CLIENT, ADMIN_SECRET),
                timeout=60,
            ).raise_for_status()
            self._token = answer.json()["access_token"]
            self._token_ends = time.monotonic() + answer.json()["expires_in"] / 2
        return self._token


@dataclass(frozen=True)
class Realm:
    """A realm and what a client needs to know of it."""

    name: str
    http_url: str
    https_url: str
    material: Material = field(repr=False)
    options: RealmOptions

    def issuer(self, *, https: bool = False) -> str:
        """Return the issuer, which is as the realm is addressed. Tokens of one are not active at the other."""
        return f"{self.https_url if https else self.http_url}/realms/{self.name}"

    def endpoint(self, name: str = "token", *, https: bool = False) -> str:
        """Return an endpoint, such as ``token``, ``revoke``, ``token/introspect``, ``auth/device`` or ``userinfo``."""
        return f"{self.issuer(https=https)}/protocol/openid-connect/{name}"

    def subject_of(self, person: Person) -> str:
        """Return the ``sub`` in the tokens of ``person``."""
        return subject_of(self.name, person)


class Keycloak:
    """A running Keycloak, on plain HTTP and on HTTPS that asks for (but does not demand) a client's certificate."""

    def __init__(self, server: Server, http_port: int, https_port: int, material: Material) -> None:
        self.server = server
        self.http_url = f"http://127.0.0.1:{http_port}"
        self.https_url = f"https://localhost:{https_port}"
        self.material = material
        self.admin = Admin(self.http_url)

    def issuer(self, realm: str = MAIN_REALM, *, https: bool = False) -> str:
        """Return the issuer of ``realm``."""
        return self.realm(realm).issuer(https=https)

    def realm(self, name: str, options: RealmOptions | None = None) -> Realm:
        """Describe a realm that exists."""
        return Realm(name, self.http_url, self.https_url, self.material, options or RealmOptions())

    def provision_realm(self, name: str, options: RealmOptions | None = None) -> Realm:
        """Create the realm ``name``, with the clients, the person and the trusted issuers of every other."""
        realm = self.realm(name, options)
        self.admin.create_realm(realm_representation(name, self.material, realm.options))
        return realm

    def introspect(self, token: str, realm: str = MAIN_REALM, *, https: bool = False) -> dict[str, Any]:
        """Return what the introspection endpoint says of ``token`` (RFC 7662); ``active`` tells whether it is live."""
        answer = httpx.post(
            self.realm(realm).endpoint("token/introspect", https=https),
            data={"token": token},
            auth=(self.material.introspection.id, self.material.introspection.secret),
            verify=self.material.authority.client_context() if https else True,
            timeout=30,
        ).raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


def shared_keycloak(run: SharedRun) -> Keycloak:
    """Return the Keycloak of this test run, with the realms ``keyferry`` and ``rotating``; the first call starts it."""

    def start() -> dict[str, Any]:
        keycloak, state = start_keycloak(run.directory, run.lease, cluster.trusted_authority(run))
        keycloak.provision_realm(MAIN_REALM)
        keycloak.provision_realm(ROTATING_REALM, rotating_options())
        return state

    state = run.shared("keycloak", start)
    material = MATERIAL.validate_python(state["material"])
    return Keycloak(Server(run.directory, "keycloak"), state["http_port"], state["https_port"], material)


def rotating_options() -> RealmOptions:
    """Return the options of the realm ``rotating``: short access tokens, refresh tokens that are good once."""
    return RealmOptions(access_token_lifespan=ROTATING_LIFESPAN, rotating=True)


def start_keycloak(directory: Path, lease: Lease, trusted: str = "") -> tuple[Keycloak, dict[str, Any]]:
    """Start a Keycloak whose files go to ``directory``; return it and what another process needs to find it.

    ``trusted`` are authorities (PEM) of servers whose keys it fetches, such as a cluster's API server.
    """
    installed = install()
    database = directory / "keycloak-database"
    database.mkdir()
    shutil.copy(installed / "database" / "kc.mv.db", database)
    material = Material.create()
    authority, _ = material.authority.write(directory, "authority")
    certificate, key = material.authority.server().write(directory, "keycloak")
    environment = dict(ENVIRONMENT)
    if trusted:
        trust_store = directory / "keycloak-trusted.pem"
        trust_store.write_text(trusted)
        environment["KC_TRUSTSTORE_PATHS"] = str(trust_store)
    http_port, https_port = free_port(), free_port()
    server = start_server(
        "keycloak",
        [
            "bash",
            installed / "server" / "bin" / "kc.sh",
            *_start_options(database, http_port),
            f"--https-port={https_port}",
            f"--https-certificate-file={certificate}",
            f"--https-certificate-key-file={key}",
            f"--https-trust-store-file={authority}",
        ],
        directory=directory,
        lease=lease,
        environment=environment,
        ready=lambda: _answers(f"http://127.0.0.1:{http_port}"),
    )
    state = {
        "http_port": http_port,
        "https_port": https_port,
        "material": MATERIAL.dump_python(material, mode="json"),
    }
    return Keycloak(server, http_port, https_port, material), state
