"""A real Kubernetes API for tests: etcd and kube-apiserver on the loopback, or a cluster that a person names.

``KEYFERRY_TEST_KUBECONFIG`` names one that exists; ``KUBEBUILDER_ASSETS`` a directory with programs that were built
elsewhere; else they are built once from Go modules (see ``kubernetes_binaries.py``). RBAC is on, and the API server's
keys for service-account tokens can be read by anyone, as an identity provider needs it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import kube_config, kubernetes_binaries
from tests.support.kube_api import Api, ApiError, Document, eventually
from tests.support.kube_audit import AuditLog
from tests.support.kube_servers import ControlPlane, Options
from tests.support.pki import Authority
from tests.support.servers import InstallError, Lease, SharedRun, free_port

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from tests.support.kube_config import Access

KUBECONFIG_VARIABLE = "KEYFERRY_TEST_KUBECONFIG"
PROGRAM_TIMEOUT = 300.0
DISCOVERY_ROLE = "system:service-account-issuer-discovery"
NAMESPACE_LABEL = {"keyferry-tests": "true"}


def problem() -> str | None:
    """Say in one line why no cluster can be had here, or None. Builds what is needed if that was not done yet."""
    try:
        if _given() is None:
            kubernetes_binaries.control_plane()
        kubernetes_binaries.client_programs()
    except (InstallError, kube_config.KubeconfigError) as error:
        return str(error)
    return None


def controllers_problem() -> str | None:
    """Say in one line why the controllers cannot run here, or None. Builds them if that was not done yet."""
    try:
        if _given() is None:
            kubernetes_binaries.node_programs()
    except (InstallError, kube_config.KubeconfigError) as error:
        return str(error)
    return None


class NotOursError(Exception):
    """The test asked for something that only a cluster of its own can do."""


class Cluster:
    """A Kubernetes API, seen with all rights."""

    def __init__(self, access: Access, kubeconfig: Path, control: ControlPlane | None) -> None:
        self.access = access
        self.kubeconfig = kubeconfig
        self.control = control
        self.api = Api(access.url, access.context(), access.token)
        self._leases: dict[str, Lease] = {}  # of a cluster of the test's own: by program

    @property
    def url(self) -> str:
        """The API server's address."""
        return self.access.url

    @property
    def ca(self) -> str | None:
        """The certificate authority (PEM) of the API server; None if the machine trusts it anyway."""
        return self.access.ca

    @cached_property
    def issuer(self) -> str:
        """The ``iss`` of service-account tokens."""
        return str(self.api.request("GET", "/.well-known/openid-configuration")["issuer"])

    def jwks(self) -> str:
        """Return the JSON Web Key Set of service-account tokens, as the API server serves it."""
        return str(self.api.request("GET", "/openid/v1/jwks"))

    @property
    def audit(self) -> AuditLog:
        """The audit log. Raises NotOursError for a cluster that a person named."""
        return AuditLog(self._ours.audit_log)

    # Namespaces

    @contextmanager
    def namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> Iterator[str]:
        """Make a namespace with a name of its own for the block; delete it, with all that is in it, after."""
        name = self.create_namespace(prefix, labels)
        try:
            yield name
        finally:
            self.delete_namespace(name)

    def create_namespace(self, prefix: str = "test", labels: Mapping[str, str] | None = None) -> str:
        """Make a namespace in which pods can be created, and return its name."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        metadata = {"name": name, "labels": {**NAMESPACE_LABEL, **(labels or {})}}
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        if self.has_controllers:
            eventually(lambda: self.api.find("v1", "ServiceAccount", "default", name), f"{name} has its ServiceAccount")
        else:
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
            self.api.create(account)
        return name

    def delete_namespace(self, name: str, kinds: Collection[tuple[str, str]] = ()) -> None:
        """Delete a namespace, without waiting until it is gone; where no controller empties it, this does.

        ``kinds`` (``apiVersion`` and ``kind``) are all that is in it, where the test knows that.
        """
        self.api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        if not self.has_controllers:
            self._empty(name, kinds or self._all_kinds())

    def _empty(self, namespace: str, kinds: Iterable[tuple[str, str]]) -> None:
        """Do the namespace controller's work; kinds come and go meanwhile, as other tests define them."""
        gone = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
        for api_version, kind in kinds:
            try:
                self.api.delete_all(api_version, kind, namespace)
            except (ApiError, LookupError) as error:
                if isinstance(error, ApiError) and error.code not in gone:
                    raise
        found = self.api.find("v1", "Namespace", namespace)
        if found is not None:
            self.api.replace({**found, "spec": {"finalizers": []}}, "finalize")

    def _all_kinds(self) -> Iterator[tuple[str, str]]:
        """Yield every kind of which a namespace may hold objects."""
        self.api.forget_resources()
        for api_version in self._versions():
            for resource in self.api.resources(api_version):
                if resource["namespaced"] and "deletecollection" in resource["verbs"]:
                    yield api_version, resource["kind"]

    def _versions(self) -> list[str]:
        groups = self.api.request("GET", "/apis")["groups"]
        return ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]

    # Users and programs

    def kubeconfig_for(self, token: str, path: Path, namespace: str = "default") -> Path:
        """Write a kubeconfig for the bearer of ``token``."""
        return kube_config.Access(self.url, ca=self.ca, token=token).write(path, namespace)

    def as_service_account(self, namespace: str, name: str) -> Api:
        """Return the API as a service account sees it, with a real token of it."""
        return self.api.with_token(self.api.service_account_token(namespace, name))

    def kubectl(self, *arguments: str | Path, **options: Any) -> str:
        """Run kubectl with all rights and return its output; AssertionError with its complaint if it fails."""
        return self.run("kubectl", *arguments, **options)

    def helm(self, *arguments: str | Path, **options: Any) -> str:
        """Run helm with all rights and return its output; AssertionError with its complaint if it fails."""
        return self.run("helm", *arguments, **options)

    def run(self, program: str, *arguments: str | Path, **options: Any) -> str:
        """Run a program with all rights (see ``try_run``); AssertionError with its complaint if it fails."""
        done = self.try_run(program, *arguments, **options)
        assert done.returncode == 0, f"{program} failed ({done.returncode}):\n{done.stdout}{done.stderr}"
        return done.stdout

    def try_run(
        self, program: str, *arguments: str | Path, text: str | None = None, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``kubectl``, ``helm`` or another program with ``text`` as its input, whatever becomes of it.

        Its home is empty, so that nothing of the person who runs the tests is read or changed.
        """
        programs = kubernetes_binaries.client_programs()
        home = self.kubeconfig.parent if self.control else programs
        return subprocess.run(
            [program, *arguments],
            env={
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(home),
                "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            },
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT,
            check=False,
        )

    # Servers

    @property
    def has_controllers(self) -> bool:
        """Whether a controller manager makes service accounts, empties namespaces and collects garbage."""
        return self.control is None or self.control.server("kube-controller-manager").alive()

    def stop_apiserver(self) -> None:
        """Stop the API server of a cluster of the test's own; etcd and its data stay."""
        self._stop("kube-apiserver")

    def start_apiserver(self) -> None:
        """Start it again, at the same address; return when it is ready."""
        self._ours.start_api_server(self._hold("kube-apiserver"))

    def start_controllers(self) -> None:
        """Start the controller manager of a cluster of the test's own."""
        self._ours.start_controllers(self._hold("kube-controller-manager"))

    def stop(self) -> None:
        """End a cluster of the test's own and remove its data. Doing so again changes nothing."""
        for program in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self._stop(program)
        self._ours.remove_data()

    @property
    def _ours(self) -> ControlPlane:
        if self.control is None:
            raise NotOursError(f"this is the cluster of {KUBECONFIG_VARIABLE}, whose servers are not the tests' own")
        return self.control

    def _hold(self, program: str) -> Lease:
        if "etcd" not in self._leases and program != "etcd":
            raise NotOursError("this cluster belongs to the whole test run; use start_cluster for one of your own")
        self._leases[program] = Lease(self._ours.directory / f"{self._ours.name}-{program}.lease")
        return self._leases[program]

    def _stop(self, program: str) -> None:
        if not self._leases:
            raise NotOursError("this cluster belongs to the whole test run; use start_cluster for one of your own")
        lease = self._leases.get(program)
        if lease is not None:
            lease.release()
            self._ours.server(program).wait_stopped()


def shared_cluster(run: SharedRun) -> Cluster:
    """Return the cluster of this test run; the first call starts it."""
    given = _given()
    if given is not None:
        return given

    def start() -> dict[str, Any]:
        control = prepare(run.directory, "cluster", shared_authority(run), Options())
        control.start(run.lease)
        publish_keys(of(control).api)
        return {"port": control.port, "etcd_port": control.etcd_port}

    return of(ControlPlane(run.directory, "cluster", **run.shared("cluster", start)))


def shared_controllers(run: SharedRun) -> Cluster:
    """Return the cluster of this test run, in which a controller manager runs; the first call starts it."""
    cluster = shared_cluster(run)
    control = cluster.control
    if control is None:
        return cluster

    def start() -> dict[str, Any]:
        control.start_controllers(run.lease)
        return {}

    run.shared("cluster-controllers", start)
    return cluster


def shared_authority(run: SharedRun) -> Authority:
    """Return the authority that signs the certificates of the run's clusters, which other servers may have to trust."""
    return Authority(**run.shared("cluster-authority", lambda: asdict(Authority.create("Keyferry test cluster"))))


def trusted_authority(run: SharedRun) -> str:
    """Return the authority (PEM) by which a server knows the API server of this run, whether that runs yet or not."""
    given = _given()
    return (given.ca or "") if given is not None else shared_authority(run).certificate


def start_cluster(directory: Path, options: Options | None = None) -> Cluster:
    """Start a cluster of one's own, whose files go to ``directory``; it ends with ``stop()`` or with this process."""
    control = prepare(directory, "own", Authority.create("Keyferry test cluster"), options or Options())
    cluster = of(control)
    control.start_etcd(cluster._hold("etcd"))
    cluster.start_apiserver()
    publish_keys(cluster.api)
    return cluster


def prepare(directory: Path, name: str, authority: Authority, options: Options) -> ControlPlane:
    """Write what the servers of a new cluster need below ``directory``; start none."""
    control = ControlPlane(directory, name, free_port(), free_port())
    control.prepare(authority, options)
    return control


def authority_of(control: ControlPlane) -> Authority:
    """Return the authority that signed a cluster's certificates."""
    certificate, key = (control.files / f"authority.{kind}" for kind in ("crt", "key"))
    return Authority(certificate.read_text(), key.read_text())


def of(control: ControlPlane) -> Cluster:
    """Return the cluster whose servers ``control`` describes."""
    return Cluster(control.access(), control.kubeconfig(), control)


def _given() -> Cluster | None:
    """Return the cluster that a person named, or None. Raises KubeconfigError."""
    named = os.environ.get(KUBECONFIG_VARIABLE)
    if not named:
        return None
    path = Path(named).absolute()
    return Cluster(kube_config.read(path), path, None)


def publish_keys(api: Api) -> None:
    """Let anyone read the keys of service-account tokens, as issuers in the world outside allow it."""
    binding: Document = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "keyferry-tests-issuer-discovery"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": DISCOVERY_ROLE},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"},
        ],
    }
    api.apply(binding)
