"""Whether the owner of a Secret or ServiceAccount lets it be used as a credential, and for which hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keyferry.errors import Reason
from keyferry_operator.names import CREDENTIAL_LABEL, HOSTS_ANNOTATION, MANAGED_LABEL, STATE_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Objection:
    """Why something may not be used."""

    reason: Reason
    fault: str
    """What is wrong with it, to follow its name."""
    remedy: str
    """The kubectl line that would allow it; empty where nothing does."""


def objection(
    metadata: Mapping[str, Any], what: str, namespace: str, name: str, hosts: frozenset[str]
) -> Objection | None:
    """Return why a ``secret`` or ``serviceaccount`` may not be used for ``hosts``; None where it may.

    Each host is ``host[:port]``; an annotation without a port allows every port.
    """
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if MANAGED_LABEL in labels or STATE_LABEL in labels:
        return Objection(Reason.SECRET_NOT_LABELLED, "is written by Keyferry itself and never used as a credential", "")
    kubectl = f"kubectl -n {namespace}"
    if labels.get(CREDENTIAL_LABEL) != "true":
        wanted = ",".join(sorted(hosts)) or "<host of the provider>"
        return Objection(
            Reason.SECRET_NOT_LABELLED,
            "is not labelled as a credential",
            f"{kubectl} label {what} {name} {CREDENTIAL_LABEL}=true &&"
            f" {kubectl} annotate {what} {name} {HOSTS_ANNOTATION}={wanted}",
        )
    listed = annotations.get(HOSTS_ANNOTATION, "")
    allowed = {host.strip() for host in listed.split(",") if host.strip()}
    closed = sorted(host for host in hosts if host not in allowed and host.rpartition(":")[0] not in allowed)
    if closed:
        wanted = ",".join(sorted(allowed | set(closed)))
        return Objection(
            Reason.HOST_NOT_ALLOWED,
            f"is not for {', '.join(closed)}",
            f"{kubectl} annotate --overwrite {what} {name} {HOSTS_ANNOTATION}={wanted}",
        )
    return None
