"""Format Env: ``NAME='value'`` lines that a POSIX shell and the kubelet read alike.

The kubelet's env files (``fileKeyRef``, KEP-3721) are the subset of shell assignments whose values stand in single
quotes and mean what they say; there is no way to write a single quote in them. Docker Compose, systemd and the usual
dotenv libraries read these lines the same way; ``docker run --env-file`` alone keeps the quotes as part of the value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from keyferry.errors import PublishError, Reason, ResourceError, RetryClass
from keyferry.render.given import described, file_name
from keyferry.render.template import fill

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.render.given import RenderInput
    from keyferry.spec.target import TargetFile

DEFAULT_VARIABLES: Final = {"BEARER_TOKEN": "${access_token}"}
"""What is written where the resource names no variables."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def render_env(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return the one file, its variables in the order of the resource."""
    variables = file.variables or DEFAULT_VARIABLES
    values = {name: fill(template, file, given) for name, template in variables.items()}
    return {file_name(file): env_lines(values, file)}


def env_lines(values: Mapping[str, str], file: TargetFile) -> bytes:
    """Return the lines in UTF-8; raise where a name or value cannot be written so that every reader agrees on it."""
    lines = [_line(name, value, file) for name, value in values.items()]
    return "".join(lines).encode()


def _line(name: str, value: str, file: TargetFile) -> str:
    if not _NAME.fullmatch(name):
        raise ResourceError(
            f"{described(file)}: {name!r} cannot name an environment variable."
            " Use letters, digits and underscores, not beginning with a digit."
        )
    if "'" in value or any(character < " " or character == "\x7f" for character in value):
        raise PublishError(
            f"{described(file)}: the value of {name} holds a single quote, a line end or another control character,"
            " which an env file cannot carry. The file that was published before stays. Use format Token or Json.",
            reason=Reason.INVALID_SPEC,
            retry=RetryClass.NEEDS_CONFIGURATION,
        )
    return f"{name}='{value}'\n"
