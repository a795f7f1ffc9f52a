"""How the page writes times, codes and lists."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_GROUP: Final = 4
_LONGEST_UNGROUPED: Final = 5


def moment(seconds: float) -> str:
    """Write a time as people read it, in UTC."""
    at = datetime.fromtimestamp(int(seconds), UTC)
    return f"{at:%H:%M} UTC on {at.day} {at:%B} {at.year}"


def short(seconds: float) -> str:
    """Write a time for a narrow column, in UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M UTC")


def timestamp(seconds: float) -> str:
    """Write a time as RFC 3339."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def relative(seconds: float, now: float) -> str:
    """Write how far a time is from now: ``in 9 minutes``, ``2 hours ago``; whole units, rounded down."""
    distance = int(abs(seconds - now))
    for size, unit in _UNITS:
        count = distance // size
        if count:
            words = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"in {words}" if seconds > now else f"{words} ago"
    return "now"


def groups(code: str) -> list[str]:
    """Cut a user code into pieces that are easy to read; put together again they are the code (RFC 8628 6.1)."""
    if len(code) <= _LONGEST_UNGROUPED or not code.isalnum():
        return [code]  # short, or grouped by the provider
    size = 3 if len(code) % 3 == 0 and len(code) % _GROUP else _GROUP
    return [code[start : start + size] for start in range(0, len(code), size)]
