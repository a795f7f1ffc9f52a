"""What was asked of the API server, from its audit log (policy level Metadata: who, what, when; no bodies)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],  # one line for each request, at its end; watches have a second
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class AuditEvent:
    """One request that the API server answered."""

    verb: str
    user: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    user_agent: str
    stage: str

    @property
    def is_write(self) -> bool:
        """Whether it changed something, or tried to."""
        return self.verb in WRITES

    @classmethod
    def parse(cls, event: dict[str, Any]) -> AuditEvent:
        """Read an audit.k8s.io/v1 Event."""
        reference = event.get("objectRef", {})
        return cls(
            verb=event["verb"],
            user=event.get("impersonatedUser", event.get("user", {})).get("username", ""),
            group=reference.get("apiGroup", ""),
            resource=reference.get("resource", ""),
            subresource=reference.get("subresource", ""),
            namespace=reference.get("namespace", ""),
            name=reference.get("name", ""),
            code=event.get("responseStatus", {}).get("code", 0),
            user_agent=event.get("userAgent", ""),
            stage=event["stage"],
        )


class AuditLog:
    """A growing audit log. A request's line may come a moment after its answer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> int:
        """Return where the log ends now."""
        return self.path.stat().st_size if self.path.exists() else 0

    def events(self, since: int = 0, **wanted: str) -> list[AuditEvent]:
        """Return what came after the mark ``since`` and has the ``wanted`` values, such as ``resource="secrets"``."""
        return [
            event for event in self._read(since) if all(getattr(event, name) == value for name, value in wanted.items())
        ]

    def writes(self, since: int = 0, **wanted: str) -> list[AuditEvent]:
        """Return the writes among ``events``."""
        return [event for event in self.events(since, **wanted) if event.is_write]

    def _read(self, since: int) -> Iterator[AuditEvent]:
        with self.path.open("rb") as file:
            file.seek(since)
            for line in file:
                if line.endswith(b"\n"):  # else it is still being written
                    yield AuditEvent.parse(json.loads(line))
