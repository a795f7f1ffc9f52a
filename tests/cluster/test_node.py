"""That the node runs real pods: what the chart's tests rely on."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import kube_node
from tests.support.kube_api import eventually
from tests.support.node_images import BASE
from tests.support.servers import Lease, start_server
from tests.support.tier import require

if TYPE_CHECKING:
    from tests.support.kube_node import Node

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(1200)]

PRINT_VERSION = """
import json, os, ssl, urllib.request
where = "/var/run/secrets/kubernetes.io/serviceaccount"
url = "https://%s:%s/apis" % (os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])
headers = {"Authorization": "Bearer " + open(where + "/token").read()}
trust = ssl.create_default_context(cafile=where + "/ca.crt")
print(json.load(urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=trust))["kind"])
"""


def secret(namespace: str, name: str, **data: str) -> dict[str, Any]:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}


def mounted(volume: str, path: str) -> dict[str, Any]:
    return {"volumeMounts": [{"name": volume, "mountPath": path}]}


class TestPods:
    def test_pod_prints_a_mounted_secret(self, node: Node, node_namespace: str) -> None:
        node.cluster.api.create(secret(node_namespace, "token", access="kite-1"))
        volumes = [{"name": "token", "secret": {"secretName": "token"}}]
        pod = node.pod(
            node_namespace, "reader", "cat", "/token/access", volumes=volumes, container=mounted("token", "/token")
        )
        assert node.run(pod) == "kite-1"

    def test_changed_secret_reaches_a_running_pod(self, node: Node, node_namespace: str) -> None:
        api = node.cluster.api
        made = api.create(secret(node_namespace, "token", access="kite-1"))
        volumes = [{"name": "token", "secret": {"secretName": "token"}}]
        pod = node.pod(node_namespace, "waiter", "sleep", "600", volumes=volumes, container=mounted("token", "/token"))
        api.create(pod)
        node.wait_ready(node_namespace, "waiter")
        assert node.exec(node_namespace, "waiter", "cat", "/token/access") == "kite-1"
        api.patch(made, {"data": secret(node_namespace, "token", access="kite-2")["data"]})
        # The kubelet looks at a pod's volumes at once when the pod itself changes, else after a minute or so.
        api.patch(pod, {"metadata": {"annotations": {"example.test/touched": "1"}}})
        eventually(
            lambda: node.exec(node_namespace, "waiter", "cat", "/token/access") == "kite-2", "the new token is there"
        )

    def test_job_completes(self, node: Node, node_namespace: str) -> None:
        pod = node.pod(node_namespace, "unused", "echo", "done")
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "batch", "namespace": node_namespace},
            "spec": {"template": {"spec": pod["spec"]}},
        }
        node.cluster.api.create(job)
        node.cluster.kubectl(
            "wait", "--namespace", node_namespace, "--for=condition=Complete", "job/batch", "--timeout=120s"
        )
        (found,) = node.cluster.api.items("v1", "Pod", node_namespace, labelSelector="job-name=batch")
        assert node.logs(node_namespace, found["metadata"]["name"]) == "done\n"

    def test_native_sidecar_serves_and_ends(self, node: Node, node_namespace: str) -> None:
        """A sidecar starts before the pod's work, and does not keep the pod from completing."""
        sidecar = {
            "name": "sidecar",
            "image": BASE,
            "imagePullPolicy": "Never",
            "restartPolicy": "Always",
            "command": ["sh", "-c", "umask 077; echo kite-3 >/shared/token; trap 'exit 0' TERM; sleep 600 & wait"],
            "startupProbe": {"exec": {"command": ["test", "-s", "/shared/token"]}, "periodSeconds": 1},
            **mounted("shared", "/shared"),
        }
        volumes = [{"name": "shared", "emptyDir": {"medium": "Memory"}}]
        pod = node.pod(
            node_namespace,
            "pair",
            "sh",
            "-c",
            "cat /shared/token; stat -f -c %T /shared",
            volumes=volumes,
            initContainers=[sidecar],
            container=mounted("shared", "/shared"),
        )
        node.cluster.api.create(pod)
        node.wait_for_phase(node_namespace, "pair", "Succeeded")
        assert node.logs(node_namespace, "pair", "main") == "kite-3\ntmpfs\n"

    def test_pod_reaches_the_api_server(self, node: Node, node_namespace: str) -> None:
        pod = node.pod(node_namespace, "asker", "python3", "-c", PRINT_VERSION)
        assert node.run(pod) == "APIGroupList\n"

    def test_failed_pod_is_explained(self, node: Node, node_namespace: str) -> None:
        with pytest.raises(AssertionError, match='"exitCode": 3'):
            node.run(node.pod(node_namespace, "broken", "sh", "-c", "exit 3"))


def test_image_is_built_from_a_dockerfile(node: Node, node_namespace: str, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text("import os\nprint(os.getuid(), os.access('/etc', os.W_OK))\n")
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE\nFROM ${BASE}\nCOPY hello.py /\nRUN python3 -m compileall -q /hello.py\n"
        'USER 65532\nENTRYPOINT ["python3", "/hello.py"]\n'
    )
    image = node.build_image(f"localhost/hello-{node_namespace}:1", tmp_path)
    hardened = {"readOnlyRootFilesystem": True, "runAsNonRoot": True, "allowPrivilegeEscalation": False}
    pod = node.pod(node_namespace, "hello", image=image, container={"securityContext": hardened})
    assert node.run(pod) == "65532 False\n"


FAKE_RUNTIME = """
import os, socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""
FAKE_KUBELET = """
mount -t tmpfs {cgroup} {directory}/mount
for group in /sys/fs/cgroup/{cgroup} /sys/fs/cgroup/*/{cgroup}; do
  if [ -d $group ]; then mkdir $group/pod; fi
done
touch {directory}/ready
exec sleep 600
"""


@pytest.mark.parametrize("end", ["released", "killed"])
def test_nothing_of_a_node_outlives_it(tmp_path: Path, end: str) -> None:
    """Neither a process that hid from its parents, nor a mount, nor a cgroup."""
    require("node", kube_node.problem())
    cgroup, socket = f"keyferry-test-{secrets.token_hex(4)}", tmp_path / "socket"
    (tmp_path / "mount").mkdir()
    work = FAKE_KUBELET.format(cgroup=cgroup, directory=tmp_path)
    runtime = [sys.executable, "-c", FAKE_RUNTIME, str(socket)]
    plan = {"cgroup": cgroup, "socket": str(socket), "containerd": runtime, "kubelet": ["sh", "-c", work]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    lease = Lease(tmp_path / "lease")
    server = start_server(
        "small",
        [sys.executable, "-I", kube_node.INIT, tmp_path / "plan.json"],
        directory=tmp_path,
        lease=lease,
        ready=(tmp_path / "ready").exists,
    )
    made = list(Path("/sys/fs/cgroup").rglob(f"{cgroup}/pod"))
    assert made
    assert len(processes(str(socket))) == 2, "one of them has left its parents"
    assert cgroup not in Path("/proc/mounts").read_text(), "the machine does not see the node's mounts"
    if end == "killed":
        (guardian,) = (pid for pid, line in processes(str(tmp_path)).items() if "guardian.py" in line)
        os.kill(guardian, signal.SIGKILL)
    lease.release()
    server.wait_stopped()
    eventually(lambda: not processes(str(socket)), "every process has ended")
    eventually(lambda: not [path for path in made if path.parent.exists()], "the cgroups are removed")


def processes(argument: str) -> dict[int, str]:
    """Return the processes that have ``argument`` in their command line: process id to command line."""
    found = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(maxsplit=1) for line in found.splitlines() if argument in line)
    return {int(pid): line for pid, line in lines}
