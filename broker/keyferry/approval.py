"""A person is being asked: what must survive a crash between the question and the answer. Values and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class Approval:
    """A question to a person (RFC 8628 3.3), and how it stands. Times are Unix seconds.

    It lies in the private state. Only what a person must see of it goes into the status, and nothing into an Event.
    """

    attempt_id: str
    """Under which the answer is kept in escrow until it is committed."""
    spec_hash: str
    """What was asked for: a changed resource asks anew."""
    begun_at: float
    expires_at: float
    device_code: SecretValue
    user_code: str = field(repr=False)
    verification_uri: str
    verification_uri_complete: str = field(default="", repr=False)
    interval: float = 5.0
    """Seconds between polls; the provider may make it longer for good."""
    ended: str = ""
    """Why nothing more is to be expected of it, for people; empty while it may still be answered."""

    def open(self, spec_hash: str, now: float) -> bool:
        """Tell whether it may still be answered, and is what the resource (``spec_hash``) asks for."""
        return not self.ended and now < self.expires_at and self.spec_hash == spec_hash


def encode_approval(approval: Approval) -> dict[str, Any]:
    """Return JSON-ready values. They hold secrets: they go to the private state only."""
    out = {name: getattr(approval, name) for name in _PLAIN}
    out["device_code"] = approval.device_code.reveal()
    return out


def decode_approval(data: dict[str, Any]) -> Approval:
    """Return what ``encode_approval`` made. Raises KeyError or TypeError where it is damaged."""
    plain = {name: data[name] for name in _PLAIN}
    return Approval(device_code=SecretValue(data["device_code"]), **plain)


_PLAIN: Final = tuple(name for name in Approval.__slots__ if name != "device_code")
