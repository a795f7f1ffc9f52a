"""Container images for the test node, built here from Debian packages: no registry of images is asked.

A Debian system with Python is made once by mmdebstrap; images are built on it by buildah, with neither a daemon nor a
storage driver that mounts, and handed to the node's containerd as archives.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import aiod, tiled
from tests.support.servers import InstallError, exclusive, install_once, run_installer

if TYPE_CHECKING:
    from collections.abc import Mapping

SUITE = "bookworm"
NOT_INSTALLED = ("doc", "info", "locale", "man")  # below /usr/share
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
RECIPE = "3"  # raise it when what is in the base, or its store, changes
# What every build begins with. It sleeps, so that it also serves as the node's sandbox ("pause") image.
BASE = "localhost/keyferry-test-base:1"
# The three clients, beside each other.
CLIENTS = "localhost/keyferry-test-clients:1"
CLIENT_PACKAGES = (
    f"tiled[array,compression,minimal-client]=={tiled.VERSION}",
    f"aiondemand=={aiod.VERSION}",
    "labapi==1.2.0",
)
COMMAND = ["sleep", "infinity"]
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The authorities that the machine trusts, so that a build can install packages from where the machine may.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def base() -> Path:
    """Return the archive of the base image; making it takes about a minute. Raises InstallError."""
    return _installed() / "base.tar"


def clients() -> Path:
    """Return the archive of ``CLIENTS``: the unmodified clients of the three systems. Raises InstallError.

    They are installed from PyPI, once.
    """
    name = "-".join(["node-clients", RECIPE, *(package.partition("==")[2] for package in CLIENT_PACKAGES)])
    return install_once(name, _make_clients) / "clients.tar"


def _make_clients(target: Path) -> None:
    packages = " ".join(f"'{package}'" for package in CLIENT_PACKAGES)
    (target / "Dockerfile").write_text(
        "ARG BASE\n"
        "FROM ${BASE}\n"
        "ARG PIP_INDEX_URL\n"
        f"RUN python3 -m venv /opt/clients && /opt/clients/bin/pip install --quiet --no-cache-dir {packages}\n"
        f"ENV PATH=/opt/clients/bin:{SEARCH_PATH}\n"
    )
    given = {name: os.environ[name] for name in ("PIP_INDEX_URL",) if name in os.environ}
    build(CLIENTS, target, target / "clients.tar", arguments=given)


def build(
    tag: str,
    context: Path,
    archive: Path,
    *,
    dockerfile: Path | None = None,
    arguments: Mapping[str, str] | None = None,
) -> None:
    """Build an image, whose Dockerfile gets the base as the build argument ``BASE``, and write it to ``archive``.

    Raises InstallError with buildah's last words.
    """
    given = {"BASE": BASE, **(arguments or {})}
    options = ["--isolation=chroot", "--pull=never", "--format=oci", f"--tag={tag}"]
    options += [f"--build-arg={name}={value}" for name, value in given.items()]
    if CERTIFICATES.exists():
        options.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    store = _Store(_installed() / "store")
    with exclusive(store.directory.with_suffix(".lock")):
        store.tidy()  # a build that was killed may have left something
        store.buildah("build", *options, f"--file={dockerfile or context / 'Dockerfile'}", context)
        store.export(tag, archive)
        store.tidy()


def _installed() -> Path:
    return install_once(f"node-base-{SUITE}-{RECIPE}", _make_base)


def _make_base(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        system = Path(scratch, "system.tar")
        options = ["--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in NOT_INSTALLED]
        run_installer(["mmdebstrap", *options, SUITE, system], what="making a Debian base with mmdebstrap")
        store = _Store(target / "store")
        container = store.buildah("from", "scratch").strip()
        store.buildah("add", "--quiet", container, system, "/")
    store.buildah("config", "--cmd", json.dumps(COMMAND), "--env", f"PATH={SEARCH_PATH}", container)
    store.buildah("commit", "--quiet", "--rm", container, BASE)
    store.export(BASE, target / "base.tar")


class _Store:
    """Images and builds below a directory; between builds it holds the base alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def export(self, tag: str, archive: Path) -> None:
        """Write an image to an archive that knows its tag. An OCI archive would be compressed, for 6 s of processor."""
        self.buildah("push", "--quiet", tag, f"docker-archive:{archive}:{tag}")

    def tidy(self) -> None:
        """Remove everything but the base."""
        self.buildah("rm", "--all")
        names = self.buildah("images", "--noheading", "--format={{.Name}}:{{.Tag}}").split()
        others = [name for name in names if name not in {BASE, "<none>:<none>"}]
        if others:
            self.buildah("rmi", "--force", *others)
        self.buildah("rmi", "--prune")

    def buildah(self, command: str, *arguments: str | Path) -> str:
        """Run buildah on this store and return its output. Raises InstallError with its last words."""
        self.directory.mkdir(parents=True, exist_ok=True)
        store = [f"--root={self.directory / 'root'}", f"--runroot={self.directory / 'run'}", "--storage-driver=vfs"]
        done = subprocess.run(
            ["buildah", *store, command, *arguments],
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise InstallError(f"buildah {command} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
        return done.stdout
