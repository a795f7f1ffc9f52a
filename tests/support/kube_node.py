"""A whole node for tests: scheduler, controllers, kubelet and containerd, with real pods, on a cluster of its own.

Pods share the machine's network, because everything here listens on the loopback: an admission policy of the test
cluster asks it for them and tells them where the API server is, so that charts and Pods need no change for it. Another
has Services, whose addresses nothing routes here, lead to the loopback: for the API server, which calls webhooks there;
to pods the names of ``SERVICES`` say the same.
The kubelet, containerd and every container live in a PID and a mount namespace of their own: they end, and their mounts
vanish, with its first process, which a guardian ends with the test run (see ``node_init.py``).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support import cluster as clusters
from tests.support import kubernetes_binaries, node_images
from tests.support.kube_api import Document, eventually
from tests.support.kube_servers import NODE_NAME, NODE_USER, ControlPlane, Options
from tests.support.node_images import BASE
from tests.support.servers import InstallError, SharedRun, free_port, run_installer, start_server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.cluster import Cluster

INIT = Path(__file__).with_name("node_init.py")
CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
# Program to Debian package.
NEEDED = {
    "buildah": "buildah",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "mmdebstrap": "mmdebstrap",
    "runc": "runc",
    "unshare": "util-linux",
}
CNI_PACKAGE = "containernetworking-plugins"
START_TIMEOUT = 300.0
POD_TIMEOUT = 300.0
ADMISSION = "admissionregistration.k8s.io/v1"
POLICY = "keyferry-test-node"
# What the chart's tests install: its Services lead to the loopback, at the ports of its pods.
SERVICES = ("keyferry-broker.keyferry.svc", "keyferry-broker-replicas.keyferry.svc")


def problem() -> str | None:
    """Say in one line why no node can run here, or None. Builds what is needed if that was not done yet."""
    if os.environ.get(clusters.KUBECONFIG_VARIABLE):
        return f"the node is the tests' own, and {clusters.KUBECONFIG_VARIABLE} names a cluster"
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "a node needs Linux and root"
    missing = {package for program, package in NEEDED.items() if shutil.which(program) is None}
    if _cni() is None:
        missing.add(CNI_PACKAGE)
    if missing:
        return f"the node needs more programs (Debian: apt-get install {' '.join(sorted(missing))})"
    allowed = subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], check=False, capture_output=True)
    if allowed.returncode != 0 or not os.access("/sys/fs/cgroup", os.W_OK):
        return "a node needs a machine that allows namespaces and cgroups"
    try:
        kubernetes_binaries.control_plane()
        kubernetes_binaries.node_programs()
        kubernetes_binaries.client_programs()
        node_images.base()
    except InstallError as error:
        return str(error)
    return None


class Node:
    """A cluster with one node that runs pods."""

    def __init__(self, cluster: Cluster, control: ControlPlane) -> None:
        self.cluster = cluster
        self.control = control

    # Images

    def build_image(
        self, tag: str, context: Path, dockerfile: Path | None = None, arguments: Mapping[str, str] | None = None
    ) -> str:
        """Build an image from a Dockerfile whose base is the build argument ``BASE``; load it and return its name.

        ``tag`` begins with ``localhost/``. Raises InstallError with buildah's last words.
        """
        archive = self.control.files / f"{secrets.token_hex(4)}.tar"
        try:
            node_images.build(tag, context, archive, dockerfile=dockerfile, arguments=arguments)
            self.load(archive)
        finally:
            archive.unlink(missing_ok=True)
        return tag

    def load(self, archive: Path) -> None:
        """Hand an image archive to containerd, for pods that never pull."""
        ctr: list[str | Path] = ["ctr", "--address", _socket(self.control), "--namespace=k8s.io"]
        run_installer([*ctr, "images", "import", archive], what="loading an image into containerd")

    # Pods

    def kill(self, container: str) -> None:
        """End a container's first process, by the container's id, with SIGKILL."""
        ctr: list[str | Path] = ["ctr", "--address", _socket(self.control), "--namespace=k8s.io"]
        run_installer([*ctr, "tasks", "kill", "--signal=SIGKILL", container], what="killing a container")

    def pod(self, namespace: str, name: str, *command: str, image: str = BASE, **spec: Any) -> Document:
        """Describe a pod with one container, ``main``; ``container`` adds to it, the rest of ``spec`` to the pod."""
        more = spec.pop("container", {})
        main = {"name": "main", "image": image, "imagePullPolicy": "Never", **more}
        if command:
            main["command"] = list(command)
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [main], **spec},
        }

    def run(self, pod: Document) -> str:
        """Create a pod, wait until it has succeeded, and return its output."""
        made = self.cluster.api.create(pod)["metadata"]
        self.wait_for_phase(made["namespace"], made["name"], "Succeeded")
        return self.logs(made["namespace"], made["name"])

    def wait_for_phase(self, namespace: str, name: str, phase: str, timeout: float = POD_TIMEOUT) -> Document:
        """Return the pod once it is in ``phase``; AssertionError with its state and events if it never is."""

        def reached() -> Document | None:
            pod = self.cluster.api.get("v1", "Pod", name, namespace)
            ended = pod["status"]["phase"] in {"Succeeded", "Failed"}
            assert not ended or pod["status"]["phase"] == phase, self.explain(namespace, name)
            return pod if pod["status"]["phase"] == phase else None

        try:
            return eventually(reached, f"pod {name} is {phase}", timeout=timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.explain(namespace, name)}") from None

    def wait_ready(self, namespace: str, name: str, timeout: float = POD_TIMEOUT) -> Document:
        """Return the pod once it is ready; AssertionError with its state and events if it never is."""

        def ready() -> Document | None:
            pod = self.cluster.api.get("v1", "Pod", name, namespace)
            conditions = {found["type"]: found["status"] for found in pod["status"].get("conditions", ())}
            return pod if conditions.get("Ready") == "True" else None

        try:
            return eventually(ready, f"pod {name} is ready", timeout=timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.explain(namespace, name)}") from None

    def logs(self, namespace: str, name: str, container: str | None = None) -> str:
        """Return what a container has printed."""
        path = self.cluster.api.path("v1", "Pod", namespace, name) + "/log"
        return str(self.cluster.api.request("GET", path, params={"container": container} if container else None))

    def exec(self, namespace: str, name: str, *command: str, container: str = "main") -> str:
        """Run a command in a running container and return its output; AssertionError if it fails."""
        where = ["--namespace", namespace, name, "--container", container]
        return self.cluster.kubectl("exec", *where, "--", *command)

    def explain(self, namespace: str, name: str) -> str:
        """Return the state of a pod's containers and its events, for a person who reads a failed test."""
        status = self.cluster.api.get("v1", "Pod", name, namespace)["status"]
        parts = ("phase", "reason", "message", "initContainerStatuses", "containerStatuses")
        lines = [f"{part}: {json.dumps(status[part])}" for part in parts if part in status]
        events = self.cluster.api.items("v1", "Event", namespace, fieldSelector=f"involvedObject.name={name}")
        return "\n".join([*lines, *(f"{event['reason']}: {event.get('message', '')}" for event in events)])


def shared_node(run: SharedRun) -> Node:
    """Return the node of this test run, on a cluster of its own; the first call starts it."""

    def start() -> dict[str, Any]:
        control = clusters.prepare(run.directory, "node", clusters.shared_authority(run), Options())
        control.start(run.lease)
        control.start_controllers(run.lease, wait=False)
        control.start_scheduler(run.lease)
        cluster = clusters.of(control)
        clusters.publish_keys(cluster.api)
        for document in _admission(control.port):
            cluster.api.apply(document)
        node = Node(cluster, control)
        _start_node(node, run)
        return {"port": control.port, "etcd_port": control.etcd_port}

    control = ControlPlane(run.directory, "node", **run.shared("node", start))
    return Node(clusters.of(control), control)


def _start_node(node: Node, run: SharedRun) -> None:
    """Start containerd and the kubelet, and load the image that every pod needs."""
    control = node.control
    plan = control.files / "node.json"
    plan.write_text(json.dumps(_plan(control)))
    start_server(
        control.server("runtime").name,
        [sys.executable, "-I", INIT, plan],
        directory=run.directory,
        lease=run.lease,
        ready=lambda: _is_ready(node),
        timeout=START_TIMEOUT,
    )
    node.load(node_images.base())


def _is_ready(node: Node) -> bool:
    found = node.cluster.api.find("v1", "Node", NODE_NAME)
    conditions = found["status"].get("conditions", ()) if found else ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _socket(control: ControlPlane) -> Path:
    return control.files / "containerd.sock"


def _cni() -> Path | None:
    return next((directory for directory in CNI_DIRECTORIES if (directory / "loopback").exists()), None)


def _plan(control: ControlPlane) -> dict[str, Any]:
    """Write the configuration of containerd and the kubelet, and return the plan for ``node_init.py``."""
    files = control.files
    cgroup = f"keyferry-test-{secrets.token_hex(4)}"
    network = files / "cni"
    network.mkdir()
    loopback = {"cniVersion": "0.4.0", "name": "loopback", "plugins": [{"type": "loopback"}]}
    (network / "loopback.conflist").write_text(json.dumps(loopback))
    (files / "containerd.toml").write_text(_containerd(files, network))
    (files / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(control, cgroup)))
    return {
        "cgroup": cgroup,
        "socket": str(_socket(control)),
        "containerd": ["containerd", f"--config={files / 'containerd.toml'}"],
        "kubelet": [
            str(kubernetes_binaries.node_programs() / "kubelet"),
            f"--config={files / 'kubelet.yaml'}",
            f"--kubeconfig={control.kubeconfig(NODE_USER)}",
            f"--root-dir={files / 'kubelet'}",
            f"--cert-dir={files / 'kubelet-certificates'}",
            f"--hostname-override={NODE_NAME}",
        ],
    }


def _containerd(files: Path, network: Path) -> str:
    """Return containerd's configuration. Its images and containers are in memory, with the rest of ``/run``."""
    return f"""
version = 2
root = "/run/containerd-root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{files / "containerd.sock"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BASE}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_cni()}"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(control: ControlPlane, cgroup: str) -> Document:
    """Return the kubelet's configuration."""
    files = control.files
    certificate, key = clusters.authority_of(control).server((NODE_NAME, "127.0.0.1")).write(files, "kubelet")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "127.0.0.1",
        "port": free_port(),
        "readOnlyPort": 0,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(files / "authority.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},  # of those with a certificate of this cluster's authority
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "containerRuntimeEndpoint": f"unix://{_socket(control)}",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "failSwapOn": False,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "resolvConf": "",
        "podLogsDir": str(files / "pod-logs"),
        "volumePluginDir": str(files / "volume-plugins"),
    }


def _admission(port: int) -> list[Document]:
    """Describe the policy that puts every pod on the machine's network and shows it the API server."""
    reached = {"HOST": "127.0.0.1", "PORT": str(port), "PORT_HTTPS": str(port)}

    def containers(field: str) -> str:
        # An explicit variable wins over the one that the kubelet makes of the Service, which nothing routes here.
        kind = f"Object.spec.{field}"
        entries = (
            f'{kind}.env{{name: "KUBERNETES_SERVICE_{name}", value: "{value}"}}' for name, value in reached.items()
        )
        return f"{field}: object.spec.{field}.map(c, {kind}{{name: c.name, env: [{', '.join(entries)}]}})"

    names = ", ".join(f'"{name}"' for name in SERVICES)
    alias = f'Object.spec.hostAliases{{ip: "127.0.0.1", hostnames: [{names}]}}'
    additions = {"/spec/hostAliases": "[]", "/spec/hostAliases/-": alias}  # a list with an object has the server panic
    steps = (f'JSONPatch{{op: "add", path: "{path}", value: {value}}}' for path, value in additions.items())
    named = f"[{', '.join(steps)}]"
    plain = f"Object{{spec: Object.spec{{hostNetwork: true, {containers('containers')}}}}}"
    initial = f"Object{{spec: Object.spec{{{containers('initContainers')}}}}}"
    expressions = [plain, f"has(object.spec.initContainers) ? {initial} : Object{{}}"]
    outside = 'Object{spec: Object.spec{type: "ExternalName", externalName: "127.0.0.1"}}'
    routed = {"name": "has-an-address", "expression": "!has(object.spec.clusterIP) && request.namespace != 'default'"}
    applied = [_applied(expression) for expression in expressions]
    aliased = {"patchType": "JSONPatch", "jsonPatch": {"expression": named}}
    return [
        *_policy(POLICY, "pods", [*applied, aliased]),
        *_policy(f"{POLICY}-services", "services", [_applied(outside)], routed),
    ]


def _applied(expression: str) -> Document:
    return {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}


def _policy(name: str, resources: str, mutations: list[Document], *conditions: dict[str, str]) -> list[Document]:
    """Describe a policy that changes every new object of a kind for which the conditions hold, and its binding."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resources]}
    policy = {
        "apiVersion": ADMISSION,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": list(conditions),
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": mutations,
        },
    }
    binding = {
        "apiVersion": ADMISSION,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }
    return [policy, binding]
