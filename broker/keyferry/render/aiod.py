"""Format AIoD: the two files of an unmodified AI-on-Demand client (aiondemand 0.3), which it reads once, at import.

At an endpoint, the client has a placeholder as its refresh token and asks the endpoint for an access token whenever its
last one has lapsed. Without one, it has the access token itself and a refresh token that is none: good for a job that
is shorter than the token, and for nothing after it.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keyferry.render.given import Delivery, access_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.render.given import Endpoint, RenderInput
    from keyferry.spec.target import TargetFile

FOLDER: Final = ".aiod"
CONFIG_FILE: Final = "config.toml"
TOKEN_FILE: Final = "token.toml"  # noqa: S105 - a file name
MANAGED: Final = "managed-by-keyferry"
LONGEST: Final = 86399.0
"""Seconds until expiry that the client can tell: it drops whole days."""
COMMENT: Final = "# Written by Keyferry.\n"

_REALM: Final = re.compile(r"(?P<server>https?://.+/)realms/(?P<realm>[^/]+)/?")


def render_aiod(file: TargetFile, given: RenderInput) -> dict[str, bytes]:
    """Return both files, in the folder that the client wants in its home directory where folders can be."""
    token = access_token(file, given)
    folder = f"{FOLDER}/" if given.delivery is Delivery.DIRECTORY else ""
    if given.endpoint is not None:
        return {f"{folder}{name}": data for name, data in aiod_files(given.endpoint, file.api_server).items()}
    expires = min(given.token.expires_at, given.token.issued_at + LONGEST)
    credentials = {
        "refresh_token": MANAGED,
        "access_token": token,
        "expiration_date": datetime.fromtimestamp(math.floor(expires), UTC).isoformat(),
    }
    found = _REALM.fullmatch(given.token.issuer or given.provider_url)
    server = {"auth_server": found["server"], "realm": found["realm"]} if found is not None else {}
    return {
        f"{folder}{CONFIG_FILE}": _toml({**_api(file.api_server), **server}),
        f"{folder}{TOKEN_FILE}": _toml(credentials),
    }


def aiod_files(endpoint: Endpoint, api_server: str | None) -> Mapping[str, bytes]:
    """Return both files for a client that gets its tokens at an endpoint."""
    return {
        CONFIG_FILE: _toml({**_api(api_server), "auth_server": f"{endpoint.url}/"}),
        TOKEN_FILE: _toml({"refresh_token": endpoint.placeholder.reveal()}),
    }


def _api(api_server: str | None) -> Mapping[str, str]:
    # The client joins paths to it as it is.
    return {"api_server": f"{api_server.rstrip('/')}/"} if api_server else {}


def _toml(values: Mapping[str, str]) -> bytes:
    """Write basic strings (TOML 1.0), whose escapes are those of JSON."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
    return (COMMENT + "".join(lines)).encode("ascii")
