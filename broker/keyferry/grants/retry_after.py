"""``Retry-After``: how long a provider asks us to wait (RFC 9110 10.2.3)."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST: Final = 3600.0
"""Seconds. A server that says more is asked again after an hour: it may have recovered, or have meant milliseconds."""

_DELAY: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


def retry_after(headers: Mapping[str, str], *, now: float) -> float | None:
    """Return the seconds to wait, from 0 to `LONGEST`, or None where the answer does not say.

    A date is compared to the answer's own ``Date``, for the server's clock may differ from ours, which is ``now``.
    """
    value = headers.get("retry-after", "").strip()
    if _DELAY.fullmatch(value):
        return min(float(value), LONGEST)
    moment = _http_date(value)
    if moment is None:
        return None
    answered_at = _http_date(headers.get("date", ""))
    return min(max(moment - (now if answered_at is None else answered_at), 0.0), LONGEST)


def _http_date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
