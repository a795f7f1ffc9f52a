"""Kubeconfigs of all kinds, against the real API server where it takes one."""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from keyferry.cli.exits import CommandError
from keyferry_operator.kubectl.access import load
from tests.operator.kubectl.conftest import VIEWER, identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.operator.kubectl.conftest import Ran
    from tests.support.cluster import Cluster

CANARY = "canary-token-of-a-person"
INCOMPLETE = """\
current-context: x
contexts: [{name: x, context: {cluster: c, user: u}}]
clusters: [{name: c, server: CANARY}]
users: [{name: u, user: {exec: {command: CANARY}}}]
"""
PLUGIN = """\
#!{python}
import json, os, sys
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
if not os.path.exists({token!r}):
    sys.exit("the login lapsed")
print(json.dumps({{"apiVersion": info["apiVersion"], "kind": "ExecCredential",
                   "status": {{"token": open({token!r}).read()}}}}))
"""


def write(path: Path, user: dict[str, Any], server: str = "https://127.0.0.1:1", **cluster: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "batch"}},
            {"name": "there", "context": {"cluster": "c", "user": "u"}},
        ],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_context_says_server_namespace_and_credentials(tmp_path: Path) -> None:
    path = write(tmp_path / "config", {"token": CANARY}, **{"proxy-url": "http://127.0.0.1:9", "tls-server-name": "k"})
    access = load(path)
    assert (access.server, access.namespace) == ("https://127.0.0.1:1", "batch")
    assert (access.proxy, access.server_name) == ("http://127.0.0.1:9", "k")
    assert access.authorization() == f"Bearer {CANARY}"
    assert load(path, "there").namespace == "default"


def test_who_a_kubeconfig_acts_as_is_not_forgotten(tmp_path: Path) -> None:
    path = write(tmp_path / "config", {"token": CANARY, "as": "vera", "as-groups": ["a", "b"]})
    assert load(path).impersonation == (
        ("Impersonate-User", "vera"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("", "file is empty"),
        ("users: [{name: u, user: {token: CANARY}}]", "cannot be used"),
        ("current-context: x\ncontexts: []\nusers: [{name: u, user: {token: CANARY}}]\nclusters: []", "cannot be used"),
        (INCOMPLETE, "cannot be used"),
        ("current-context: x\ncontexts: CANARY", "cannot be"),
    ],
)
def test_a_kubeconfig_that_is_wrong_is_told_without_what_is_in_it(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text.replace("CANARY", CANARY))
    with pytest.raises(CommandError) as refused:
        load(path)
    assert words in refused.value.message
    assert CANARY not in refused.value.message


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nowhere"):
        load(tmp_path / "nowhere")


def _plugin(tmp_path: Path, token: Path) -> dict[str, Any]:
    script = tmp_path / "login-helper"
    script.write_text(PLUGIN.format(python=sys.executable, token=str(token)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(script),
            "interactiveMode": "Never",
        }
    }


@pytest.mark.cluster
def test_an_exec_plug_in_logs_in(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran], tmp_path: Path
) -> None:
    cluster.api.apply(identity("nightly", people))
    token = tmp_path / "token"
    authority = {"certificate-authority": str(tmp_path / "ca.pem")} if cluster.ca else {}
    (tmp_path / "ca.pem").write_text(cluster.ca or "")
    path = write(tmp_path / "config", _plugin(tmp_path, token), cluster.url, **authority)
    ran = kubectl_keyferry("status", "-n", people, "--kubeconfig", path)
    assert (ran.code, ran.out) == (1, "")
    assert "the credential plug-in of the kubeconfig failed" in ran.err
    assert "the login lapsed" in ran.err
    token.write_text(cluster.api.service_account_token(people, "default"))
    ran = kubectl_keyferry("status", "-n", people, "--kubeconfig", path)
    assert f"system:serviceaccount:{people}:default may not list serviceidentities" in ran.err
    token.write_text("not-a-token-of-this-cluster")
    ran = kubectl_keyferry("status", "-n", people, "--kubeconfig", path)
    assert "does not know you" in ran.err
    assert "not-a-token" not in ran.err


@pytest.mark.cluster
def test_a_server_that_is_not_there_is_told_in_a_sentence(kubectl_keyferry: Callable[..., Ran], tmp_path: Path) -> None:
    path = write(tmp_path / "config", {"token": CANARY})
    ran = kubectl_keyferry("status", "--kubeconfig", path)
    assert ran.code == 1
    assert "the API server https://127.0.0.1:1 cannot be reached" in ran.err
    assert CANARY not in ran.err


@pytest.mark.cluster
def test_kubectl_finds_and_completes_it(cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]) -> None:
    assert kubectl_keyferry("--help").code == 0  # and PATH names the plug-in
    cluster.api.apply(identity("nightly", people))
    done = cluster.try_run("kubectl", "keyferry", "status", "-n", people, "--as", VIEWER, "-o", "json")
    assert done.returncode == 1, done.stderr
    assert [item["metadata"]["name"] for item in json.loads(done.stdout)["items"]] == ["nightly"]
    done = cluster.try_run("kubectl", "__complete", "keyferry", "status", "-n", people, "ni")
    assert done.stdout.splitlines()[0] == "nightly", done.stdout + done.stderr
    done = cluster.try_run("kubectl", "__complete", "keyferry", "re")
    assert done.stdout.splitlines()[0] == "renew"
    assert os.environ["KUBECONFIG"] == str(cluster.kubeconfig)
