"""What an installation says of the sidecars that it injects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NATIVE_SIDECARS: Final = (1, 29)
"""The Kubernetes release from which on an init container may keep running (``restartPolicy: Always``, KEP-753)."""
FILE_VARIABLES: Final = (1, 35)
"""The release from which on variables may come from files on a volume (``fileKeyRef``, KEP-3721)."""
ANY_USER: Final = 65532
"""The image's own user."""

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """How sidecars are made here."""

    image: str
    broker_url: str
    """Base URL of the broker API, without a slash at its end."""
    kubernetes: Version
    """The API server's minor release."""
    authorities: bool = True
    """Whether the broker's certificate is of authorities that have to be shown to sidecars."""
    pull_policy: str = "IfNotPresent"
    resources: Mapping[str, Any] = field(default_factory=dict)
    user: int | None = ANY_USER
    """Whom the sidecar runs as where the pod does not say; None leaves it to the cluster."""
    host_network: bool = False
    """Whether pods on their node's network may have a sidecar, whose endpoints the whole node can reach."""
    minimum_remaining: str | None = None
    """What is asked where a pod does not say."""
    log_level: str = "info"
    allowed_hosts: tuple[str, ...] = ()
    """HOST[:PORT] that are open though not public: for the endpoint that calls LabArchives."""


def shown_version(version: Version) -> str:
    """Write a release as people do."""
    return f"{version[0]}.{version[1]}"
