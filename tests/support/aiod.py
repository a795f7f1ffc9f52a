"""The unmodified AI-on-Demand client, in a virtual environment of its own, and its REST API as far as tokens go."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.support.servers import environment_with, problem_with
from tests.support.web_thread import OwnedHandler, WebThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

VERSION = "0.3.1"


def problem() -> str | None:
    """Say in one line why the client cannot run here, or None. Installs it if that was not done yet."""
    return problem_with(install)


def install() -> Path:
    """Return the Python of the virtual environment that the client is installed in."""
    return environment_with("aiondemand", VERSION)


class AiodApi(WebThread):
    """Answers ``authorization_test`` as the AI-on-Demand API does; ``with`` starts and ends it.

    ``introspect`` says of a token whether it is ``active``, and whose.
    """

    def __init__(self, introspect: Callable[[str], Mapping[str, Any]]) -> None:
        self.introspect = introspect
        self.accepted: list[str] = []
        """The tokens that were good, in order."""
        self.refused: list[str] = []
        super().__init__(_Handler)

    @property
    def url(self) -> str:
        """Base URL, with the slash at the end that the client needs."""
        return f"{self.address}/"


class _Handler(OwnedHandler[AiodApi], BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        api = self.owner
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        found = api.introspect(token) if self.path == "/authorization_test" and token else {}
        good = found.get("active") is True
        (api.accepted if good else api.refused).append(token)
        body = {"name": found.get("username", ""), "roles": []} if good else {"detail": "not authenticated"}
        content = json.dumps(body).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
