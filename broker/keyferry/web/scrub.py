"""Replaces secrets in a stream of bytes, also where one lies across two pieces of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_ENTITIES: Final = {b"&": b"&amp;", b"<": b"&lt;", b">": b"&gt;", b'"': b"&quot;", b"'": b"&apos;", b" ": b"+"}
"""How XML, and for the blank a form, may write a character."""


class Scrubber:
    """Feed it the stream piece by piece; ``end`` returns what it still holds back."""

    def __init__(self, replacements: Mapping[str, str]) -> None:
        """Each text is replaced however XML and URLs write it, which differ in what they encode."""
        texts = [text.encode() for text in replacements]
        self._instead = [instead.encode() for instead in replacements.values()]
        self._pattern = re.compile(b"|".join(b"(" + b"".join(_ways(byte) for byte in text) + b")" for text in texts))
        self._held_back = max(len(text) for text in texts) * max(map(len, _ENTITIES.values())) - 1
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """Return what is certain by now."""
        return self._advance(self._rest + piece, keep=self._held_back)

    def end(self) -> bytes:
        """Return the rest."""
        return self._advance(self._rest, keep=0)

    def _advance(self, data: bytes, *, keep: int) -> bytes:
        certain = max(0, len(data) - keep)
        out, position = [], 0
        for match in self._pattern.finditer(data):
            if match.start() >= certain:
                break
            out += [data[position : match.start()], self._instead[(match.lastindex or 1) - 1]]
            position = match.end()
        cut = max(position, certain)
        out.append(data[position:cut])
        self._rest = data[cut:]
        return b"".join(out)


def _ways(byte: int) -> bytes:
    """Return a pattern of all ways to write one byte."""
    character = bytes((byte,))
    ways = [re.escape(character), b"(?i:%%%02x)" % byte]
    if character in _ENTITIES:
        ways.insert(0, re.escape(_ENTITIES[character]))
    return b"(?:" + b"|".join(ways) + b")"
