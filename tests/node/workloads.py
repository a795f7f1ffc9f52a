"""Pods that ask for a sidecar, and the programs in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import yaml

from tests.node.person import GROUP, REPOSITORY, TEAM
from tests.support.node_images import BASE, CLIENTS
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.issuer_process import IssuerProcess

Document = dict[str, Any]
ROOT = "/var/run/keyferry"
SCRIPTS = "/scripts"
# Looks at the token of each identity twenty times a second: what is there, whether it is whole, and when it came.
# The time is that of the inode: a rename is a change of it.
WATCH = """
import hashlib, json, os, sys, time

seen = {}
while True:
    for name in sys.argv[1:]:
        try:
            with open(f"/var/run/keyferry/{name}/token.json") as file:
                came, text = os.fstat(file.fileno()).st_ctime_ns, file.read()
            with open(f"/var/run/keyferry/{name}/token") as file:
                plain = file.read()
        except FileNotFoundError:
            print("missing", name, time.time_ns(), flush=True)
            continue
        try:
            token = json.loads(text)["access_token"]
        except ValueError:
            token = ""
        if not token or len(plain) != len(token):
            print("torn", name, time.time_ns(), flush=True)
        elif seen.get(name) != token:
            seen[name] = token
            print("token", name, hashlib.sha256(token.encode()).hexdigest(), came, flush=True)
    time.sleep(0.05)
"""
# Judges a pod from within: the token was there first, the files are not its own to write, Tiled's directory is.
JUDGE = """
import os, sys

with open(os.environ["BEARER_TOKEN_FILE"]) as file:
    assert file.read(), "the first token"
for name in sys.argv[1:]:
    assert os.path.getsize(f"/var/run/keyferry/{name}/token"), name
    try:
        open(f"/var/run/keyferry/{name}/token", "a")
    except OSError:
        pass
    else:
        raise AssertionError("the files are not to be written by anybody but the sidecar")
cache = os.environ.get("TILED_CACHE_DIR")
if cache:
    open(f"{cache}/mine", "w").close()
    os.remove(f"{cache}/mine")
print("judged as", os.getuid())
"""
TILED = """
import glob, os, sys, time
from tiled.client import from_uri

def tokens():
    return {open(path).read() for path in glob.glob(os.environ["TILED_CACHE_DIR"] + "/tokens/*/access_token")}

client, seen = from_uri(sys.argv[1])[sys.argv[2]], set()
while len(seen) < 6:
    assert client.read().tolist() == list(range(10))
    seen |= tokens()
    time.sleep(0.3)
print("read across", len(seen) - 1, "rotations")
"""
AIOD = """
import time
import aiod, aiod.authentication

seen = set()
while len(seen) < 3:
    user = aiod.get_current_user()
    seen.add(aiod.authentication.get_token().headers["Authorization"])
    time.sleep(0.5)
print(user.name)
"""
LABARCHIVES = """
from io import BytesIO
import os
from labapi import Attachment, AttachmentEntry, Client, NotebookDirectory, NotebookPage

user = Client().login(os.environ["AUTH_EMAIL"], os.environ["AUTH_KEY"])
page = user.notebooks["Lab"].create(NotebookDirectory, "Runs").create(NotebookPage, "night")
content = bytes(range(256)) * 4096
page.entries.create(AttachmentEntry, Attachment(BytesIO(content), "application/octet-stream", "data.bin", "raw"))
(entry,) = Client().login("anybody", "anything").notebooks["Lab"].traverse("Runs/night").entries
assert entry.get_attachment().read() == content
print("stored", len(content))
"""
CHECKS = {"watch.py": WATCH, "judge.py": JUDGE, "read_array.py": TILED, "aiod_user.py": AIOD, "lab.py": LABARCHIVES}


def scripts() -> Document:
    """The ConfigMap of the programs."""
    metadata = {"name": "scripts", "namespace": TEAM}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": CHECKS}


def runs(script: str, *arguments: str, name: str = "main", image: str = BASE, **more: Any) -> Document:
    """A container that runs one of the programs."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-B", f"{SCRIPTS}/{script}", *arguments],
        "volumeMounts": [{"name": "scripts", "mountPath": SCRIPTS}],
        **more,
    }


def pod(
    name: str, inject: Iterable[str], *containers: Document, asks: dict[str, str] | None = None, **spec: Any
) -> Document:
    """A pod that asks for identities; every pod shares the machine's network here, and has a port of its own."""
    asked = {"inject": ",".join(inject), **(asks or {})}
    if asked.get("mode") != "Secret":
        asked["port"] = str(free_port())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": TEAM,
            "annotations": {f"keyferry.dev/{key}": value for key, value in asked.items()},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": list(containers),
            "volumes": [{"name": "scripts", "configMap": {"name": "scripts"}}],
            **spec,
        },
    }


def client_pod(tiled_url: str, array: str) -> Document:
    """The three clients, each in a container of its own, as they come from PyPI."""
    return pod(
        "clients",
        ("streaming", "crawler", "notebook"),
        runs("read_array.py", tiled_url, array, name="tiled", image=CLIENTS),
        runs("aiod_user.py", name="aiod", image=CLIENTS),
        runs("lab.py", name="lab", image=CLIENTS),
        asks={"home": "/home/app", "clients": "tiled,aiod,labarchives"},
    )


# What they ask for


def secret(name: str, hosts: str, **values: str) -> Document:
    """A Secret that its owner lets Keyferry use, for some hosts."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": TEAM,
            "labels": {"keyferry.dev/credential": "true"},
            "annotations": {"keyferry.dev/hosts": hosts},
        },
        "stringData": values,
    }


def provider(issuer: IssuerProcess) -> Document:
    """The fault-injecting issuer, which knows to the millisecond when it issued what."""
    spec = {
        "type": "OAuth",
        "oauth": {"issuer": issuer.issuer, "client": {"id": "slow", "secretsFrom": [reference("issuer", "slow")]}},
    }
    return resource("TokenProvider", "issuer", spec)


def identity(name: str, client: str, target: str) -> Document:
    """An identity at that issuer; its audience keeps its exchanges from being one with another's."""
    spec = {
        "providerRef": {"name": "issuer"},
        "client": {"id": client, "secretsFrom": [reference("issuer", client)]},
        "grant": {"type": "ClientCredentials"},
        "audiences": [name],
        "target": {"type": target},
        "consumers": [{"serviceAccountName": "default"}],
    }
    return resource("ServiceIdentity", name, spec)


def resource(kind: str, name: str, spec: Document) -> Document:
    return {"apiVersion": GROUP, "kind": kind, "metadata": {"name": name, "namespace": TEAM}, "spec": spec}


def reference(name: str, key: str) -> Document:
    return {"secretKeyRef": {"name": name, "key": key}}


def example(path: str, replacements: dict[str, str], *names: str) -> list[Document]:
    """Resources of an example, made to fit this place, for sidecars alone; the named ones, or all."""
    text = (REPOSITORY / "examples" / path).read_text()
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    found = [each for each in yaml.safe_load_all(text) if not names or each["metadata"]["name"] in names]
    for each in found:
        each["metadata"]["namespace"] = TEAM
        if each["kind"] == "ServiceIdentity":
            each["spec"].setdefault("target", {})["type"] = "None"
            each["spec"]["consumers"] = [{"serviceAccountName": "default"}]
    return found


# What they saw


@dataclass
class Seen:
    """What a watching pod wrote down."""

    delays: list[float] = field(default_factory=list)
    """Seconds from when the issuer issued each token until its file was there; of first tokens there is none."""
    broken: list[str] = field(default_factory=list)
    """Looks at which a file was missing or not whole."""

    @classmethod
    def read(cls, log: str, issuer: IssuerProcess) -> Seen:
        """Make sense of a pod's log."""
        issued = {hashlib.sha256(each.value.encode()).hexdigest(): each.issued_at for each in issuer.issued}
        seen, known = cls(), set()
        for line in log.splitlines():
            kind, name, *rest = line.split()
            if kind != "token":
                seen.broken.append(line)
            elif name not in known:
                known.add(name)
            else:
                seen.delays.append(int(rest[1]) / 1e9 - issued[rest[0]])
        return seen

    def row(self, what: str) -> str:
        """A row of the table in docs/performance.md."""
        many = len(self.delays) > 1
        cuts = quantiles(self.delays, n=100, method="inclusive") if many else [*self.delays, 0.0] * 50
        return f"| {what} | {len(self.delays)} | {cuts[49]:.3f} s | {cuts[98]:.3f} s | {max(self.delays):.3f} s |"
