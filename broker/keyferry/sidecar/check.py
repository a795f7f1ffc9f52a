"""``keyferry sidecar --check``: the probe. It reads what the sidecar wrote down, and imports next to nothing."""

from __future__ import annotations

import os
import sys
import time

from keyferry.light_json import read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATUS = ".keyferry/status.json"
"""Path of the status in the pod's directory."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def main(arguments: list[str]) -> int:
    """Print how each identity stands; return 0 while the containers may run, 1 where not, 2 for a wrong call."""
    directory = parse(arguments)
    if directory is None:
        sys.stderr.write("usage: keyferry sidecar --check [--dir DIR]\n")
        return 2
    lines, good = check(directory, time.time())
    try:
        (sys.stdout if good else sys.stderr).write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except OSError:
        os._exit(not good)  # nobody listens; the interpreter would complain once more
    return 0 if good else 1


def parse(arguments: list[str]) -> str | None:
    """Return the directory that is asked about, None where there is anything else in the words."""
    words = [word for word in arguments if word != "--check"]
    if len(words) == 1 and words[0].startswith("--dir="):
        return words[0].removeprefix("--dir=") or None
    if len(words) == 2 and words[0] == "--dir":  # noqa: PLR2004 - the option and its value
        return words[1] or None
    return "/var/run/keyferry" if not words else None


def check(directory: str, now: float) -> tuple[list[str], bool]:
    """Return a line for each identity, and whether all is well: the gate was passed, and no token lapsed since."""
    try:
        status = read_json(f"{directory}/{STATUS}")
        passed = status["gate"]["passed"] is True
        found = [(f"{name}: {_line(each, now)}", _good(each, now)) for name, each in status["identities"].items()]
    except FileNotFoundError:
        return ["the sidecar has not begun to work yet"], False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration):
        return [f"{directory}/{STATUS} cannot be read"], False
    lines = [line for line, _ in found]
    if not passed:
        lines.append(f"the containers wait: {status['gate']['waiting']}")
    return lines, passed and all(good for _, good in found)


def _good(each: dict[str, Any], now: float) -> bool:
    expires = each["expires_at"]
    return each["written_at"] is not None and (expires is None or expires > now)


def _line(each: dict[str, Any], now: float) -> str:
    parts = []
    if each["written_at"] is None:
        parts.append("no token yet")
    else:
        parts.append(f"revision {each['revision']}, {_life(each['expires_at'], now)}")
        parts.append(f"written {age(now - each['written_at'])} ago")
        if each["confirmed_at"] is not None:
            parts.append(f"confirmed {age(now - each['confirmed_at'])} ago")
    if each["problem"] is not None:
        parts.append(f"{each['problem']['reason']}: {each['problem']['message']}")
    return ", ".join(parts)


def _life(expires: float | None, now: float) -> str:
    if expires is None:
        return "good until revoked"
    return f"good for {age(expires - now)}" if expires > now else f"expired {age(now - expires)} ago"


def age(seconds: float) -> str:
    """Write a time span as people say it: one unit, or two."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE}s" if whole < 10 * _MINUTE else f"{whole // _MINUTE}m"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR}h"
