"""How an engine behaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyferry.doubt import SETTLE_MARGIN
from keyferry.grants.rfc6749_authorization_code import check_redirect

RENEW_INTERVAL: Final = 60.0
"""Seconds between renewals on demand of one identity."""
LINK_LIFETIME: Final = 72 * 3600.0
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
    page_url: str = ""
    """External address of the approval page; empty where there is none. Raises ResourceError (``check_redirect``)."""
    link_lifetime: float = LINK_LIFETIME
    """Seconds for which a question's address on the page is good."""

    def __post_init__(self) -> None:
        if self.page_url:
            check_redirect(self.page_url)
