"""What Argo CD's script of docs/operations.md and Flux (kstatus) make of the statuses that the operator writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import LuaRuntime  # type: ignore[import-untyped]

from keyferry.engine.status import IdentityStatus
from keyferry.errors import Reason, RetryClass
from keyferry.model import ObjectKey
from keyferry_operator.report import status_object

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
KEY = ObjectKey("batch", "nightly")
HOUR = 3600.0


def script() -> str:
    """Return the script as it stands in the document."""
    text = OPERATIONS.read_text()
    (block,) = [part for part in text.split("```yaml\n")[1:] if "resource.customizations" in part]
    data = yaml.safe_load(block.split("```")[0])["data"]
    return str(data["resource.customizations.health.keyferry.dev_ServiceIdentity"])


def argo(body: dict[str, Any]) -> tuple[str, str]:
    """Run the script as Argo CD does, on the object in the global ``obj``."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    lua.globals()["obj"] = lua.table_from(body, recursive=True)
    found = lua.execute(script())
    return found["status"], found["message"]


def kstatus(body: dict[str, Any]) -> str:
    """Judge as kstatus does where a resource has conditions: generation, then Reconciling, Stalled and Ready."""
    status = body.get("status") or {}
    if not status.get("conditions"):
        return "Current"  # nothing says that it is not
    if status.get("observedGeneration", body["metadata"]["generation"]) != body["metadata"]["generation"]:
        return "InProgress"
    found = {condition["type"]: condition["status"] for condition in status["conditions"]}
    if found.get("Reconciling") == "True":
        return "InProgress"
    if found.get("Stalled") == "True":
        return "Failed"
    return "Current" if found.get("Ready") == "True" else "InProgress"


def identity(status: IdentityStatus | None, *, generation: int = 1, **spec: Any) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if status is not None:
        made = status_object(status, {}, generation=1, secret="nightly")
        written = {name: value for name, value in made.items() if value is not None}
    metadata = {"name": "nightly", "namespace": "batch", "generation": generation}
    return {"metadata": metadata, "spec": spec, **({"status": written} if written else {})}


def told(reason: Reason, retry: RetryClass | None = None, *, left: float | None = HOUR) -> IdentityStatus:
    now = time.time()
    return IdentityStatus(
        key=KEY,
        provider="issuer",
        grant="ClientCredentials",
        reason=reason,
        message=f"why {reason}",
        retry=retry,
        revision=0 if left is None else 1,
        shown=left is not None,
        issue_time=None if left is None else now + left - 2 * HOUR,
        expiration_time=None if left is None else now + left,
        error_code="some_error" if retry is not None else "",
    )


@pytest.mark.parametrize(
    ("body", "health", "current"),
    [
        (identity(None), "Progressing", "Current"),
        (identity(told(Reason.PENDING, left=None)), "Progressing", "InProgress"),
        (identity(told(Reason.ISSUED)), "Healthy", "Current"),
        (identity(told(Reason.LIFETIME_TOO_SHORT)), "Healthy", "Current"),
        (identity(told(Reason.ISSUED), generation=2), "Progressing", "InProgress"),
        (identity(told(Reason.RETRYING, RetryClass.TRANSIENT)), "Healthy", "InProgress"),
        (identity(told(Reason.RETRYING, RetryClass.TRANSIENT, left=None)), "Progressing", "InProgress"),
        (identity(told(Reason.RETRYING, RetryClass.TRANSIENT, left=-HOUR)), "Degraded", "InProgress"),
        (identity(told(Reason.APPROVAL_REQUIRED, RetryClass.NEEDS_PERSON)), "Degraded", "Failed"),
        (identity(told(Reason.CLIENT_REJECTED, RetryClass.NEEDS_CONFIGURATION, left=None)), "Degraded", "Failed"),
        (identity(told(Reason.REFRESH_IN_DOUBT, RetryClass.IN_DOUBT)), "Healthy", "InProgress"),
        (identity(told(Reason.SUSPENDED)), "Suspended", "Current"),
        (identity(told(Reason.ISSUED), suspend=True), "Suspended", "Current"),
    ],
)
def test_health(body: dict[str, Any], health: str, current: str) -> None:
    found, message = argo(body)
    assert (found, kstatus(body)) == (health, current)
    if health in {"Healthy", "Degraded"}:
        assert message.startswith(tuple(Reason))


def test_an_expired_token_says_so_in_both() -> None:
    body = identity(told(Reason.ISSUED, left=-HOUR))
    assert argo(body)[0] == "Degraded"
    assert argo(body)[1].startswith("Expired")
    assert kstatus(body) == "InProgress"
