"""JSON Patch (RFC 6902) between two values of which one was made of the other: as little of it as says the change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Operation = dict[str, Any]


def pointer(*steps: str | int) -> str:
    """Write a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def entries(path: str, before: Mapping[str, str] | None, after: Mapping[str, str]) -> list[Operation]:
    """Return what adds or changes entries of a map; none is removed."""
    if before is None:
        return [{"op": "add", "path": path, "value": dict(after)}] if after else []
    return [
        {"op": "replace" if name in before else "add", "path": path + pointer(name), "value": value}
        for name, value in after.items()
        if before.get(name) != value
    ]


def items(path: str, before: Sequence[Any] | None, after: Sequence[Any]) -> list[Operation]:
    """Return what makes one list of another: additions where nothing else changed, else the list as a whole."""
    if before is None:
        return [{"op": "add", "path": path, "value": list(after)}] if after else []
    added: list[Operation] = []
    seen = 0
    for place, item in enumerate(after):
        if seen < len(before) and before[seen] == item:
            seen += 1
        else:
            added.append({"op": "add", "path": path + pointer(place), "value": item})
    if seen == len(before):
        return added
    return [{"op": "replace", "path": path, "value": list(after)}]
