"""The unmodified AI-on-Demand client, in a virtual environment of its own, and its REST API as far as tokens go."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from tests.support.servers import InstallError, install_once, run_installer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

VERSION = "0.3.1"


def problem() -> str | None:
    """Say in one line why the client cannot run here, or None. Installs it if that was not done yet."""
    try:
        install()
    except InstallError as error:
        return str(error)
    return None


def install() -> Path:
    """Return the Python of the virtual environment that the client is installed in."""
    name = f"aiondemand-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    return install_once(name, _install) / "bin" / "python"


def _install(target: Path) -> None:
    run_installer([sys.executable, "-m", "venv", target], what="making a virtual environment for aiondemand")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"aiondemand=={VERSION}"]
    run_installer([target / "bin" / "python", *pip], what=f"installing aiondemand {VERSION} with pip")


class AiodApi:
    """Answers ``authorization_test`` as the AI-on-Demand API does; ``with`` starts and ends it.

    ``introspect`` says of a token whether it is ``active``, and whose.
    """

    def __init__(self, introspect: Callable[[str], Mapping[str, Any]]) -> None:
        self.introspect = introspect
        self.accepted: list[str] = []
        """The tokens that were good, in order."""
        self.refused: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Base URL, with the slash at the end that the client needs."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    api: AiodApi


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        api = self.server.api
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

    def log_message(self, *_: object) -> None:
        """Stay silent."""
