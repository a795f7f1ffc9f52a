"""Reading what a provider answers: JSON that may be anything, and text that people are shown."""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote, quote_plus, urlsplit

if TYPE_CHECKING:
    from keyferry.secret import SecretValue

Document: TypeAlias = Mapping[str, object]
"""A JSON object from outside: nothing about its values is known."""

LONGEST_SHOWN: Final = 200
"""Characters of a provider's text that a message may hold."""

_VSCHAR: Final = re.compile(r"[\x20-\x7e]+")
_DECIMAL: Final = re.compile(r"\s*[+-]?[0-9]+(\.[0-9]*)?\s*")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f]+")
_NOT_ASCII: Final = re.compile(r"[^\x20-\x7e]")
_LONGEST_WORD: Final = 40
_LONGEST_MIXED_WORD: Final = 16


def read_object(body: bytes) -> Document | None:
    """Return the JSON object in ``body``, or None where it is anything else (an array, HTML, half an answer)."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def seconds(value: object) -> float | None:
    """Read a number of seconds that servers write as a number or as text (RFC 6749 5.1 wants a number).

    None stands for what is no number (a boolean, NaN, text); infinities are kept, for the caller to cap.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond what a float holds
        return math.inf if isinstance(value, int) and value > 0 else -math.inf
    return None if math.isnan(number) else number


def is_vschar(text: object) -> bool:
    """Tell whether ``text`` is a non-empty string of RFC 6749's VSCHAR, as tokens are (appendix A.12, A.17)."""
    return isinstance(text, str) and _VSCHAR.fullmatch(text) is not None


def is_sendable(text: object) -> bool:
    """Tell whether ``text`` is a non-empty string that UTF-8 can carry: JSON can smuggle in lone surrogates."""
    if not isinstance(text, str) or not text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def strings(value: object) -> tuple[str, ...]:
    """Return the strings in a JSON array; nothing where it is no array."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def shown(text: object, *, secrets: Iterable[SecretValue | None] = (), limit: int = LONGEST_SHOWN) -> str:
    """Return ``text`` as a message may hold it: printable ASCII, at most ``limit`` characters, nothing secret.

    Servers echo what they were sent. So our own ``secrets`` are cut out, also as they look in a request, and so is each
    word that looks like a token: longer than 40 characters, or longer than 16 and made of letters and digits both.
    """
    if not isinstance(text, str):
        return ""
    for secret in secrets:
        for form in _forms(secret):
            text = text.replace(form, " … ")
    words = (_shown_word(word) for word in _UNPRINTABLE.split(text[: 50 * limit]))
    line = " ".join(word for word in words if word)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _forms(secret: SecretValue | None) -> set[str]:
    """Return what a secret looks like as it is, in a form, in a URL, and in base64."""
    if not secret:
        return set()
    value = secret.reveal()
    raw = value.encode("utf-8", "replace")
    return {value, quote_plus(raw), quote(raw, safe=""), base64.b64encode(raw).decode().rstrip("=")}


def _shown_word(word: str) -> str:
    if word == "…":
        return word
    mixed = any(sign.isdigit() for sign in word) and any(sign.isalpha() for sign in word)
    if len(word) > (_LONGEST_MIXED_WORD if mixed else _LONGEST_WORD):
        return "…"
    return _NOT_ASCII.sub("?", word)


@functools.lru_cache(maxsize=256)  # a handful of endpoints, asked for at each exchange
def host_of(url: str) -> str:
    """Return ``host`` or ``host:port`` of a URL, lower case, the scheme's default port left out; '' if it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not host:
        return ""
    if ":" in host:
        host = f"[{host}]"
    default = {"https": 443, "http": 80}.get(parts.scheme.lower())
    return host if port is None or port == default else f"{host}:{port}"
