"""The control socket ``STATE/control.sock``: a working broker answers the other commands of the same user.

One JSON object a line asks, one answers. Nothing that passes here is a token: whoever asks reads that in the private
state, which is open to the same user only. What a signed LabArchives call needs does pass (``keyferry.run.signing``).
The socket lies in a directory of mode 0700, has mode 0600 itself, and the other side's user is asked of the kernel
(SO_PEERCRED, unix(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Self, final

from keyferry import __version__
from keyferry.errors import KeyferryError, StoreUnavailable
from keyferry.model import ObjectKey
from keyferry.run import signing
from keyferry.run.requests import Answer, Outcome, login, renew, want
from keyferry.run.status_json import decode_status, encode_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from keyferry.run.broker import LocalBroker

SOCKET_NAME: Final = "control.sock"
LONGEST_REQUEST: Final = 4096
LONGEST_ANSWER: Final = 64 << 20
CONNECTIONS: Final = 64
IDLE: Final = 30.0
"""Seconds after which a connection without a request, or that does not take its answer, is closed."""
LONGEST_WAIT: Final = 300.0
"""Seconds that one request may wait for its outcome."""
LONGEST_PATH: Final = 107
"""Bytes of the address of a Unix socket (unix(7)), less the final zero."""
SLACK: Final = 10.0
"""Seconds that a client allows beyond what the broker may wait."""
LONGEST_CALL: Final = 60.0
"""Seconds in which LabArchives must have been asked."""

_CREDENTIALS: Final = struct.Struct("3i")


class NobodyAnswersError(KeyferryError):
    """No broker answers on the control socket."""


@final
class ControlServer:
    """Answers on the socket while in ``async with``.

    The broker holds the state's lock, which proves that a socket which is there already is stale.
    """

    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker
        self._state = broker.settings.state
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            listener = _listen(self._state)
        except OSError as error:
            raise StoreUnavailable(
                f"Cannot listen on {self._state / SOCKET_NAME}: {os.strerror(error.errno or 0)}."
                " Look at the free space, the owner and the mode of that directory."
            ) from error
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._listener.close()
        with contextlib.suppress(OSError):
            (self._state / SOCKET_NAME).unlink()

    def _accept(self) -> None:
        # Not asyncio's own server: before Python 3.13 it cannot be closed with the connections that it has accepted.
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the other side gave up, or too many files are open: it is tried again
        connection.setblocking(False)
        if len(self._connections) >= CONNECTIONS or not _is_ours(connection):
            connection.close()
            return
        task = asyncio.create_task(self._serve(connection), name="control")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _task: connection.close())

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST_REQUEST)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.LimitOverrunError):
            pass  # the other side is gone, stuck, or does not speak this protocol
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line = await asyncio.wait_for(reader.readline(), IDLE)
            if not line:
                return
            answer = await self._answer(line)
            writer.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), IDLE)

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            operation = _OPERATIONS[request["op"]]
            return {"ok": True, **await operation(self._broker, request)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {"ok": False, "error": f"not a request that keyferry {__version__} understands"}
        except KeyferryError as error:
            return {"ok": False, "error": error.message}


async def _status(broker: LocalBroker, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - has no options
    return {"selective": broker.selective, "identities": [encode_status(status) for status in broker.engine.statuses()]}


async def _want(broker: LocalBroker, request: dict[str, Any]) -> dict[str, Any]:
    minimum = request.get("minimumRemaining")
    answer = await want(broker, _key(request), None if minimum is None else float(minimum), _patience(request))
    return encode_answer(answer)


async def _renew(broker: LocalBroker, request: dict[str, Any]) -> dict[str, Any]:
    return encode_answer(await renew(broker, _key(request), _patience(request)))


async def _login(broker: LocalBroker, request: dict[str, Any]) -> dict[str, Any]:
    begin = request.get("begin") is True
    return encode_answer(await login(broker, _key(request), _patience(request), begin=begin))


async def _place(broker: LocalBroker, request: dict[str, Any]) -> dict[str, Any]:
    key = _key(request)
    return place(broker, key) if await broker.include(key) else {"directory": None, "files": []}


async def _labarchives(broker: LocalBroker, request: dict[str, Any]) -> dict[str, Any]:
    return await signing.answer(broker, _key(request), signing.Call(request["call"]), str(request.get("method", "")))


_OPERATIONS: Final[dict[str, Callable[[LocalBroker, dict[str, Any]], Awaitable[dict[str, Any]]]]] = {
    "status": _status,
    "want": _want,
    "renew": _renew,
    "login": _login,
    "place": _place,
    "labarchives": _labarchives,
}


def place(broker: LocalBroker, key: ObjectKey) -> dict[str, Any]:
    """Return where an identity's files are and of which formats. Raises KeyError for one that is not declared."""
    files = broker.engine.roster.entries[key].resource.spec.target.files
    return {
        "directory": str(broker.directory(key).absolute()),
        "files": [
            {"format": file.format.value, "name": file.name}
            | ({"apiServer": file.api_server} if file.api_server is not None else {})
            for file in files
        ],
    }


def encode_answer(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON-ready values."""
    status = encode_status(answer.status) if answer.status is not None else None
    return {"outcome": answer.outcome.value, "message": answer.message, "wait": answer.wait, "status": status}


def decode_answer(data: dict[str, Any]) -> Answer:
    """Return what ``encode_answer`` made. Raises KeyError, TypeError or ValueError."""
    status = decode_status(data["status"]) if data["status"] is not None else None
    return Answer(Outcome(data["outcome"]), str(data["message"]), float(data["wait"]), status)


@final
class ControlClient:
    """Asks a working broker; blocks. Use it in ``with``; one request at a time."""

    def __init__(self, state: Path, *, patience: float = SLACK) -> None:
        """Connect. Raises NobodyAnswersError."""
        self._state = state
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(patience)
        try:
            with _address(state) as address:
                self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise NobodyAnswersError(f"no keyferry answers at {state / SOCKET_NAME}") from error
        if not _is_ours(self._socket):
            self._socket.close()
            raise NobodyAnswersError(f"{state / SOCKET_NAME} belongs to another user")
        self._file = self._socket.makefile("rb")

    def statuses(self) -> dict[str, Any]:
        """Return whether the broker works on some identities only (``selective``), and their encoded ``identities``."""
        return self._ask({"op": "status"}, SLACK)

    def want(self, key: ObjectKey, minimum: float | None, patience: float) -> Answer:
        """Ask for a token that lives long enough, and wait for it. Raises NobodyAnswersError."""
        return self._outcome({"op": "want", "minimumRemaining": minimum}, key, patience)

    def renew(self, key: ObjectKey, patience: float) -> Answer:
        """Ask for a renewal, and wait for it. Raises NobodyAnswersError."""
        return self._outcome({"op": "renew"}, key, patience)

    def login(self, key: ObjectKey, patience: float, *, begin: bool) -> Answer:
        """Have a person asked, or wait for what they say, as ``requests.login``. Raises NobodyAnswersError."""
        return self._outcome({"op": "login", "begin": begin}, key, patience)

    def place(self, key: ObjectKey) -> dict[str, Any]:
        """Return where an identity's files are, as ``place`` does. Raises NobodyAnswersError."""
        return self._ask({"op": "place", "namespace": key.namespace, "name": key.name}, SLACK)

    def labarchives(self, key: ObjectKey, call: signing.Call, method: str) -> dict[str, Any]:
        """Return what ``signing.answer`` does. Raises NobodyAnswersError."""
        request = {"op": "labarchives", "namespace": key.namespace, "name": key.name, "call": call, "method": method}
        return self._ask(request, LONGEST_CALL)

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def _outcome(self, request: dict[str, Any], key: ObjectKey, patience: float) -> Answer:
        patience = min(patience, LONGEST_WAIT)
        request |= {"namespace": key.namespace, "name": key.name, "timeout": patience}
        data = self._ask(request, patience + SLACK)
        try:
            return decode_answer(data)
        except (KeyError, TypeError, ValueError) as error:
            raise NobodyAnswersError("what answers on the control socket is of another version") from error

    def _ask(self, request: dict[str, Any], patience: float) -> dict[str, Any]:
        self._socket.settimeout(patience)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._file.readline(LONGEST_ANSWER)
            answer = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError) as error:
            raise NobodyAnswersError(f"the keyferry at {self._state} stopped answering") from error
        if not isinstance(answer, dict):
            raise NobodyAnswersError(f"the keyferry at {self._state} hung up: it is stopping, or busy")
        if answer.get("ok") is not True:
            raise NobodyAnswersError(f"the keyferry at {self._state} says: {answer.get('error')}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _listen(state: Path) -> socket.socket:
    (state / SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with _address(state) as address:
            listener.bind(address)
        (state / SOCKET_NAME).chmod(0o600)
        listener.listen(CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _address(state: Path) -> Iterator[str]:
    """Yield the socket's address: by way of an open directory where the path is longer than the kernel takes."""
    path = str(state / SOCKET_NAME)
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield path
        return
    directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)


def _is_ours(connection: socket.socket) -> bool:
    """Tell whether the other side is a process of our own user, as the kernel vouches."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return False
    return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())


def _key(request: dict[str, Any]) -> ObjectKey:
    namespace, name = request["namespace"], request["name"]
    if not isinstance(namespace, str) or not isinstance(name, str):
        raise TypeError
    return ObjectKey(namespace, name)


def _patience(request: dict[str, Any]) -> float:
    return min(max(float(request.get("timeout", IDLE)), 0.0), LONGEST_WAIT)
