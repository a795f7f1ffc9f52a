"""What ``bench.operator`` declares in its cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.plain_kube import GROUP, create
from bench.world import CLIENT_ID, CLIENT_SECRET, CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.plain_kube import Document, Request
    from tests.support.issuer_process import IssuerProcess

API = "keyferry.dev/v1alpha1"


def path(namespace: str, plural: str, name: str = "") -> str:
    """Return the URL path of a collection of ``secrets`` or of a kind of ours, or of one object."""
    root = "/api/v1" if plural == "secrets" else GROUP
    return f"{root}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def status_path(namespace: str, name: str) -> str:
    """Return the URL path of an identity's status."""
    return f"{path(namespace, 'serviceidentities', name)}/status"


def provider(namespace: str, issuer: IssuerProcess) -> Iterator[Request]:
    """Yield what creates the provider and its client's Secret."""
    spec = {
        "type": "OAuth",
        "oauth": {
            "issuer": issuer.issuer,
            "client": {
                "id": CLIENT_ID,
                "authentication": "ClientSecretBasic",
                "secretsFrom": [{"secretKeyRef": {"name": "bench", "key": "secret"}}],
            },
        },
        "limits": {"requestsPerSecond": 10000, "burst": 1000, "concurrency": CONCURRENCY},
    }
    yield credential(namespace, "bench", issuer, secret=CLIENT_SECRET)
    yield create(
        path(namespace, "tokenproviders"),
        {"apiVersion": API, "kind": "TokenProvider", "metadata": {"name": "bench"}, "spec": spec},
    )


def credential(namespace: str, name: str, issuer: IssuerProcess, **values: str) -> Request:
    """Return what creates a Secret that may be used at the issuer."""
    metadata = {
        "name": name,
        "labels": {"keyferry.dev/credential": "true"},
        "annotations": {"keyferry.dev/hosts": issuer.url.removeprefix("http://")},
    }
    return create(
        path(namespace, "secrets"), {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
    )


def identity(namespace: str, name: str, **fields: Document) -> Request:
    """Return what creates an identity; an audience of its own keeps its exchange from being shared with another."""
    spec: Document = {
        "providerRef": {"name": "bench"},
        **(fields or {"grant": {"type": "ClientCredentials"}, "audiences": [name]}),
    }
    return create(
        path(namespace, "serviceidentities"),
        {"apiVersion": API, "kind": "ServiceIdentity", "metadata": {"name": name}, "spec": spec},
    )
