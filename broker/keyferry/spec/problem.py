"""One mistake in a resource, as people read it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Final

from keyferry.errors import Reason, ResourceError


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where. No field ever holds a value that might be a secret."""

    path: str
    """The field, such as ``spec.grant.password.usernameFrom``; empty where the file or document as a whole is meant."""
    message: str
    """What is wrong with the field, and what would be right; one line, no full stop."""
    reason: Reason = Reason.INVALID_SPEC
    source: str = ""
    """The file that holds the resource; empty where it did not come from one."""
    line: int | None = None
    """The line of the field in the file, counted from 1."""
    resource: str = ""
    """Kind, namespace and name, such as ``ServiceIdentity batch/nightly``, as far as they can be read."""

    def __str__(self) -> str:
        """Render as one line: ``file:line: ServiceIdentity batch/x: spec.foo: message``."""
        where = self.source if self.line is None or not self.source else f"{self.source}:{self.line}"
        if not self.source and self.line is not None:
            where = f"line {self.line}"
        return ": ".join(part for part in (where, self.resource, self.path, self.message) if part)

    def at(self, *, source: str | None = None, line: int | None = None, resource: str | None = None) -> Problem:
        """Return the same problem with its place filled in; what is None stays as it was."""
        return dataclasses.replace(
            self,
            source=self.source if source is None else source,
            line=self.line if line is None else line,
            resource=self.resource if resource is None else resource,
        )

    def as_error(self) -> ResourceError:
        """Return the problem as an exception that the engine can raise."""
        return ResourceError(str(self), reason=self.reason)


_LONGEST_PART: Final = 64
_PLAIN_PART: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_SHOWN_PART: Final = re.compile(r"[A-Za-z0-9_.\-/]+")


_STEP: Final = re.compile(r"\[(?P<index>[0-9]+)\]|\[(?P<quoted>[^\]]*)\]|\.?(?P<name>[^.\[]+)")


def split_path(path: str) -> tuple[str | int, ...]:
    """Take a path that :func:`join_path` wrote apart again."""
    return tuple(
        int(match["index"]) if match["index"] is not None else match["quoted"] or match["name"] or ""
        for match in _STEP.finditer(path)
    )


def join_path(parts: tuple[str | int, ...]) -> str:
    """Write a path as people do: ``("spec", "files", 1, "name")`` is ``spec.files[1].name``.

    Names that come from the file and look like no name (they might be a misplaced secret) are left out as ``[…]``.
    """
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif len(part) > _LONGEST_PART or not _SHOWN_PART.fullmatch(part):
            text += "[…]"
        elif _PLAIN_PART.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part}]"
    return text
