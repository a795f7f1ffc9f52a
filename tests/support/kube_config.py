"""Kubeconfig files: those that the tests write for their own users, and the one that a person hands to the tests."""

from __future__ import annotations

import base64
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

NAME = "keyferry-test"


class KubeconfigError(Exception):
    """A kubeconfig cannot be used; the message is one line for a person."""


@dataclass(frozen=True)
class Access:
    """Where an API server is, whom to trust and who one is. PEM where certificates are meant."""

    url: str
    ca: str | None = None  # None: the authorities that the machine trusts
    token: str | None = field(default=None, repr=False)
    certificate: str | None = None
    private_key: str | None = field(default=None, repr=False)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a client."""
        context = ssl.create_default_context(cadata=self.ca)
        if self.certificate and self.private_key:
            # Python reads a client's certificate from a file only.
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(f"{self.certificate}\n{self.private_key}")
                file.flush()
                context.load_cert_chain(file.name)
        return context

    def write(self, path: Path, namespace: str = "default") -> Path:
        """Write a kubeconfig (mode 0600) and return its path."""
        cluster = {"server": self.url, **_encoded("certificate-authority-data", self.ca)}
        user = {
            **({"token": self.token} if self.token else {}),
            **_encoded("client-certificate-data", self.certificate),
            **_encoded("client-key-data", self.private_key),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": NAME,
            "clusters": [{"name": NAME, "cluster": cluster}],
            "users": [{"name": NAME, "user": user}],
            "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": namespace}}],
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))
        return path


def read(path: Path) -> Access:
    """Read the current context of a kubeconfig with a token or a client certificate. Raises KubeconfigError."""
    try:
        document = yaml.safe_load(path.read_text())
        context = _named(document["contexts"], document["current-context"])["context"]
        cluster = _named(document["clusters"], context["cluster"])["cluster"]
        user = _named(document["users"], context["user"])["user"]
        access = Access(
            cluster["server"],
            ca=_pem(path, cluster, "certificate-authority"),
            token=_token(path, user),
            certificate=_pem(path, user, "client-certificate"),
            private_key=_pem(path, user, "client-key"),
        )
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise KubeconfigError(f"{path} is no kubeconfig that can be used: {type(error).__name__}: {error}") from error
    if not access.token and not (access.certificate and access.private_key):
        raise KubeconfigError(f"{path} has neither a token nor a client certificate for its current context")
    return access


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for item in items:
        if item["name"] == name:
            return item
    raise KeyError(name)


def _pem(path: Path, item: dict[str, Any], key: str) -> str | None:
    if f"{key}-data" in item:
        return base64.b64decode(item[f"{key}-data"]).decode()
    return Path(path.parent, item[key]).read_text() if key in item else None


def _token(path: Path, user: dict[str, Any]) -> str | None:
    if "tokenFile" in user:
        return Path(path.parent, user["tokenFile"]).read_text().strip()
    return str(user["token"]) if "token" in user else None


def _encoded(key: str, pem: str | None) -> dict[str, str]:
    return {key: base64.b64encode(pem.encode()).decode()} if pem else {}
