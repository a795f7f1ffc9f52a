"""Asks the broker API: each request with the pod's token as it is in its file now, on connections that are kept."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from keyferry import __version__
from keyferry.errors import CredentialError, KeyferryError
from keyferry.io.files import read_at_most
from keyferry.io.tls import TlsSettings, build_context
from keyferry.model import ObjectKey
from keyferry.sidecar.connection import Answer, BrokenAnswerError, Connection
from keyferry.spec.durations import format_duration
from keyferry.wire import LONGEST_WAIT, HeldReport, Malformed, Problem, ProblemReason, TokenAnswer, identity_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATIENCE: Final = 15.0
"""Seconds that an answer may take, beyond the time that it is held."""
IDLE: Final = 10.0
"""Seconds for which a connection that nothing is asked on is kept."""
PLACES: Final = 4
"""Connections that a request is tried on where the broker says that another replica is to be asked."""
MOST_IDLE: Final = 4

_NOT_NOW: Final = frozenset({ProblemReason.MISDIRECTED, ProblemReason.TOO_MANY_REQUESTS, ProblemReason.UNAVAILABLE})
"""Answers that tell nothing of the identity."""
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_ETAG: Final = re.compile(r'(W/)?"[!#-~]{0,256}"')
_TOKEN: Final = re.compile(r"[!-~]{1,65536}")


class BrokerAwayError(KeyferryError):
    """There is no good answer just now: not reached, overloaded, or it made no sense."""

    def __init__(self, message: str, *, problem: Problem | None = None, retry_after: float = 0.0) -> None:
        """``problem`` is what the broker says, where it said anything; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.problem = problem
        self.retry_after = retry_after


class BrokerRefusedError(KeyferryError):
    """The broker answered, and the answer is no."""

    def __init__(self, problem: Problem, *, retry_after: float = 0.0) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Fetched:
    """The answer to a question for a token."""

    token: TokenAnswer | None
    """None where nothing changed."""
    etag: str
    leaving: bool
    """The replica closed the connection after it."""


class BrokerClient:
    """The connections of one pod to the broker; construct it anywhere, use it in one event loop.

    Its methods raise BrokerAwayError and BrokerRefusedError.
    """

    def __init__(self, url: str, authorities: Path | None, token: Path, namespace: str) -> None:
        """Take the broker's CA bundle (None: the system's) and the pod's token as files, which are read when needed.

        Raises ValueError for a URL that is none.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("the broker's URL must be https://HOST[:PORT]")
        self._host, self._port = parts.hostname, parts.port or 443
        self._authority = parts.netloc.rpartition("@")[2]
        self._authorities, self._token, self._namespace = authorities, token, namespace
        self._context: tuple[object, ssl.SSLContext] | None = None
        self._idle: list[tuple[float, Connection]] = []

    async def token(self, name: str, *, etag: str = "", wait: int = 0, minimum: float = 0.0) -> Fetched:
        """Return the current token of an identity.

        The broker answers when there is one, and another than that of ``etag``; and in any case after ``wait`` seconds.
        ``minimum`` is for how many seconds it must be good.
        """
        headers = {"If-None-Match": etag} if etag else {}
        wait = min(wait, LONGEST_WAIT)
        if wait:
            headers["Prefer"] = f"wait={wait}"
        query = f"?minimum_remaining={format_duration(minimum)}" if minimum > 0 else ""
        answer = await self._ask("GET", f"{self._path(name)}/token{query}", headers, patience=wait + PATIENCE)
        if answer.status == HTTPStatus.NOT_MODIFIED:
            return Fetched(None, etag, answer.last)
        given = answer.headers.get("etag", "")
        return Fetched(_decoded(answer), given if _ETAG.fullmatch(given) else "", answer.last)

    async def report(self, name: str, held: HeldReport) -> None:
        """Tell that a revision is written."""
        await self._ask("POST", f"{self._path(name)}/held", {}, held.to_json())

    async def labarchives(self, name: str, what: str, body: Mapping[str, Any] | None = None) -> object:
        """Ask for ``signature``, ``user``, ``clock`` or ``refused``; return what the answer holds, None for nothing."""
        answer = await self._ask("POST", f"{self._path(name)}/labarchives/{what}", {}, dict(body or {}))
        return _parsed(answer.body) if answer.body else None

    def close(self) -> None:
        """Close what is kept; requests under way have connections of their own."""
        while self._idle:
            self._idle.pop()[1].close()

    def _path(self, name: str) -> str:
        return identity_path(ObjectKey(self._namespace, name))

    async def _ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        *,
        patience: float = PATIENCE,
    ) -> Answer:
        request = self._request(method, target, headers, body)
        try:
            answer = await self._send(request, patience)
        except CredentialError as error:
            raise BrokerAwayError(f"the broker's authorities ({self._authorities}): {error.message}") from None
        except (OSError, ssl.CertificateError) as error:
            raise BrokerAwayError(f"the broker at {self._authority} cannot be reached: {_why(error)}") from None
        if answer.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            return answer
        raise _refusal(answer)

    async def _send(self, request: bytes, patience: float) -> Answer:
        """Send a request to a replica that will take it, and keep the connection."""
        asked: set[str] = set()
        while True:
            connection = (None if asked else self._kept()) or await self._connect(asked)
            try:
                answer = await self._once(connection, request, patience)
            except BaseException:
                connection.close()
                raise
            if answer is None:
                continue  # it was closed while it was kept; all that we ask may be asked twice
            if answer.status == HTTPStatus.MISDIRECTED_REQUEST and len(asked) < PLACES:
                connection.close()
                asked.add(connection.address if connection.address not in asked else f"again {len(asked)}")
                continue
            self._keep(connection, answer)
            return answer

    @staticmethod
    async def _once(connection: Connection, request: bytes, patience: float) -> Answer | None:
        used = connection.used
        try:
            return await connection.ask(request, patience=patience)
        except BrokenAnswerError:
            raise
        except OSError as error:
            if used and isinstance(error, ConnectionError | ssl.SSLError):
                connection.close()
                return None
            raise

    async def _connect(self, asked: set[str]) -> Connection:
        """Open a connection, to an address that was not asked yet if there is one."""
        context = self._trust()
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=1)  # SOCK_STREAM
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        random.shuffle(addresses)
        addresses.sort(key=asked.__contains__)
        failure: OSError = OSError("the name has no address")
        for address in addresses:
            try:
                return await Connection.open(address, self._port, context, self._host)
            except OSError as error:
                failure = error
        raise failure

    def _kept(self) -> Connection | None:
        now = time.monotonic()
        while self._idle:
            since, connection = self._idle.pop()
            if connection.idle and now - since < IDLE:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection, answer: Answer) -> None:
        if answer.last or len(self._idle) >= MOST_IDLE:
            connection.close()
        else:
            self._idle.append((time.monotonic(), connection))

    def _trust(self) -> ssl.SSLContext:
        """Return the TLS context for the authorities as their file is now. Raises OSError, CredentialError."""
        if self._authorities is None:
            state: object = None
        else:
            status = self._authorities.stat()  # a ConfigMap's files are links: what they lead to is what changes
            state = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
        if self._context is None or self._context[0] != state:
            bundle = None if self._authorities is None else self._authorities.read_text("utf-8", "replace")
            self._context = state, build_context(TlsSettings(bundle))
        return self._context[1]

    def _request(self, method: str, target: str, headers: Mapping[str, str], body: Mapping[str, Any] | None) -> bytes:
        lines = {
            "Host": self._authority,
            "User-Agent": f"keyferry-sidecar/{__version__}",
            "Accept": "application/json, application/problem+json",
            "Authorization": f"Bearer {self._presented()}",
            **headers,
        }
        content = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            lines |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("ascii") + content

    def _presented(self) -> str:
        """Return the pod's own token; the kubelet replaces it long before it lapses."""
        try:
            with self._token.open("rb") as file:
                text = read_at_most(file.fileno(), 1 << 17).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BrokerAwayError(f"this pod's own token ({self._token}) cannot be read: {_why(error)}") from None
        if not _TOKEN.fullmatch(text):
            raise BrokerAwayError(f"this pod's own token ({self._token}) is empty or no token")
        return text


def _decoded(answer: Answer) -> TokenAnswer:
    try:
        token = TokenAnswer.from_json(_parsed(answer.body))
        for file in token.files:
            file.content.reveal().encode()
    except Malformed as error:
        raise BrokerAwayError(f"the broker's answer cannot be understood: {error}") from None
    except UnicodeEncodeError:
        # JSON can say half a character (RFC 8259 8.2), which no file can hold.
        raise BrokerAwayError("the broker's answer cannot be understood: a file is no text") from None
    return token


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BrokerAwayError("the broker's answer cannot be understood: it is no JSON") from None


def _refusal(answer: Answer) -> KeyferryError:
    """Return the error that an answer other than the wanted one is."""
    text = answer.headers.get("retry-after", "")
    wait = min(float(text), 3600.0) if _SECONDS.fullmatch(text) else 0.0
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    problem = Problem.from_json(body, answer.status)
    odd = not HTTPStatus.BAD_REQUEST <= answer.status < 600  # noqa: PLR2004 - no such status is defined
    if odd or problem.reason in _NOT_NOW:
        return BrokerAwayError(problem.detail, problem=problem, retry_after=wait)
    return BrokerRefusedError(problem, retry_after=wait)


def _why(error: Exception) -> str:
    """Say what went wrong without what came over the line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({(error.reason or 'unknown').lower().replace('_', ' ')})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return type(error).__name__
