"""The mounted Secret of an identity: what a pod starts with where the broker cannot be asked."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from keyferry.io.disk_errors import explain
from keyferry.io.files import READ_LIMIT, read_at_most
from keyferry.secret import SecretValue
from keyferry.wire import TokenAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MOST_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class Mounted:
    """What a Secret holds, as the kubelet shows it."""

    files: Mapping[str, bytes] = field(repr=False)
    revision: int = 0
    issued_at: float | None = None
    expires_at: float | None = None
    """None where none of its files says."""
    token: TokenAnswer | None = None
    """Where a file of format Json tells it; without files."""


def read_mounted(directory: Path) -> Mounted | None:
    """Return what is mounted at a directory; None where there is nothing. Raises PublishError."""
    files: dict[str, bytes] = {}
    try:
        for name in sorted(os.listdir(directory))[:MOST_FILES]:  # noqa: PTH208 - names are all that is needed
            # What begins with two dots is the kubelet's own: the links by which it swaps all files at once.
            if not name.startswith("..") and (directory / name).is_file():
                with (directory / name).open("rb") as file:
                    files[name] = read_at_most(file.fileno(), READ_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain(error, "read the mounted Secret", directory, "") from error
    if not files:
        return None
    described = next(filter(None, map(_described, files.values())), {})
    return Mounted(
        files,
        revision=described.get("revision", 0),
        issued_at=_moment(described.get("issued_at")),
        expires_at=_moment(described.get("expires_at")),
        token=_token(described),
    )


def _described(data: bytes) -> dict[str, Any] | None:
    """Return what a file of format Json says of its token; None for a file of another format."""
    if not data.startswith(b"{"):
        return None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    known = isinstance(body, dict) and _moment(body.get("expires_at")) is not None
    return body if known and isinstance(body.get("revision"), int) else None


def _token(described: Mapping[str, Any]) -> TokenAnswer | None:
    token, issued, expires = described.get("access_token"), described.get("issued_at"), described.get("expires_at")
    issued_at, expires_at = _moment(issued), _moment(expires)
    if not isinstance(token, str) or not token or issued_at is None or expires_at is None:
        return None
    kind, scope = (str(described.get(name) or usual) for name, usual in (("token_type", "Bearer"), ("scope", "")))
    return TokenAnswer(SecretValue(token), kind, issued_at, expires_at, scope, described["revision"])


def _moment(text: object) -> float | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return moment.timestamp() if moment is not None and moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
