"""Format Json: one object with the token and what is known of it; times are RFC 3339 in UTC."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from keyferry.render.given import access_token, file_name, timestamp

if TYPE_CHECKING:
    from keyferry.render.given import RenderInput
    from keyferry.spec.target import TargetFile


def render_json(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return the one file, indented, in UTF-8, ending in a newline."""
    token = given.token
    content = {
        "access_token": access_token(file, given),
        "token_type": token.token_type,
        "issued_at": timestamp(token.issued_at),
        "expires_at": timestamp(token.expires_at),
        "scope": token.scope,
        "revision": given.revision,
    }
    # Escaping what is not ASCII keeps the file valid UTF-8 even for a lone surrogate out of a provider's JSON.
    return {file_name(file): (json.dumps(content, indent=2) + "\n").encode("ascii")}
