"""Every kind of request that the operator makes of the API server, and what may go wrong with each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.support.kube_faults import WRITES, ApiFault, ApiFaultKind, refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.kube_proxy import KubeProxy

KINDS: tuple[dict[str, Any], ...] = (
    {"verb": "get", "resource": "namespaces"},
    {"verb": "get", "resource": "secrets", "name": "keyferry-keys"},
    {"verb": "create", "resource": "secrets", "name": "keyferry-keys"},
    {"verb": "list", "resource": "leases"},
    {"verb": "create", "resource": "leases"},
    {"verb": "update", "resource": "leases"},
    {"verb": "list", "resource": "tokenproviders"},
    {"verb": "list", "resource": "serviceidentities"},
    {"verb": "list", "resource": "secrets", "selector": "*managed*"},
    {"verb": "list", "resource": "secrets", "selector": "*credential*"},
    {"verb": "list", "resource": "secrets", "selector": "*private*"},
    {"verb": "list", "resource": "secrets", "selector": "*gone*"},
    {"verb": "watch", "resource": "tokenproviders"},
    {"verb": "watch", "resource": "serviceidentities"},
    {"verb": "watch", "resource": "secrets", "selector": "*managed*"},
    {"verb": "watch", "resource": "secrets", "selector": "*credential*"},
    {"verb": "get", "resource": "secrets", "namespace": "team-*"},
    {"verb": "create", "resource": "secrets", "namespace": "team-*"},
    {"verb": "apply", "resource": "secrets", "namespace": "team-*"},
    {"verb": "patch", "resource": "secrets", "namespace": "team-*"},
    {"verb": "delete", "resource": "secrets", "namespace": "team-*"},
    {"verb": "patch", "resource": "serviceidentities", "subresource": "status"},
    {"verb": "create", "resource": "events"},
    {"verb": "get", "resource": "secrets", "name": "kf-*"},
    {"verb": "create", "resource": "secrets", "name": "kf-seed-*"},
    {"verb": "create", "resource": "secrets", "name": "kf-*"},
    {"verb": "update", "resource": "secrets", "name": "kf-*"},
    {"verb": "delete", "resource": "secrets", "name": "kf-*"},
)
"""How the proxy tells them apart; the first that fits counts."""

REFUSED = (refused(429, retry_after=1), refused(500), refused(503), refused(504), refused(409))
"""The API server does nothing, and says so."""
LOST = (
    ApiFault(ApiFaultKind.RESET_BEFORE),
    ApiFault(ApiFaultKind.RESET_AFTER),
    ApiFault(ApiFaultKind.ANSWER_AFTER, status=504),
    ApiFault(ApiFaultKind.GARBAGE),
)
"""Nobody can tell from the answer whether it was done."""


def befall(faults: Sequence[ApiFault], *kinds: dict[str, Any]) -> Iterator[ApiFault]:
    """Yield each fault for each kind of request, so that the first of a kind fail in turn."""
    for kind in kinds or KINDS:
        for fault in faults:
            if fault.status == 409 and kind["verb"] not in WRITES:
                continue  # nothing that only reads is ever in conflict
            if fault.kind is ApiFaultKind.GARBAGE and kind["verb"] == "watch":
                continue
            yield replace(fault, **kind)


def spared(proxy: KubeProxy, planned: Sequence[ApiFault], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Return the kinds of requests to which nothing happened at all."""
    hit = {_kind(fault) for fault, number in zip(planned, numbers, strict=True) if proxy.faults.used(number)}
    return [dict(kind) for kind in sorted({_kind(fault) for fault in planned} - hit)]


def _kind(fault: ApiFault) -> tuple[tuple[str, Any], ...]:
    return tuple((name, getattr(fault, name)) for name in ("verb", "resource", "namespace", "name", "selector"))
