"""A person who installs Keyferry and types what the documentation says, on the test's node and against its Keycloak."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from tests.support.kube_api import eventually
from tests.support.node_images import BASE
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.keycloak import Keycloak, Realm
    from tests.support.kube_node import Node

REPOSITORY = Path(__file__).parents[2]
GROUP = "keyferry.dev/v1alpha1"
HOME, TEAM = "keyferry", "batch"
TOKEN = "/var/run/keyferry/token"
LONG = 300.0
"""Seconds; the kubelet alone may take a minute and a half until it looks at a Secret again."""


def commands(heading: str, page: str = "install.md") -> list[list[str]]:
    """Return the commands below a heading of a page of the documentation, block by block."""
    text = (REPOSITORY / "docs" / page).read_text()
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [[line.split("  #")[0].strip() for line in _joined(block)] for block in blocks]


def _joined(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@dataclass
class Person:
    """Somebody at a shell, in a directory with the chart and the examples, whose placeholders are filled in."""

    node: Node
    keycloak: Keycloak
    realm: Realm
    directory: Path
    metrics: str
    """Address of the operator's metrics: pods share the machine's network here, so the port is one that is free."""

    @classmethod
    def sit_down(cls, node: Node, keycloak: Keycloak, realm: Realm, directory: Path) -> Person:
        """Fetch the chart and the examples."""
        person = cls(node, keycloak, realm, directory, f"127.0.0.1:{free_port()}")
        for name in ("charts", "examples"):
            shutil.copytree(REPOSITORY / name, directory / name)
        for path in (directory / "examples").rglob("*.yaml"):
            text = person.filled_in(path.read_text())
            # Pods share the machine's network here, so each has a port of its own.
            path.write_text(
                re.sub(r"( +)(keyferry\.dev/inject: .*\n)", rf'\1\2\1keyferry.dev/port: "{free_port()}"\n', text)
            )
        host, port = person.metrics.split(":")
        values: dict[str, Any] = {
            # A Keycloak without TLS, on the loopback.
            "providers": {"allowedHosts": [{"host": "127.0.0.1", "plainHTTP": True}]},
            "metrics": {"host": host, "port": int(port)},
            "broker": {"host": host, "port": free_port()},
            "sidecar": {"hostNetwork": True},
            "updateStrategy": {"type": "Recreate"},  # two pods cannot have the one port
        }
        (directory / "node.yaml").write_text(yaml.safe_dump(values))
        return person

    def filled_in(self, text: str) -> str:
        """Return a text with this place's issuer and images in it."""
        for placeholder, value in {
            "https://keycloak.example.org/realms/keyferry": self.realm.issuer(),
            "keycloak.example.org": self.keycloak.http_url.removeprefix("http://"),
            "registry.example.org": "localhost",
            "busybox:1.37": BASE,
        }.items():
            text = text.replace(placeholder, value)
        return text

    def types(self, *typed: str) -> list[str]:
        """Run commands as they stand in the documentation and return what each prints; AssertionError if one fails."""
        return [self._run(command) for command in typed]

    def _run(self, command: str) -> str:
        words = self.filled_in(command)
        if command.startswith("helm install"):
            words += " --values node.yaml"
        secret = shlex.quote(self.realm.material.basic.secret)
        return self.node.cluster.run("bash", "-euc", f"cd {self.directory}; export BOT_SECRET={secret}; {words}")

    def identity(self, name: str) -> dict[str, Any]:
        """Return a ServiceIdentity."""
        return self.node.cluster.api.get(GROUP, "ServiceIdentity", name, TEAM)

    def status(self, name: str = "nightly-ingest") -> dict[str, Any]:
        """Return the status of an identity."""
        return dict(self.identity(name).get("status", {}))

    def condition(self, name: str, kind: str = "Ready") -> dict[str, Any]:
        """Return a condition of an identity, empty while there is none."""
        return next((found for found in self.status(name).get("conditions", ()) if found["type"] == kind), {})

    def renews(self, name: str, command: str) -> int:
        """Ask for a renewal; return its revision once it is published."""
        before = int(self.status(name)["revision"])
        self.types(command.replace("nightly-ingest", name))
        eventually(lambda: self.status(name)["revision"] > before, f"{name} is renewed", timeout=LONG)
        return int(self.status(name)["revision"])

    def token_in_pod(self) -> str:
        """Return what a process in the pod reads."""
        return self.node.exec(TEAM, "reader", "cat", TOKEN, container="reader")

    def published(self, name: str) -> str:
        """Return the token in an identity's Secret."""
        return base64.b64decode(self.node.cluster.api.get("v1", "Secret", name, TEAM)["data"]["token"]).decode()

    def seconds_until(self, probe: Callable[[], object], what: str) -> float:
        """Wait until something is so, and tell how long that took."""
        begun = time.monotonic()
        eventually(probe, what, timeout=LONG)
        return time.monotonic() - begun

    def is_active(self, token: str) -> bool:
        """Ask Keycloak's introspection endpoint (RFC 7662)."""
        return bool(self.keycloak.introspect(token, self.realm.name)["active"])

    def exchanges(self) -> float:
        """Return how many tokens the running operator has obtained since it started, by its metrics."""
        text = httpx.get(f"http://{self.metrics}/metrics", timeout=30).raise_for_status().text
        found = re.findall(r'^keyferry_renewals_total\{.*result="success".*\} (\S+)$', text, re.MULTILINE)
        return sum(map(float, found))

    def untouched(self) -> str:
        """Return what must not change by itself: versions of Secrets, specs and revisions."""
        api = self.node.cluster.api
        kept = [*api.items("v1", "Secret", TEAM), *api.items("v1", "Secret", HOME, labelSelector="keyferry.dev/state")]
        secrets = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in kept}
        identities = api.items(GROUP, "ServiceIdentity", TEAM)
        revisions = {each["metadata"]["uid"]: each.get("status", {}).get("revision") for each in identities}
        return json.dumps([secrets, revisions], sort_keys=True)

    def left_behind(self, release: str = "keyferry") -> list[str]:
        """Return every object of the cluster that carries a release's label."""
        kinds = self.node.cluster.kubectl("api-resources", "--verbs=list", "--output=name").split()
        label = f"--selector=app.kubernetes.io/instance={release}"
        named = self.node.cluster.kubectl("get", ",".join(kinds), "--all-namespaces", label, "--output=name")
        return named.split()
