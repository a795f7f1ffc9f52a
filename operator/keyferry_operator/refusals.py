"""What the API server's refusals mean, in words for people."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

ADVICE: Final = "The chart's roles allow it; where you wrote your own, see docs/install.md"
"""What helps where a right is missing."""
_LACKS: Final = re.compile(r" cannot (get|list|watch|create|update|patch|delete) resource ")
"""How the API server names the verb that somebody may not use."""


def missing_right(method: str, path: str, *, watch: bool = False, lacks: str = "") -> str:
    """Say which right a request would have needed, in the words of RBAC (status 403).

    ``lacks`` is the verb that the API server names: an apply needs another one where there is nothing yet.
    """
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    place = "the cluster"
    if rest[0] == "namespaces" and len(rest) > 2:  # noqa: PLR2004 - a namespace's name and what is in it
        place, rest = f"namespace {rest[1]}", rest[2:]
    plural, name, below = (*rest, "", "")[:3]
    reading = "get" if name else ("watch" if watch else "list")
    verbs = {"GET": reading, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    what = f"{plural}/{below}" if below else plural
    verb = lacks or verbs[method]
    return f"the operator's service account may not {verb} {what}{f' ({name})' if name else ''} in {place}. {ADVICE}"


def refusal(status: int, raw: bytes, headers: Mapping[str, str]) -> ApiError:
    """Turn a Status object into an error. Of its message only a verb is kept: it may quote what was sent."""
    cause, lacks = "", None
    try:
        parsed = json.loads(raw)
        if isinstance(parsed, dict):
            cause = str(parsed.get("reason", ""))[:64]
            lacks = _LACKS.search(str(parsed.get("message", "")))
    except ValueError:
        pass
    retry_after = headers.get("Retry-After", "")
    return ApiError(
        f"the API server answers {status} {cause}".rstrip(),
        status=status,
        cause=cause,
        retry_after=float(retry_after) if retry_after.isdigit() else None,
        lacks=lacks[1] if lacks is not None else "",
    )
