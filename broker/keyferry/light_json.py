"""Reads a small JSON file with next to nothing imported, for commands that must end in the time of a bare Python.

The import of ``json`` alone would take most of that time (it brings ``re`` and ``enum``), so its C scanner is used
directly where there is one.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LARGEST = 4 << 20


def read_json(path: str) -> Any:
    """Return what a file holds. Raises OSError; ValueError, StopIteration or RecursionError where it is no JSON."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        parts = []
        size = 0
        while size <= LARGEST and (part := os.read(descriptor, 1 << 20)):
            parts.append(part)
            size += len(part)
    finally:
        os.close(descriptor)
    return _loads(b"".join(parts).decode())


def _loads(text: str) -> Any:
    try:
        from _json import make_scanner  # noqa: PLC0415 - see above

        scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Context())  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError):
        import json  # noqa: PLC0415 - where the scanner is another

        return json.loads(text)
    return scan(text, 0)[0]


class _Context:
    """What the scanner asks a JSON decoder for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = None
    memo: dict[str, str] = {}  # noqa: RUF012 - one decoder, used once
