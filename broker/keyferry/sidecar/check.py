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
_LOOK = 0.1
"""Seconds between looks while it waits."""
_DIGITS = 4
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def main(arguments: list[str]) -> int:
    """Print how each identity stands; return 0 while the containers may run, 1 where not, 2 for a wrong call."""
    asked = parse(arguments)
    if asked is None:
        sys.stderr.write("usage: keyferry sidecar --check [--dir DIR] [--wait SECONDS]\n")
        return 2
    directory, patience = asked
    deadline = time.monotonic() + patience
    lines, good = check(directory, time.time())
    while not good and time.monotonic() < deadline:
        time.sleep(_LOOK)
        lines, good = check(directory, time.time())
    try:
        (sys.stdout if good else sys.stderr).write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
    except OSError:
        os._exit(not good)  # nobody listens; the interpreter would complain once more
    return 0 if good else 1


def parse(arguments: list[str]) -> tuple[str, int] | None:
    """Return the directory that is asked about, and for how many seconds; None where there are other words.

    To wait in one process costs next to nothing; to start one every second, a twentieth of a core for each pod.
    """
    directory, seconds = "/var/run/keyferry", "0"
    words = [word for word in reversed(arguments) if word != "--check"]
    while words:
        option, equals, value = words.pop().partition("=")
        if not equals:
            value = words.pop() if words else ""
        if option == "--dir" and value:
            directory = value
        elif option == "--wait" and value.isascii() and value.isdecimal() and len(value) <= _DIGITS:
            seconds = value
        else:
            return None
    return directory, int(seconds)


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
