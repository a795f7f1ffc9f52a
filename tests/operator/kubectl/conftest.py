"""A cluster with Keyferry's resources and no operator, and people with just the rights that the chart gives them."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.cli.app import run_app
from keyferry_operator.crds import manifests
from keyferry_operator.kubectl.app import app
from tests.chart.conftest import helm
from tests.operator.live.conftest import definitions, field
from tests.support.kube_fixtures import cluster, namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chart.conftest import Helm
    from tests.support.cluster import Cluster

__all__ = ["cluster", "definitions", "field", "helm", "namespace"]

GROUP = "keyferry.dev/v1alpha1"
RBAC = "rbac.authorization.k8s.io/v1"
VIEWER, EDITOR = "vera", "ed"
RELEASE = "people"
"""Of a release of these tests' own: its ClusterRoles are the whole cluster's."""


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def people(cluster: Cluster, helm: Helm, namespace: str) -> str:
    """Grant a viewer and an editor their roles in a namespace: what aggregation makes of view and of edit."""
    for manifest in manifests():
        cluster.api.apply(manifest)
    cluster.api.forget_resources()
    rendered = helm.template(release=RELEASE)
    ours = {part: f"{RELEASE}-keyferry-{part}" for part in ("view", "edit")}
    for name in ours.values():
        cluster.api.apply(rendered.one("ClusterRole", name))
    roles = {
        VIEWER: ["system:aggregate-to-view", ours["view"]],
        EDITOR: ["system:aggregate-to-view", "system:aggregate-to-edit", ours["view"], ours["edit"]],
    }
    for user, names in roles.items():
        for index, name in enumerate(names):
            cluster.api.apply(
                {
                    "apiVersion": RBAC,
                    "kind": "RoleBinding",
                    "metadata": {"name": f"{user}-{index}", "namespace": namespace},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
                }
            )
    return namespace


@pytest.fixture
def kubectl_keyferry(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ran]:
    """Return a function that runs a command in this process, with the cluster's kubeconfig."""
    for name in [name for name in os.environ if name.startswith("KEYFERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def call(*arguments: str | Path) -> Ran:
        code = run_app([str(argument) for argument in arguments], app, program="kubectl keyferry")
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call


async def outside(call: Callable[..., Ran], *arguments: str) -> Ran:
    """Run a command in a thread, beside an operator that runs in this loop."""
    return await asyncio.to_thread(call, *arguments)


def identity(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    body = {"providerRef": {"name": "issuer"}, "grant": {"type": "ClientCredentials"}, **spec}
    return {
        "apiVersion": GROUP,
        "kind": "ServiceIdentity",
        "metadata": {"name": name, "namespace": namespace},
        "spec": body,
    }
