"""Durations as the contract writes them: ``90s``, ``10m``, ``1h30m``, ``7d``; in memory, seconds."""

from __future__ import annotations

import re
from typing import Final

DURATION_PATTERN: Final = "^([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$"
"""What a duration looks like; an empty text also matches and is excluded by :data:`DURATION_MIN_LENGTH`."""
DURATION_MIN_LENGTH: Final = 2
LONGEST: Final = 100 * 365 * 86400
"""Seconds; nothing that Keyferry plans lies further ahead, and sums of durations stay exact."""

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_PATTERN: Final = re.compile(DURATION_PATTERN.replace("$", r"\Z"))


def parse_duration(text: str) -> float:
    """Return the seconds that a duration such as ``1h30m`` stands for.

    Raises:
        ValueError: the text is no duration, or one of more than a hundred years. The message does not repeat the text.

    """
    match = _PATTERN.match(text)
    if match is None or len(text) < DURATION_MIN_LENGTH:
        raise ValueError("must be a duration such as 90s, 10m, 1h30m or 7d (units d, h, m, s in this order)")
    seconds = sum(
        int(part[:-1]) * size for part, (_, size) in zip(match.groups(), _UNITS, strict=True) if part is not None
    )
    if seconds > LONGEST:
        raise ValueError("must be at most 36500d")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Write seconds as a duration that :func:`parse_duration` reads back; fractions are rounded to whole seconds."""
    rest = max(round(seconds), 0)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
