"""The servers of a control plane on the loopback: etcd, the API server, and the controllers that a test may want."""

from __future__ import annotations

import secrets
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import yaml

from tests.support import kube_audit, kubernetes_binaries
from tests.support.keycloak_realm import SigningKey
from tests.support.kube_config import Access
from tests.support.servers import Lease, Server, start_server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.pki import Authority

SERVICE_RANGE, FIRST_SERVICE = "10.96.0.0/16", "10.96.0.1"
API_HOSTS = ("localhost", "127.0.0.1", FIRST_SERVICE, "kubernetes.default.svc")
NODE_NAME = "localhost"  # so that the API server finds the kubelet on the loopback
MASTERS, NODES = "system:masters", "system:nodes"
ADMIN = "keyferry-tests"
CONTROLLER_MANAGER, SCHEDULER, NODE_USER = (
    "system:kube-controller-manager",
    "system:kube-scheduler",
    f"system:node:{NODE_NAME}",
)
# Who may log in with a token of this control plane, and their groups beside ``system:authenticated``.
USERS = {ADMIN: MASTERS, CONTROLLER_MANAGER: "", SCHEDULER: "", NODE_USER: NODES}
START_TIMEOUT = 300.0
# Runs a program that shares the lock on a file for as long as it lives: HOLD FILE PROGRAM…
HOLD = (
    "import fcntl, os, sys; file = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(file, fcntl.LOCK_SH); "
    "os.set_inheritable(file, True); os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True)
class Options:
    """How a control plane is set up."""

    fsync: bool = False  # whether etcd waits for the disk; a test's data need not outlive the machine
    audit: bool = True
    api_server_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ControlPlane:
    """Servers of one cluster, found by their directory and name from any process."""

    directory: Path  # where logs and locks of the servers are
    name: str
    port: int
    etcd_port: int

    @property
    def files(self) -> Path:
        """Return the directory of keys, kubeconfigs, data and the audit log."""
        return self.directory / self.name

    @property
    def url(self) -> str:
        """The API server's address, which is also the issuer of service-account tokens."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def audit_log(self) -> Path:
        """The file of the audit log."""
        return self.files / "audit.log"

    def server(self, program: str) -> Server:
        """Return one of its servers, such as ``kube-apiserver``, running or not."""
        return Server(self.directory, f"{self.name}-{program}")

    def access(self, user: str = ADMIN) -> Access:
        """Return how one of ``USERS`` reaches the API server."""
        ca = (self.files / "authority.crt").read_text()
        return Access(self.url, ca=ca, token=(self.files / f"{user}.token").read_text())

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """Return the kubeconfig of one of ``USERS``."""
        return self.files / f"{user}.kubeconfig"

    def prepare(self, authority: Authority, options: Options) -> None:
        """Write keys, certificates, tokens and configuration."""
        self.files.mkdir(mode=0o700)
        authority.write(self.files, "authority")
        authority.server(API_HOSTS).write(self.files, "kube-apiserver")
        authority.client("kube-apiserver-kubelet-client").write(self.files, "kubelet-client")
        key = self.files / "service-account.key"
        key.touch(mode=0o600)
        key.write_text(SigningKey.create("RS256", "service-account").private_key)
        tokens = self.files / "tokens.csv"
        tokens.touch(mode=0o600)
        for user, group in USERS.items():
            token = secrets.token_urlsafe(32)
            file = self.files / f"{user}.token"
            file.touch(mode=0o600)
            file.write_text(token)
            with tokens.open("a") as lines:
                lines.write(f'{token},{user},{user},"{group}"\n')
            self.access(user).write(self.kubeconfig(user))
        (self.files / "audit-policy.yaml").write_text(yaml.safe_dump(kube_audit.POLICY))
        (self.files / "api-server-flags").write_text("\n".join(self._api_server_flags(options)))
        (self.files / "etcd-flags").write_text("" if options.fsync else "--unsafe-no-fsync")

    @property
    def etcd_lease(self) -> Path:
        """The lease that etcd lives by. The API server holds it too, because without etcd it would not end in peace."""
        return self.directory / f"{self.name}-etcd.lease"

    def start(self, lease: Lease) -> None:
        """Start etcd and the API server. Raises StartError."""
        until_ready = Lease(self.etcd_lease)
        self.start_etcd(until_ready)
        self.start_api_server(lease)
        until_ready.release()

    def start_etcd(self, lease: Lease) -> None:
        """Start etcd on the data it has. Raises StartError."""
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.etcd_port, 0))
        command: list[str | Path] = [
            kubernetes_binaries.control_plane() / "etcd",
            f"--data-dir={self.files / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            "--log-level=warn",
            *(self.files / "etcd-flags").read_text().split(),
        ]
        self._start("etcd", command, lease, f"{client}/health")

    def start_api_server(self, lease: Lease) -> None:
        """Start the API server and return when it is ready. Raises StartError."""
        flags = (self.files / "api-server-flags").read_text().split("\n")
        program = kubernetes_binaries.control_plane() / "kube-apiserver"
        command: list[str | Path] = [sys.executable, "-I", "-c", HOLD, self.etcd_lease, program, *flags]
        self._start("kube-apiserver", command, lease, f"{self.url}/readyz")

    def start_controllers(self, lease: Lease, *, wait: bool = True) -> None:
        """Start the controller manager; return when it works, or at once. Raises StartError."""
        command: list[str | Path] = [
            kubernetes_binaries.node_programs() / "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig(CONTROLLER_MANAGER)}",
            f"--root-ca-file={self.files / 'authority.crt'}",
            f"--service-account-private-key-file={self.files / 'service-account.key'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            f"--flex-volume-plugin-dir={self.files / 'volume-plugins'}",  # else it makes one below /usr
        ]
        account = f"{self.url}/api/v1/namespaces/default/serviceaccounts/default"
        self._start("kube-controller-manager", command, lease, account if wait else f"{self.url}/readyz")

    def start_scheduler(self, lease: Lease) -> None:
        """Start the scheduler. Raises StartError if it ends at once."""
        command: list[str | Path] = [
            kubernetes_binaries.node_programs() / "kube-scheduler",
            f"--kubeconfig={self.kubeconfig(SCHEDULER)}",
            "--leader-elect=false",
            "--secure-port=0",
        ]
        self._start("kube-scheduler", command, lease, f"{self.url}/readyz")

    def _start(self, program: str, command: Sequence[str | Path], lease: Lease, probe: str) -> None:
        """Start a program that is ready when the URL ``probe`` answers."""
        access = self.access()
        with httpx.Client(
            verify=access.context(), headers={"Authorization": f"Bearer {access.token}"}, trust_env=False, timeout=10
        ) as client:
            start_server(
                self.server(program).name,
                command,
                directory=self.directory,
                lease=lease,
                ready=lambda: _answers(client, probe),
                timeout=START_TIMEOUT,
            )

    def _api_server_flags(self, options: Options) -> list[str]:
        files = self.files
        audit = [
            f"--audit-policy-file={files / 'audit-policy.yaml'}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxsize=4096",  # MB; or it would begin a new file at 100
        ]
        return [
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={files / 'kube-apiserver.crt'}",
            f"--tls-private-key-file={files / 'kube-apiserver.key'}",
            f"--client-ca-file={files / 'authority.crt'}",
            f"--token-auth-file={files / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            f"--service-account-issuer={self.url}",
            f"--service-account-jwks-uri={self.url}/openid/v1/jwks",  # or it names the machine's outer address
            f"--service-account-key-file={files / 'service-account.key'}",
            f"--service-account-signing-key-file={files / 'service-account.key'}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--endpoint-reconciler-type=none",  # an endpoint on the loopback is not allowed
            f"--kubelet-client-certificate={files / 'kubelet-client.crt'}",
            f"--kubelet-client-key={files / 'kubelet-client.key'}",
            f"--kubelet-certificate-authority={files / 'authority.crt'}",
            "--kubelet-preferred-address-types=Hostname",
            "--profiling=false",
            *(audit if options.audit else ()),
            *options.api_server_flags,
        ]

    def remove_data(self) -> None:
        """Remove keys, data and logs of servers that have stopped."""
        shutil.rmtree(self.files, ignore_errors=True)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
