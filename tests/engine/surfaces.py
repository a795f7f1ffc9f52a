"""All that leaves a broker beside requests and token files, as text to be searched for secrets."""

from __future__ import annotations

import base64
import io
import json
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, quote_plus

from rich.console import Console

from keyferry.errors import KeyferryError
from keyferry.run.json_lines import event_line
from keyferry.run.status_json import status_list
from keyferry.run.table import render
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from tests.engine.world import World
    from tests.support.issuer import FaultIssuer

_OPAQUE = (
    type,
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    FrameType,
    str,
    bytes,
    int,
    float,
    bool,
    type(None),
    SecretValue,
    threading.Thread,
)


class Logs(logging.Handler):
    """Everything that anything logs, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s %(args)r"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        root = logging.getLogger()
        root.removeHandler(self)
        root.setLevel(self._level)


class Raised:
    """The text of every exception that passes through Keyferry's own code, with what caused it."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self._seen: deque[BaseException] = deque(maxlen=200)

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        threading.settrace(self._enter)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._before)
        threading.settrace(None)

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "call" or "/keyferry/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_lines = False
        return self._inside

    def _inside(self, _: FrameType, event: str, detail: Any) -> Any:
        if event == "exception":
            error = detail[1]
            # Every coroutine ends with a StopIteration; what it carries is searched where it ends up.
            if isinstance(error, BaseException) and not isinstance(error, StopIteration | StopAsyncIteration):
                if any(error is seen for seen in self._seen):
                    return self._inside
                self._seen.append(error)
                self.texts.add("".join(traceback.format_exception(error)) + repr(error))
                if isinstance(error, KeyferryError):  # what leaves our code is searched to the bottom
                    self.texts |= {repr(vars(link)) for link in _chain(error)}
        return self._inside


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def representations(root: object) -> Iterator[str]:
    """Yield what every object of Keyferry's prints as, of those that can be reached from one."""
    seen: dict[int, object] = {}
    pending = [root]
    while pending:
        item = pending.pop()
        if isinstance(item, _OPAQUE) or id(item) in seen:
            if isinstance(item, SecretValue):
                yield f"{item!r} {item} {item:>20}"
            continue
        seen[id(item)] = item
        if type(item).__module__.partition(".")[0] == "keyferry":
            yield repr(item)
        if isinstance(item, Mapping):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset | deque):
            pending += item
        else:
            pending += vars(item).values() if hasattr(item, "__dict__") else ()
            for kind in type(item).__mro__:
                slots = vars(kind).get("__slots__", ())
                pending += [getattr(item, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]


def shown(world: World) -> Iterator[str]:
    """Yield what people were told: statuses, events, JSON lines, the table."""
    now = world.clock.now()
    for event in world.told.events:
        yield f"{event!r} {event_line(event)}"
    for status in world.told.statuses:
        yield repr(status)
    assert world.running is not None
    statuses = world.running.engine.statuses()
    yield json.dumps(status_list(statuses, now))
    console = Console(file=io.StringIO(), width=2_000, record=True)
    console.print(render(statuses, now, width=2_000, wide=True))
    yield console.export_text()
    yield from (str(problem) for problem in world.running.problems)


def files(directory: Path, *, without: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the files below a directory, but those whose first part is in `without`."""
    for path in directory.rglob("*"):
        relative = path.relative_to(directory)
        if relative.parts[0] not in without:
            yield str(relative)
            if path.is_file():
                yield path.read_bytes().decode("utf-8", "replace")


def secrets_of(issuer: FaultIssuer) -> set[str]:
    """Return all credentials that the issuer handed out or was shown."""
    found = {token.value for token in issuer.issued} | {spend.token for spend in issuer.spends}
    for request in issuer.requests:
        for name in (
            "client_secret",
            "password",
            "assertion",
            "client_assertion",
            "refresh_token",
            "subject_token",
            "actor_token",
            "token",
        ):
            if request.parameters.get(name):
                found.add(request.parameters[name])
    return found


def forms(secret: str) -> set[str]:
    """Return the secret as it may look in a log: as it is, escaped, encoded, or cut short at either end."""
    found = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }
    for text in (secret, quote_plus(secret)):
        for before in (b"", b"x", b"xx"):
            # The three ways in which base64 can fall around it, without the ends that depend on the neighbours.
            encoded = base64.b64encode(before + text.encode()).decode().rstrip("=")
            found.add(encoded[4 if before else 0 : -2])
    if not secret.startswith("eyJ"):
        found.add(secret[:12])
    found.add(secret[-12:])
    return {form for form in found if len(form) >= 8}


def leaks(texts: Iterator[str], secrets: set[str]) -> set[str]:
    """Return the texts (shortened) in which a secret is found."""
    everything = list(texts)
    whole = "\n".join(everything)
    return {
        text[:300]
        for secret in secrets
        for form in forms(secret)
        if form in whole
        for text in everything
        if form in text
    }
