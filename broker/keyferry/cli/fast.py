"""``keyferry token NAME`` in the plain case: the stored token, if it lives long enough, with next to nothing imported.

What this does not understand, or cannot answer, is left to the command proper.
"""

from __future__ import annotations

import os
import sys
import time

from keyferry.light_json import read_json

NOT_A_TOKEN = "labarchives"  # noqa: S105 - it says so
"""As ``keyferry.providers.labarchives.SESSION_TYPE``: what is kept there is a user id, and nobody gets that."""
LEEWAY = 5.0
"""As ``keyferry.freshness.LONGEST_LEEWAY``, which is too expensive to import here."""
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


class Asked:
    """What the command line asks for."""

    __slots__ = ("minimum", "name", "namespace", "state")

    def __init__(self) -> None:
        self.name = ""
        self.namespace = os.environ.get("KEYFERRY_NAMESPACE") or "default"
        self.state = os.environ.get("KEYFERRY_STATE") or default_state()
        self.minimum: float | None = None


def answer(arguments: list[str]) -> bool:
    """Print the token and return True, or print nothing and return False."""
    asked = parse(arguments)
    if asked is None:
        return False
    token = stored_token(asked.state, asked.namespace, asked.name, asked.minimum)
    if token is None:
        return False
    print_token(token)
    return True


def print_token(token: str) -> None:
    """Write the token and a line end; exit with 1 where stdout does not take it."""
    try:
        sys.stdout.write(token + "\n")
        sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"keyferry: the token could not be written to stdout: {error.strerror}\n")
        # The interpreter would try, and complain, once more.
        os._exit(1)


def stored_token(state: str, namespace: str, name: str, minimum: float | None) -> str | None:
    """Return the token in the private state if it lives for ``minimum`` seconds more, else None.

    ``None`` for ``minimum`` is what the record says (``renewal.minimumRemaining``), and at least a few seconds.
    """
    if not is_name(namespace) or not is_name(name):
        return None
    try:
        record = read_json(f"{state}/records/{namespace}/{name}.json")["record"]
        token = record["token"]
        issued, expires = float(token["issued_at"]), float(token["expires_at"])
        if minimum is None:
            minimum = max(float(record.get("minimum_remaining", 0.0)), min(LEEWAY, (expires - issued) / 4))
        text = token["access_token"]
        if token.get("token_type") == NOT_A_TOKEN:
            return None
        good = expires - time.time() >= max(minimum, 0.001) and token.get("publishable", True) is True
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, StopIteration):
        return None
    return text if good and isinstance(text, str) and text.isascii() and text.isprintable() else None


def parse(arguments: list[str]) -> Asked | None:
    """Read the plain forms of the options; None where there is anything else."""
    asked = Asked()
    pending = list(reversed(arguments))
    while pending:
        word = pending.pop()
        if not word.startswith("-"):
            if asked.name:
                return None
            asked.name = word
            continue
        option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not equals:
            if not pending:
                return None
            value = pending.pop()
        if not _set(asked, option, value):
            return None
    return asked if asked.name else None


def _set(asked: Asked, option: str, value: str) -> bool:
    if option in ("-n", "--namespace"):
        asked.namespace = value
    elif option == "--state":
        asked.state = value
    elif option == "--minimum-remaining":
        asked.minimum = seconds(value)
        return asked.minimum is not None
    else:
        return False
    return bool(value)


def seconds(text: str) -> float | None:
    """Return the seconds of a duration such as ``5m``, as ``keyferry.spec.durations``; None for anything else."""
    total = 0
    rest = text
    for unit, size in _UNITS:
        number, found, after = rest.partition(unit)
        if found:
            if not (number.isascii() and number.isdigit() and len(number) <= 9):  # noqa: PLR2004 - as the contract has it
                return None
            total += int(number) * size
            rest = after
    return float(total) if text and not rest else None


def is_name(text: str) -> bool:
    """Tell whether a text can be a name, and leads nowhere else as a part of a path."""
    return bool(text) and _NAME.issuperset(text) and not text.startswith(".")


def default_state() -> str:
    """Return the state directory, as ``keyferry.run.settings.default_state``."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111, PTH118 - pathlib costs too much here
    return os.path.join(base, "keyferry")  # noqa: PTH118
