"""What the benchmark declares: identities in files, and the issuer that serves them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyferry.demo.clients import AuthMethod, Client
from tests.support.issuer_process import IssuerProcess

if TYPE_CHECKING:
    from pathlib import Path

CLIENT_ID = "bench"
CLIENT_SECRET = "bench-secret-0123456789abcdef"
LIFETIME = 3600.0
"""Seconds for which a token is good: nothing is due while the benchmark runs."""
FILES = 100
"""Files over which the identities are spread."""
NAMESPACE = "bench"
CONCURRENCY = 32
"""Requests that the provider is asked at once, by the broker and by the plain client alike."""

_PROVIDER = """\
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {{name: bench, namespace: {namespace}}}
spec:
  type: OAuth
  oauth:
    issuer: {issuer}
    client:
      id: {client}
      authentication: ClientSecretBasic
      secretsFrom: [{{secretKeyRef: {{name: bench, key: secret}}}}]
  limits: {{requestsPerSecond: 10000, burst: 1000, concurrency: {concurrency}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: bench, namespace: {namespace}}}
stringData: {{secret: {secret}}}
"""
_IDENTITY = """\
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  providerRef: {{name: bench}}
  grant: {{type: ClientCredentials}}
  audiences: [{name}]
"""


@dataclass(frozen=True, slots=True)
class World:
    """The directories of one benchmark."""

    base: Path
    identities: int

    @property
    def resources(self) -> Path:
        """What is declared."""
        return self.base / "resources"

    @property
    def out(self) -> Path:
        """Where the token files go."""
        return self.base / "out"

    @property
    def state(self) -> Path:
        """Where the private state is."""
        return self.base / "state"

    @property
    def published(self) -> Path:
        """The directory in which each identity has one of its own."""
        return self.out / NAMESPACE

    def name(self, index: int) -> str:
        """Return an identity's name."""
        return f"job-{index:05}"

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return inode and modification time of every token file and every record, by path: a write changes both."""
        found: dict[str, tuple[int, int]] = {}
        for top in (self.out, self.state / "records"):
            for place, _, names in os.walk(top):
                for name in names:
                    path = os.path.join(place, name)  # noqa: PTH118 - 40,000 times
                    status = os.stat(path)  # noqa: PTH116
                    found[path] = (status.st_ino, status.st_mtime_ns)
        return found

    def write_resources(self, issuer: str) -> None:
        """Declare the identities; an audience of its own keeps each exchange from being shared with another."""
        self.resources.mkdir(parents=True)
        (self.resources / "provider.yaml").write_text(
            _PROVIDER.format(
                namespace=NAMESPACE, issuer=issuer, client=CLIENT_ID, secret=CLIENT_SECRET, concurrency=CONCURRENCY
            )
        )
        for number in range(FILES):
            documents = [
                _IDENTITY.format(namespace=NAMESPACE, name=self.name(index))
                for index in range(number, self.identities, FILES)
            ]
            (self.resources / f"jobs-{number:02}.yaml").write_text("".join(documents))


def start_issuer() -> IssuerProcess:
    """Start the issuer in a process of its own, with tokens that outlive the benchmark."""
    issuer = IssuerProcess()
    issuer.settings(access_lifetime=LIFETIME)
    issuer.add_client(Client(CLIENT_ID, secrets=(CLIENT_SECRET,), methods=(AuthMethod.BASIC,)))
    return issuer
