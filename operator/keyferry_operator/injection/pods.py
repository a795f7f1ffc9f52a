"""The parts of a pod that injection looks at, read from JSON that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Json = dict[str, Any]

SIDECAR: Final = "keyferry"
"""The sidecar's name in every pod."""
OTHERS: Final = frozenset(
    {
        "aws-appmesh-envoy",
        "cilium-envoy",
        "consul-connect-inject-init",
        "consul-dataplane",
        "daprd",
        "envoy-sidecar",
        "istio-init",
        "istio-proxy",
        "istio-validation",
        "kuma-init",
        "kuma-sidecar",
        "linkerd-init",
        "linkerd-network-validator",
        "linkerd-proxy",
        "vault-agent",
        "vault-agent-init",
    }
)
"""What other injectors call their containers. They set up the pod's network or its secrets, and come before ours."""


class MalformedPod(ValueError):
    """The JSON is no pod; the message names the field."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as it was sent; its parts are of the types that they should be."""

    body: Json
    annotations: Mapping[str, str]
    containers: Sequence[Json]
    init_containers: Sequence[Json]
    volumes: Sequence[Json]

    @property
    def spec(self) -> Json:
        """The pod's spec."""
        return dict(self.body["spec"])

    @property
    def service_account(self) -> str:
        """The name of its service account."""
        return str(self.body["spec"].get("serviceAccountName") or "default")

    @property
    def user(self) -> int | None:
        """Whom all its containers run as, where the pod says so."""
        user = (self.body["spec"].get("securityContext") or {}).get("runAsUser")
        return user if isinstance(user, int) and not isinstance(user, bool) else None

    @property
    def is_mirror(self) -> bool:
        """Whether the kubelet tells of a static pod: nothing of such a pod can be changed."""
        return "kubernetes.io/config.mirror" in self.annotations

    def everyone(self) -> Iterator[tuple[str, int, Json]]:
        """Yield every container: the field that holds it, its place there, and itself."""
        for field, found in (("initContainers", self.init_containers), ("containers", self.containers)):
            for place, container in enumerate(found):
                yield field, place, container


def read_pod(value: object) -> Pod:
    """Read a pod. Raises MalformedPod."""
    body = _mapping(value, "object")
    metadata = _mapping(body.get("metadata"), "metadata")
    spec = _mapping(body.get("spec"), "spec")
    annotations = _mapping(metadata.get("annotations") or {}, "metadata.annotations")
    if not all(isinstance(text, str) for text in annotations.values()):
        raise MalformedPod("metadata.annotations must hold strings")
    _mapping(spec.get("securityContext") or {}, "spec.securityContext")
    return Pod(
        body,
        annotations,
        _containers(spec, "containers"),
        _containers(spec, "initContainers"),
        _named(spec.get("volumes"), "spec.volumes"),
    )


def is_native(container: Json) -> bool:
    """Tell whether an init container keeps running."""
    return container.get("restartPolicy") == "Always"


def _containers(spec: Json, field: str) -> list[Json]:
    found = _named(spec.get(field), f"spec.{field}")
    for place, container in enumerate(found):
        where = f"spec.{field}[{place}]"
        _named(container.get("env"), f"{where}.env")
        for mount in _list(container.get("volumeMounts"), f"{where}.volumeMounts"):
            if not isinstance(mount.get("mountPath"), str):
                raise MalformedPod(f"{where}.volumeMounts must have a mountPath each")
        _list(container.get("ports"), f"{where}.ports")
    return found


def _named(value: object, where: str) -> list[Json]:
    found = _list(value, where)
    if not all(isinstance(each.get("name"), str) for each in found):
        raise MalformedPod(f"{where} must have a name each")
    return found


def _list(value: object, where: str) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedPod(f"{where} must be a list")
    return [_mapping(each, f"{where}[]") for each in value]


def _mapping(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise MalformedPod(f"{where} must be an object")
    return value
