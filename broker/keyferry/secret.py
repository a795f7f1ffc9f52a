"""A value that must never be printed."""

from __future__ import annotations

import hmac
from typing import Final, final

REDACTED: Final = "***"


@final
class SecretValue:
    """A secret text whose every printed form is ``***``.

    ``reveal()`` is the one way to the text, so that a search for it finds every place where a secret leaves.
    Equality is constant-time. Pickling and copying into containers that print (JSON, YAML) are refused by type.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself: for a request, a file or the private state, and for nothing that is printed."""
        return self._text

    def fingerprint(self, key: bytes) -> str:
        """Return a keyed SHA-256 digest (hex), by which two secrets can be told apart without keeping either.

        ``key`` must itself be secret, else a short secret could be guessed from its digest.
        """
        return hmac.digest(key, self._text.encode("utf-8", "surrogatepass"), "sha256").hex()

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretValue):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((SecretValue, self._text))

    def __repr__(self) -> str:
        return f"SecretValue({REDACTED!r})"

    def __str__(self) -> str:
        return REDACTED

    def __format__(self, spec: str) -> str:
        return format(REDACTED, spec)

    def __reduce__(self) -> str:
        raise TypeError("a SecretValue cannot be pickled")
