"""Format Token: the raw access token, without a newline, as ``BEARER_TOKEN_FILE`` and most clients want it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.render.given import access_token, file_name

if TYPE_CHECKING:
    from keyferry.render.given import RenderInput
    from keyferry.spec.target import TargetFile


def render_token(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return the one file."""
    return {file_name(file): access_token(file, given).encode("ascii")}
