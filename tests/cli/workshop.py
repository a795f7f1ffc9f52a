"""A directory with resources, and the program run in it as a process of its own, as a shell would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyferry.demo.clients import AuthMethod, Client, Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.issuer_process import IssuerProcess

PATIENCE = 180.0
SECRET = "workshop-secret"
CLIENT = Client(
    "workshop",
    secrets=(SECRET,),
    methods=(AuthMethod.BASIC,),
    grants=(Grant.CLIENT_CREDENTIALS, Grant.REFRESH_TOKEN, Grant.DEVICE_CODE),
    scopes=("read",),
)

PROVIDER = """\
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {{name: issuer}}
spec:
  type: OAuth
  oauth:
    issuer: {issuer}
    client:
      id: workshop
      authentication: ClientSecretBasic
      secretsFrom: [{{secretKeyRef: {{name: bot, key: secret}}}}]
"""
IDENTITY = """\
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {name}}}
spec:
  providerRef: {{name: issuer}}
  grant: {grant}
  scopes: [read]
  {more}
"""
CLIENT_CREDENTIALS = "{type: ClientCredentials}"


def wait_until(done: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> Any:
    """Poll until ``done`` returns something true, and return it."""
    deadline = time.monotonic() + patience
    while True:
        found = done()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s in vain: {what}")
        time.sleep(0.05)


@dataclass
class Workshop:
    """Everything of one test lies under ``base``."""

    base: Path
    issuer: IssuerProcess
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("KEYFERRY_", "XDG_", "TILED_"))
        }
        kept.pop("BEARER_TOKEN_FILE", None)
        kept |= {
            "HOME": str(self.base),
            "XDG_STATE_HOME": str(self.base / "state"),
            "XDG_RUNTIME_DIR": str(self.base / "runtime"),
            "TERM": "xterm-256color",
            "COLUMNS": "140",
        }
        self.environment = kept | self.environment

    @property
    def resources(self) -> Path:
        return self.base / "resources"

    @property
    def state(self) -> Path:
        return self.base / "state" / "keyferry"

    @property
    def out(self) -> Path:
        return self.base / "runtime" / "keyferry"

    def identities(self, *names: str, grant: str = CLIENT_CREDENTIALS, more: str = "") -> None:
        """Write a provider and identities of that one grant."""
        text = PROVIDER.format(issuer=self.issuer.issuer)
        text += "".join(IDENTITY.format(name=name, grant=grant, more=more) for name in names)
        self.write("resources.yaml", text)
        self.secret("bot", "secret", SECRET)

    def write(self, name: str, text: str) -> Path:
        self.resources.mkdir(exist_ok=True)
        path = self.resources / name
        path.write_text(text)
        return path

    def secret(self, name: str, key: str, value: str) -> None:
        path = self.base / "secrets" / "default" / name / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)

    @property
    def broker_options(self) -> list[str]:
        """What a broker needs to be told to work here."""
        return ["--secrets", str(self.base / "secrets"), "--allow-host", "127.0.0.1"]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "keyferry", *arguments]

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return self.call_program(*self.command(*arguments), **environment)

    def call_program(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run any program to its end, as ``call`` does."""
        return subprocess.run(
            command,
            env=self.environment | environment,
            cwd=self.base,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 2,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def once(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.call("run", str(self.resources), *self.broker_options, "--once", *options)

    @contextmanager
    def start(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command; it is killed at the end of the block if it is still there."""
        defaults: dict[str, Any] = {
            "env": self.environment,
            "cwd": self.base,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            "text": True,
        }
        process = subprocess.Popen(self.command(*arguments), **(defaults | options))
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    @contextmanager
    def running(self, *options: str, fresh: bool = True) -> Iterator[subprocess.Popen[str]]:
        """Run a broker for the length of the block, its tokens ``fresh`` from the first line on."""
        with self.start("run", str(self.resources), *self.broker_options, *options) as process:
            wait_until(lambda: (self.state / "control.sock").exists() or process.poll() is not None, "a control socket")
            if fresh and process.poll() is None:
                wait_until(lambda: self.statuses() or process.poll() is not None, "statuses")
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)

    def statuses(self) -> list[dict[str, Any]]:
        """Return the items of ``status -o json`` once all are ready, else nothing."""
        done = self.call("status", "-o", "json")
        return list(json.loads(done.stdout)["items"]) if done.returncode == 0 else []

    def status(self, name: str) -> dict[str, Any]:
        done = self.call("status", name, "-o", "json")
        found: dict[str, Any] = json.loads(done.stdout)["items"][0]["status"]
        return found

    def age(self, *names: str) -> None:
        """Have the stored tokens, which live for an hour, be issued 50 minutes ago without being due for renewal."""
        for name in names:
            path = self.state / "records" / "default" / f"{name}.json"
            data = json.loads(path.read_bytes())
            data["record"]["token"]["issued_at"] -= 3000
            data["record"]["token"]["expires_at"] -= 3000
            path.write_text(json.dumps(data))

    def claimed(self, name: str) -> bool:
        """Tell whether a refresh token is being spent."""
        try:
            return "claim" in self.stored(name)
        except FileNotFoundError:
            return False

    def stored(self, name: str) -> dict[str, Any]:
        """Return the record of an identity."""
        data = json.loads((self.state / "records" / "default" / f"{name}.json").read_bytes())
        found: dict[str, Any] = data["record"]
        return found
