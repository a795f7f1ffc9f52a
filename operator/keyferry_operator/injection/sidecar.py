"""The sidecar itself: its container, and the volumes that are its own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from keyferry_operator.injection.needs import FILES_VOLUME, ROOT, fallback_volume
from keyferry_operator.injection.pods import SIDECAR
from keyferry_operator.injection.wishes import DEFAULT_PORT, Client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyferry_operator.injection.pods import Json, Pod
    from keyferry_operator.injection.settings import InjectionSettings
    from keyferry_operator.injection.wishes import Wishes

AUDIENCE: Final = "keyferry"
"""Of the token that the sidecar shows to the broker; the API server takes none of it."""
TOKEN_SECONDS: Final = 3600
"""The kubelet replaces a token when four fifths of its life are over."""
CA_CONFIG_MAP: Final = "keyferry-ca"
"""Holds the authorities that the broker's certificate may come from, in each namespace that has identities; the kubelet
brings the next ones into running pods."""
CA_FILE: Final = "ca.crt"
BROKER_VOLUME: Final = "keyferry-broker"
BROKER_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the API server would mount the pod's own token, which the sidecar does not need: where something is mounted
already, it mounts none."""
FALLBACK_DIRECTORY: Final = "/var/run/secrets/keyferry.dev"
"""Where the Secrets are mounted that the sidecar falls back on, each in a directory named for its identity."""
FILES_LIMIT: Final = "16Mi"
READABLE: Final = 0o444
GATE_SECONDS: Final = 50
"""For which one probe waits until the gate is open: to start one every second would cost far more."""
READY_SECONDS: Final = 30
"""Between looks whether a token has expired since."""
PROBE_TIMEOUT: Final = 10
"""Seconds that a probe may take beyond what it waits."""
PATIENCE: Final = 2**31 - 1
"""Probes until the kubelet would restart a sidecar that waits: one that waits for a person does well to wait."""


def volumes(settings: InjectionSettings) -> list[Json]:
    """Return the memory volume of the files, and what the sidecar shows to the broker and judges it by."""
    token = {"audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    authorities = {"name": CA_CONFIG_MAP, "items": [{"key": CA_FILE, "path": CA_FILE}]}
    sources: list[Json] = [{"serviceAccountToken": token}]
    if settings.authorities:
        sources.append({"configMap": authorities})
    return [
        {"name": FILES_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": FILES_LIMIT}},
        {"name": BROKER_VOLUME, "projected": {"defaultMode": READABLE, "sources": sources}},
    ]


def container(pod: Pod, namespace: str, wishes: Wishes, clients: Sequence[Client], settings: InjectionSettings) -> Json:
    """Return the sidecar of a pod; ``clients`` are those that it serves."""
    check = ["keyferry", "sidecar", "--check", "--dir", ROOT]
    made: Json = {
        "name": SIDECAR,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": _arguments(namespace, wishes, clients, settings),
        "env": [{"name": "KEYFERRY_LOG_LEVEL", "value": settings.log_level}],
        "restartPolicy": "Always",
        # What starts after it starts when this was well once: the gate.
        "startupProbe": {
            "exec": {"command": [*check, "--wait", str(GATE_SECONDS)]},
            "periodSeconds": 1,
            "timeoutSeconds": GATE_SECONDS + PROBE_TIMEOUT,
            "failureThreshold": PATIENCE,
        },
        # A pod whose token has expired gets no requests; nothing is killed for it.
        "readinessProbe": {
            "exec": {"command": check},
            "periodSeconds": READY_SECONDS,
            "timeoutSeconds": PROBE_TIMEOUT,
            "failureThreshold": 1,
        },
        "securityContext": _security(pod, settings),
        "volumeMounts": [
            {"name": FILES_VOLUME, "mountPath": ROOT},
            {"name": BROKER_VOLUME, "mountPath": BROKER_DIRECTORY, "readOnly": True},
            *(
                {"name": fallback_volume(wishes, name), "mountPath": f"{FALLBACK_DIRECTORY}/{name}", "readOnly": True}
                for name in wishes.fallback
            ),
        ],
    }
    if settings.resources:
        made["resources"] = copy.deepcopy(dict(settings.resources))
    return made


def _arguments(namespace: str, wishes: Wishes, clients: Sequence[Client], settings: InjectionSettings) -> list[str]:
    minimum = wishes.minimum_remaining or settings.minimum_remaining
    hosts = settings.allowed_hosts if Client.LABARCHIVES in clients else ()
    return [
        "sidecar",
        f"--broker={settings.broker_url}",
        *([f"--ca={BROKER_DIRECTORY}/{CA_FILE}"] if settings.authorities else []),
        f"--token={BROKER_DIRECTORY}/token",
        f"--namespace={namespace}",
        f"--dir={ROOT}",
        f"--port={wishes.port or DEFAULT_PORT}",
        *([f"--clients={','.join(client.value for client in clients)}"] if clients else []),
        *([f"--minimum-remaining={minimum}"] if minimum else []),
        *(f"--allow-host={host}" for host in hosts),
        *(f"--fallback={name}={FALLBACK_DIRECTORY}/{name}" for name in wishes.fallback),
        *wishes.identities,
    ]


def _security(pod: Pod, settings: InjectionSettings) -> Json:
    """Return what the Pod Security Standard "restricted" asks for, and more; never root, whoever the pod runs as."""
    user = pod.user or settings.user
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        **({"runAsUser": user} if user is not None else {}),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
