"""The chart, rendered by the real helm."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import kubernetes_binaries
from tests.support.kube_fixtures import cluster, namespace, start_cluster
from tests.support.servers import InstallError
from tests.support.tier import require

__all__ = ["cluster", "namespace", "start_cluster"]

CHART = Path(__file__).parents[2] / "charts" / "keyferry"
RELEASE = "kf"
HOME = "keyferry-system"
Document = dict[str, Any]


class Rendered(list[Document]):
    """The documents of a release."""

    def of(self, kind: str) -> list[Document]:
        return [document for document in self if document["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Document:
        (found,) = [document for document in self.of(kind) if name in {None, document["metadata"]["name"]}]
        return found

    @property
    def container(self) -> Document:
        """The operator's."""
        return dict(self.of("Deployment")[0]["spec"]["template"]["spec"]["containers"][0])


@dataclass(frozen=True)
class Helm:
    """Runs helm; values are given as a mapping."""

    program: Path
    scratch: Path

    def run(self, command: str, *arguments: str | Path, values: Document | None = None) -> tuple[bool, str]:
        """Return whether it went well, and what it said."""
        file = self.scratch / "values.yaml"
        file.write_text(yaml.safe_dump(values or {}))
        done = subprocess.run(
            [self.program, command, *arguments, "--values", file],
            env={"HOME": str(self.scratch), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr

    def template(self, values: Document | None = None, *, release: str = RELEASE, home: str = HOME) -> Rendered:
        """Return what would be installed. The CRDs have tests of their own and are left out unless asked for."""
        given = {"crds": {"enabled": False}, **(values or {})}
        well, said = self.run("template", release, CHART, "--namespace", home, values=given)
        assert well, said
        return Rendered(document for document in yaml.safe_load_all(said) if document)

    def refusal(self, values: Document) -> str:
        """Return why values are refused."""
        well, said = self.run("template", RELEASE, CHART, "--namespace", HOME, values=values)
        assert not well, "it was not refused"
        return said


@pytest.fixture
def helm(tmp_path: Path) -> Helm:
    try:
        program = kubernetes_binaries.client_programs() / "helm"
    except InstallError as error:
        require("cluster", str(error))
        raise
    return Helm(program, tmp_path)
