"""How fresh a token is and when to renew it. Pure functions of the token's times; all times are Unix seconds."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

SHORT_LIFETIME: Final = 240.0
"""Seconds; a token that lives less than this is renewed at half its life, so that one failed try still leaves time."""

MAXIMUM_JITTER: Final = 300.0
"""Seconds that a renewal is moved ahead at the most, so that tokens issued together do not come due together."""

JITTER_SHARE: Final = 0.1
"""The jitter's share of the time until the renewal."""


LONGEST_LEEWAY: Final = 5.0
"""Seconds that a token must live for at least when nobody said how long; a quarter of its life where that is less."""

KUBELET_SYNC: Final = 120.0
"""Seconds until a kubelet has surely brought what a Secret holds to the pods that mount it."""


class Freshness(enum.Enum):
    """Three states, not a boolean: a stale token is still worth serving while a new one is fetched."""

    FRESH = "fresh"
    STALE = "stale"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class RenewalPolicy:
    """When a resource wants its token renewed; seconds."""

    before: float | None = None
    """Renew at least this long before the expiry (default: at two thirds of the life)."""
    minimum_remaining: float = 0.0
    """Consumers are held back when less than this remains, so a renewal must come before that."""
    reading_delay: float = 0.0
    """Readers see a new token so much later, so it must be there that long before the old one expires."""


def leeway(issued_at: float, expires_at: float) -> float:
    """Return for how long (seconds) a token must live on to be worth handing out when nobody said so."""
    return min(LONGEST_LEEWAY, max(0.0, expires_at - issued_at) / 4)


def renewal_time(issued_at: float, expires_at: float, policy: RenewalPolicy, draw: float) -> float:
    """Return when to renew, as it is stored: whole milliseconds, jitter included.

    ``draw`` is a random number in [0, 1), drawn once per token: ``due`` itself throws no dice, so that a restart
    comes to the same answer. The result always lies between issue and expiry.
    """
    lifetime = max(0.0, expires_at - issued_at)
    after = lifetime / 2 if lifetime < SHORT_LIFETIME else lifetime * 2 / 3
    before = max(policy.before or 0.0, policy.minimum_remaining)
    if before > 0:
        # A leeway that the lifetime cannot hold would renew without end; it bends to half the life.
        after = min(after, lifetime - before) if before < lifetime else lifetime / 2
    # A life that is too short for such readers is told of (``outpaces_readers``), not renewed all the time.
    after = min(after, max(lifetime - policy.reading_delay, lifetime / 2))
    after -= draw * min(MAXIMUM_JITTER, after * JITTER_SHARE)
    return int((issued_at + after) * 1000) / 1000


def freshness(renew_at: float, expires_at: float, now: float) -> Freshness:
    """Tell whether a token is good, good but due, or past its expiry."""
    if now >= expires_at:
        return Freshness.INVALID
    return Freshness.STALE if now >= renew_at else Freshness.FRESH


def keepalive_time(refreshed_at: float, idle: float | None) -> float | None:
    """Return when a refresh token must be used to stay alive: after a third of its idle life, or never."""
    return None if idle is None or idle <= 0 else refreshed_at + idle / 3


def lifetime_too_short(issued_at: float, expires_at: float, minimum_remaining: float) -> bool:
    """Tell whether even a brand-new token could never satisfy its consumers."""
    return minimum_remaining > 0 and expires_at - issued_at < minimum_remaining


def outpaces_readers(issued_at: float, expires_at: float, reading_delay: float) -> bool:
    """Tell whether tokens live so short that readers may find an expired one, though it is renewed in time."""
    return reading_delay > 0 and expires_at - issued_at < 2 * reading_delay
