"""Whether an operator works: by its Leases, where one may read them, and else by what should have been done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.run.table import relative
from keyferry_operator.client import LEASES
from keyferry_operator.kubectl.api import RefusedError
from keyferry_operator.kubectl.statuses import key_of, seconds, unseen_change
from keyferry_operator.leases import DURATION
from keyferry_operator.names import LEASE, SHARD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyferry.engine import IdentityStatus
    from keyferry_operator.client import Object
    from keyferry_operator.kubectl.api import Api

STALE: Final = 4 * DURATION
"""Seconds after which a Lease that nobody renewed is one that nobody holds, whatever the clocks of two machines say."""
OVERDUE: Final = 120.0
"""Seconds after which what should have been done was not: an operator that begins, or changes hands, takes less."""


def operator_trouble(api: Api, home: str, bodies: Sequence[Object], statuses: Sequence[IdentityStatus]) -> str:
    """Say in a sentence that no operator works; nothing where one does, or where that cannot be told."""
    late = _overdue(api.now(), bodies, statuses)
    try:
        leases = [item for item in api.items(LEASES, home)[1] if item["metadata"]["name"].startswith((LEASE, SHARD))]
    except RefusedError as error:
        if late and error.denied:
            return f"{late}. Perhaps no operator works; you may not read its Lease in namespace {home}"
        return late
    held = [item for item in leases if (item.get("spec") or {}).get("holderIdentity")]
    renewed = max((seconds((item["spec"]).get("renewTime")) or 0.0 for item in held), default=0.0)
    if api.now() - renewed < STALE:
        return ""
    if not leases:
        return (
            f"no operator works in namespace {home}: there is no Lease {LEASE} (--operator-namespace names another"
            f" namespace; an operator without leader election has none){'. ' + late if late else ''}"
        )
    if not held:
        return f"no operator works: nobody holds the Lease {home}/{LEASE}, so nothing is renewed"
    ago = relative(renewed, api.now())
    return f"no operator works: the Lease {home}/{LEASE} was renewed {ago}, so tokens are not"


def _overdue(now: float, bodies: Sequence[Object], statuses: Sequence[IdentityStatus]) -> str:
    """Name an identity for which something should have happened long ago."""
    for body, status in zip(bodies, statuses, strict=True):
        created = seconds(body["metadata"].get("creationTimestamp")) or now
        if not body.get("status") and now - created > OVERDUE:
            return f"no operator has looked at {key_of(body)}, which was created {relative(created, now)}"
        due = status.next_attempt_time or (status.renewal_time if status.retry is None else None)
        suspended = (body.get("spec") or {}).get("suspend") or status.reason.value == "Suspended"
        if due is not None and now - due > OVERDUE and not suspended and not unseen_change(body):
            return f"the renewal of {status.key} was due {relative(due, now)}"
    return ""
