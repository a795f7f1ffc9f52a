"""A ServiceIdentity of the cluster as the commands show identities everywhere: the same words, the same table."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from keyferry.engine.status import IdentityStatus, Prompt
from keyferry.errors import Reason, RetryClass
from keyferry.model import ObjectKey
from keyferry.question import Account

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry_operator.client import Object


def key_of(body: Object) -> ObjectKey:
    """Return the namespace and name of an object."""
    metadata = body["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def condition(body: Object, kind: str) -> Mapping[str, Any]:
    """Return one condition, empty where it is not there."""
    listed = (body.get("status") or {}).get("conditions") or ()
    return next((item for item in listed if item.get("type") == kind), {})


def unseen_change(body: Object) -> bool:
    """Tell whether no operator has looked at the spec as it is now."""
    observed = int((body.get("status") or {}).get("observedGeneration") or 0)
    return observed < int(body["metadata"].get("generation") or 0)


def status_of(body: Object) -> IdentityStatus:
    """Return what an identity's status subresource says; what a newer version of the operator adds is passed over."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    ready = condition(body, "Ready")
    error = status.get("lastError") or {}
    retry = _retry(body)
    return IdentityStatus(
        key=key_of(body),
        provider=str((spec.get("providerRef") or {}).get("name") or "-"),
        grant=str((spec.get("grant") or {}).get("type") or "-"),
        reason=_reason(ready, retry),
        message=str(ready.get("message") or "no operator has looked at it yet"),
        retry=retry,
        revision=int(status.get("revision") or 0),
        shown=ready.get("status") == "True",
        issue_time=seconds(status.get("issueTime")),
        expiration_time=seconds(status.get("expirationTime")),
        renewal_time=seconds(status.get("renewalTime")),
        next_attempt_time=seconds(status.get("nextAttemptTime")),
        reauthorize_by_time=seconds(status.get("reauthorizeByTime")),
        failure_count=int(status.get("failureCount") or 0),
        error_code=str(error.get("code") or ""),
        prompt=_prompt(status.get("approval")),
        unapproved=str((status.get("approval") or {}).get("message") or ""),
        authorized_as=_account(status.get("authorizedAs")),
    )


def seconds(text: object) -> float | None:
    """Return a time of the API (RFC 3339) as Unix seconds; None where there is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None


def _prompt(approval: object) -> Prompt | None:
    """Return what a person is being asked; None where nobody is."""
    if not isinstance(approval, dict) or not (approval.get("userCode") or approval.get("page")):
        return None
    return Prompt(
        verification_uri=str(approval.get("verificationURI") or ""),
        verification_uri_complete=str(approval.get("verificationURIComplete") or ""),
        user_code=str(approval.get("userCode") or ""),
        expires_at=seconds(approval.get("expirationTime")) or 0.0,
        page=str(approval.get("page") or ""),
    )


def _account(said: object) -> Account | None:
    if not isinstance(said, dict):
        return None
    return Account(str(said.get("subject") or ""), str(said.get("email") or ""))


def _reason(ready: Mapping[str, Any], retry: RetryClass | None) -> Reason:
    try:
        return Reason(ready.get("reason", Reason.PENDING))
    except ValueError:
        return Reason.RETRYING if retry is not None else Reason.ISSUED


def _retry(body: Object) -> RetryClass | None:
    """Return the class of the failure that the conditions tell of; None while there is none."""
    stalled = condition(body, "Stalled").get("status") == "True"
    try:
        return RetryClass(((body.get("status") or {}).get("failure") or {})["retry"])
    except (KeyError, ValueError):
        return RetryClass.NEEDS_CONFIGURATION if stalled else None
