"""The ``${name}`` templates of the formats Env and Template, parsed once into their parts.

``${access_token}`` stands for a value; ``$${`` is a plain ``${``; any other ``$`` is itself. Parsing needs no value,
so a mistake is found when the resource is read, not when the first token has been paid for.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACEHOLDERS: Final = (
    "access_token",
    "id_token",
    "token_type",
    "issued_at",
    "expires_at",
    "expires_at_unix",
    "scope",
    "issuer",
    "subject",
    "revision",
)
"""Every name that a template may use, in the order of the contract."""

_OPENING: Final = re.compile(r"\$\$\{|\$\{")
_SHOWN_LENGTH: Final = 40


class TemplateError(ValueError):
    """A template cannot be understood; ``line`` is the line inside the template, counted from 1."""

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that stays as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A name that a value takes the place of; always one of :data:`PLACEHOLDERS`."""

    name: str


Part: TypeAlias = Literal | Placeholder


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    parts: tuple[Part, ...]

    @property
    def names(self) -> frozenset[str]:
        """The names that the template uses."""
        return frozenset(part.name for part in self.parts if isinstance(part, Placeholder))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with each placeholder replaced.

        Raises:
            KeyError: ``values`` lacks a name that the template uses.

        """
        return "".join(part.text if isinstance(part, Literal) else values[part.name] for part in self.parts)


@functools.lru_cache(maxsize=4096)
def parse_template(text: str) -> Template:
    """Parse a template; equal texts give the same object.

    Raises:
        TemplateError: a ``${`` is never closed, or names something that is not in :data:`PLACEHOLDERS`.

    """
    parts: list[Part] = []
    literal = ""
    position = 0
    while (match := _OPENING.search(text, position)) is not None:
        literal += text[position : match.start()]
        if match.group() == "$${":
            literal += "${"
            position = match.end()
            continue
        if literal:
            parts.append(Literal(literal))
            literal = ""
        end = text.find("}", match.end())
        line = text.count("\n", 0, match.start()) + 1
        if end < 0:
            raise TemplateError(f"line {line} opens a ${{ that is never closed; a plain ${{ is written $${{", line=line)
        parts.append(_placeholder(text[match.end() : end], line))
        position = end + 1
    literal += text[position:]
    if literal:
        parts.append(Literal(literal))
    return Template(tuple(parts))


def _placeholder(name: str, line: int) -> Placeholder:
    if name in PLACEHOLDERS:
        return Placeholder(name)
    # A long or odd name may be anything that was pasted here, a secret too: it is not repeated.
    shown = f"${{{name}}}" if len(name) <= _SHOWN_LENGTH and name.isidentifier() else "a name"
    close = difflib.get_close_matches(name, PLACEHOLDERS, n=1)
    hint = f"; did you mean ${{{close[0]}}}?" if close else ""
    raise TemplateError(
        f"line {line} uses {shown}, which is not known{hint} (known: {', '.join(PLACEHOLDERS)}; a plain ${{ is "
        "written $${)",
        line=line,
    )
