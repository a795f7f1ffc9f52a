"""How an engine behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyferry.doubt import SETTLE_MARGIN

RENEW_INTERVAL: Final = 60.0
"""Seconds between renewals on demand of one identity."""
DRAIN: Final = 60.0
"""Seconds that exchanges under way are given to finish when the engine stops."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine behaves; the defaults are right for people."""

    holder: str
    suspend_all: bool = False
    """Start without exchanging anything (after a restore)."""
    prompts: bool = True
    """Whether anybody sees it when a person is asked; else nobody is."""
    renew_interval: float = RENEW_INTERVAL
    drain: float = DRAIN
    shards: int = 1
    """Into how many parts the identities fall that processes share."""
    settle_margin: float = SETTLE_MARGIN
    """Seconds beyond a request's deadline for which another's claim is left alone (``doubt.settle_time``)."""
