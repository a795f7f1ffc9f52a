"""The status of an identity as JSON: for people and tools as the contract names its fields, and between processes."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from keyferry.engine.status import IdentityStatus, Prompt
from keyferry.errors import Reason, RetryClass
from keyferry.model import ObjectKey
from keyferry.question import Account
from keyferry.spec.loaded import API_VERSION, IDENTITY_KIND

if TYPE_CHECKING:
    from collections.abc import Iterable


def timestamp(at: float) -> str:
    """Return Unix seconds as RFC 3339 in UTC with milliseconds, such as ``2026-01-31T09:30:00.000Z``."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode_status(status: IdentityStatus) -> dict[str, Any]:
    """Return every field as JSON-ready values, for another process of Keyferry's."""
    plain = {name: getattr(status, name) for name in status.__slots__ if name != "key"}
    nested = {name: dataclasses.asdict(plain[name]) for name in _NESTED if plain[name] is not None}
    return {"namespace": status.key.namespace, "name": status.key.name, **plain, **nested}


def decode_status(data: dict[str, Any]) -> IdentityStatus:
    """Return what ``encode_status`` made, whatever a newer version adds. Raises KeyError, TypeError or ValueError."""
    known = {field.name for field in dataclasses.fields(IdentityStatus)} - {"key"}
    plain = {name: value for name, value in data.items() if name in known}
    plain["reason"] = Reason(plain["reason"])
    plain["retry"] = RetryClass(plain["retry"]) if plain.get("retry") is not None else None
    plain |= {name: kind(**plain[name]) for name, kind in _NESTED.items() if plain.get(name) is not None}
    return IdentityStatus(key=ObjectKey(data["namespace"], data["name"]), **plain)


def status_list(statuses: Iterable[IdentityStatus], now: float) -> dict[str, Any]:
    """Return what ``keyferry status -o json`` prints: a list of identities in the shape of the contract's."""
    items = [
        {
            "apiVersion": API_VERSION,
            "kind": IDENTITY_KIND,
            "metadata": {"namespace": status.key.namespace, "name": status.key.name},
            "spec": {"providerRef": {"name": status.provider}, "grant": {"type": status.grant}},
            "status": public_status(status, now),
        }
        for status in statuses
    ]
    return {"apiVersion": API_VERSION, "kind": f"{IDENTITY_KIND}List", "items": items}


def public_status(status: IdentityStatus, now: float) -> dict[str, Any]:
    """Return the contract's ``status``; what there is nothing of is left out."""
    out: dict[str, Any] = {"revision": status.revision} if status.revision else {}
    for name, at in (
        ("issueTime", status.issue_time),
        ("expirationTime", status.expiration_time),
        ("renewalTime", status.renewal_time),
        ("nextAttemptTime", status.next_attempt_time),
        ("reauthorizeByTime", status.reauthorize_by_time),
    ):
        if at is not None:
            out[name] = timestamp(at)
    out["failureCount"] = status.failure_count
    if status.retry is not None:
        out["lastError"] = {"code": status.error_code or "resource", "message": status.message}
    if status.authorized_as is not None:
        out["authorizedAs"] = {name: said for name, said in authorized_as(status.authorized_as).items() if said}
    if status.prompt is not None:
        out["approval"] = approval(status.prompt)
    elif status.unapproved:
        out["approval"] = {"message": status.unapproved}
    out["conditions"] = _conditions(status, now)
    return out


def authorized_as(account: Account) -> dict[str, str]:
    """Return the contract's ``status.authorizedAs``; what is not known of it is empty."""
    return {"subject": account.subject, "email": account.email}


def approval(prompt: Prompt) -> dict[str, str]:
    """Return the contract's ``status.approval``: what a person needs to see, and nobody else."""
    out = {
        "verificationURI": prompt.verification_uri,
        "verificationURIComplete": prompt.verification_uri_complete,
        "userCode": prompt.user_code,
        "expirationTime": timestamp(prompt.expires_at),
        "page": prompt.page,
    }
    return {name: value for name, value in out.items() if value}


_NESTED: Final = {"prompt": Prompt, "authorized_as": Account}


def _conditions(status: IdentityStatus, now: float) -> list[dict[str, str]]:
    reason = status.shown_reason(now).value
    reconciling = status.busy or (status.retry is None and not status.ready(now) and status.reason is Reason.PENDING)
    return [
        {"type": kind, "status": str(holds), "reason": reason, "message": status.message}
        for kind, holds in (
            ("Ready", status.ready(now)),
            ("Reconciling", reconciling),
            ("Stalled", status.stalled()),
        )
    ]
