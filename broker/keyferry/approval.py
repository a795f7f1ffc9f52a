"""A person is being asked: what must survive a crash between the question and the answer. Values and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class Link:
    """The unguessable part of a question's address; whoever knows it may see and answer the question."""

    secret: SecretValue
    digest: str
    """Keyed hash by which it is looked up."""
    expires_at: float
    """Unix seconds; it outlives the codes that are shown under it."""


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
    link: Link | None = None
    """Where the page shows it; None where there is no page."""

    def open(self, spec_hash: str, now: float) -> bool:
        """Tell whether it may still be answered, and is what the resource (``spec_hash``) asks for."""
        return not self.ended and now < self.expires_at and self.spec_hash == spec_hash


def encode_approval(approval: Approval) -> dict[str, Any]:
    """Return JSON-ready values. They hold secrets: they go to the private state only."""
    out = {name: getattr(approval, name) for name in _PLAIN}
    out["device_code"] = approval.device_code.reveal()
    if approval.link is not None:
        link = approval.link
        out["link"] = {"secret": link.secret.reveal(), "digest": link.digest, "expires_at": link.expires_at}
    return out


def decode_approval(data: dict[str, Any]) -> Approval:
    """Return what ``encode_approval`` made. Raises KeyError or TypeError where it is damaged."""
    plain = {name: data[name] for name in _PLAIN}
    link = data.get("link")
    return Approval(
        device_code=SecretValue(data["device_code"]),
        link=Link(SecretValue(link["secret"]), link["digest"], link["expires_at"]) if link is not None else None,
        **plain,
    )


_NESTED: Final = frozenset({"device_code", "link"})
_PLAIN: Final = tuple(name for name in Approval.__slots__ if name not in _NESTED)
