"""The fault-injecting issuer as a process of its own: how to start it, and how to speak to it.

It outlives the killing of the program under test, and a benchmark can give it a core to itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from tests.support import issuer_state
from tests.support.http1 import Connection, Listener, Received, render
from tests.support.issuer import ADMIN, FaultIssuer, RequestRecord
from tests.support.issuer_admin import CLIENT, ISSUED, SPENDS, TRUSTED_ISSUER, USER, Admin

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from keyferry.demo.clients import Client
    from keyferry.demo.device_codes import Decision
    from keyferry.demo.refresh_tokens import Spend
    from keyferry.demo.signing import TrustedIssuer
    from keyferry.demo.state import IssuedToken, User
    from tests.support.faults import Fault

_ROOT = Path(__file__).parents[2]
_PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class Options:
    """How the process is started; `port` 0 is the one of the state file, else the system's choice."""

    port: int = 0
    path: str = ""
    state_file: Path | None = None
    certificate: tuple[Path, Path] | None = None
    """The server's certificate and its key, PEM."""
    client_ca: Path | None = None
    record_limit: int = 100_000

    def arguments(self) -> list[str]:
        given = [f"--port={self.port}", f"--path={self.path}", f"--record-limit={self.record_limit}"]
        if self.state_file is not None:
            given.append(f"--state-file={self.state_file}")
        if self.certificate is not None:
            given += [f"--certificate={self.certificate[0]}", f"--key={self.certificate[1]}"]
        if self.client_ca is not None:
            given.append(f"--client-ca={self.client_ca}")
        return given


class IssuerProcess:
    """A running issuer process. Its calls block, for a millisecond each; `with` ends it.

    It ends by itself when the process that started it is gone.
    """

    def __init__(self, options: Options | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.issuer", *(options or Options()).arguments()],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(_PATIENCE)
            self._close_pipes()
            raise RuntimeError(f"the issuer did not start: it ended with exit code {self._process.returncode}")
        ready = json.loads(line)
        self.url: str = ready["url"]
        self.issuer: str = ready["issuer"]
        self.admin_url: str = ready["admin_url"]
        self._http = httpx.Client(base_url=self.admin_url + ADMIN, timeout=_PATIENCE, trust_env=False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def spends(self) -> list[Spend]:
        return SPENDS.validate_python(self.read("spends"))

    @property
    def issued(self) -> list[IssuedToken]:
        return ISSUED.validate_python(self.read("issued"))

    @property
    def requests(self) -> list[RequestRecord]:
        return [RequestRecord(**fields) for fields in self.read("requests")]

    def sent_refresh_tokens(self) -> dict[str, int]:
        """Return how often each refresh token arrived, also where a fault kept it from being spent."""
        counts: dict[str, int] = self.read("sent")
        return counts

    def add_fault(self, fault: Fault) -> int:
        """Arm a fault; return its number."""
        return int(self.write("faults/add", fault.to_json()))

    def clear_faults(self) -> None:
        self.write("faults/clear")

    def add_client(self, client: Client) -> None:
        self.write("clients", CLIENT.dump_python(client, mode="json"))

    def add_user(self, user: User) -> None:
        self.write("users", USER.dump_python(user, mode="json"))

    def trust(self, issuer: TrustedIssuer) -> None:
        self.write("trust", TRUSTED_ISSUER.dump_python(issuer, mode="json"))

    def seed_refresh_token(self, client: str, subject: str) -> str:
        return str(self.write("seed", {"client": client, "subject": subject}))

    def decide(self, user_code: str, decision: Decision, subject: str = "ada") -> None:
        """Say what a person says on the page for device codes (RFC 8628 3.3)."""
        self.write("decide", {"user_code": user_code, "decision": decision.name, "subject": subject})

    def revoke_family(self, refresh_token: str) -> None:
        """End an authorization, as its person might."""
        self.write("revoke", {"refresh_token": refresh_token})

    def settings(self, **fields: Any) -> None:
        """Change fields of `Settings`."""
        self.write("settings", fields)

    def policy(self, **fields: Any) -> None:
        """Change fields of `RefreshPolicy`."""
        self.write("policy", fields)

    def pause(self) -> None:
        self.write("pause")

    def resume(self) -> None:
        self.write("resume")

    def stop(self, *, drop: bool = True) -> None:
        """Refuse connections until `start`."""
        self.write("stop", {"drop": drop})

    def start(self) -> None:
        self.write("start")

    def clear_requests(self) -> None:
        self.write("requests/clear")

    def read(self, name: str) -> Any:
        """Return the result of an administrative GET."""
        return _result(self._http.get(name))

    def write(self, name: str, body: dict[str, Any] | None = None) -> Any:
        """Return the result of an administrative command."""
        # Not httpx's own JSON: it refuses NaN, which a fault may be about.
        return _result(self._http.post(name, content=json.dumps(body or {})))

    def close(self) -> None:
        """End the process in order, so that it writes its state file."""
        self._http.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _result(response: httpx.Response) -> Any:
    answer = response.json()
    if response.status_code != 200:
        raise ValueError(f"the issuer refused the command: {answer['detail']}")
    return answer["result"]


async def _serve(options: argparse.Namespace) -> None:
    context = None
    if options.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
        if options.client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(options.client_ca)
    issuer = FaultIssuer(port=options.port, tls=context, path=options.path, record_limit=options.record_limit)

    def save() -> None:
        if options.state_file is not None:
            issuer_state.save(issuer.service, options.state_file)

    if options.state_file is not None:
        issuer_state.load(issuer.service, options.state_file)
        if options.port == 0 and issuer.service.issuer:
            issuer.listener.port = httpx.URL(issuer.service.issuer).port or 0
    admin = Admin(issuer, save)
    issuer.admin = admin.handle
    side = Listener(_only_admin(admin))
    async with issuer:
        await side.start()
        ready = {"url": issuer.url, "issuer": issuer.issuer, "admin_url": f"http://127.0.0.1:{side.port}"}
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        await _told_to_end(watch_stdin=not options.stay)
        side.release()
        side.drop()
    save()


def _only_admin(admin: Admin) -> Callable[[Received, Connection], None]:
    """Return the handler of the administration's own port, which stays open while the issuer's is closed."""

    def handle(received: Received, connection: Connection) -> None:
        if received.path.startswith(ADMIN):
            admin.handle(received, connection)
        else:
            connection.send(render(404, {}, b""))
            connection.finish()

    return handle


async def _told_to_end(*, watch_stdin: bool) -> None:
    """Wait for SIGTERM or SIGINT, or for the end of stdin, which says that the parent is gone."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if watch_stdin:
        os.set_blocking(0, False)

        def look() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                told.set()

        loop.add_reader(0, look)
    await told.wait()


def main() -> None:
    """Serve until told to end; the first line of stdout is a JSON object with the URLs."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.issuer", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--path", default="", help="path of the issuer identifier")
    parser.add_argument("--state-file", type=Path)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--client-ca", type=Path)
    parser.add_argument("--record-limit", type=int, default=100_000)
    parser.add_argument("--stay", action="store_true", help="do not end when stdin is closed")
    asyncio.run(_serve(parser.parse_args()))
