"""The only orchestrator: observes, lets the pure core decide, exchanges, commits, publishes, reports."""

from keyferry.engine.core import Engine
from keyferry.engine.ports import CredentialSource, Ports, Publisher, Reporter
from keyferry.engine.settings import EngineSettings
from keyferry.engine.status import Event, IdentityStatus, Level

__all__ = [
    "CredentialSource",
    "Engine",
    "EngineSettings",
    "Event",
    "IdentityStatus",
    "Level",
    "Ports",
    "Publisher",
    "Reporter",
]
