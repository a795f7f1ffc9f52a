"""``--watch``: a live table on a terminal; elsewhere a line, or an object, for each change."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import typer

from keyferry.cli.options import complain
from keyferry.run.table import LiveTable, clean, relative
from keyferry_operator.client import IDENTITIES
from keyferry_operator.kubectl.api import RefusedError
from keyferry_operator.kubectl.status_command import bare, gather
from keyferry_operator.kubectl.statuses import key_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keyferry.model import ObjectKey
    from keyferry_operator.client import Object
    from keyferry_operator.kubectl.api import Api

FRAME: Final = 1.0
PAUSE: Final = 2.0
"""Seconds until the API server is asked again after it could not be reached."""


def follow(api: Api, scope: str | None, names: Sequence[str], output: str) -> None:
    """Show identities as they change, until interrupted. Raises CommandError where they may not be read at all."""
    gather(api, scope, names)
    changes = _Changes(api, scope, frozenset(names))
    if not output and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        _draw(api, changes)
    for gone, body in changes:
        if output in {"json", "yaml"}:
            _print_object(body, yaml=output == "yaml")
        else:
            typer.echo(_line(body, api.now(), gone=gone))


def _draw(api: Api, changes: _Changes) -> None:
    """Keep a table on the terminal; its times are relative, so it is drawn each second."""
    news: queue.SimpleQueue[tuple[bool, Object]] = queue.SimpleQueue()

    def read() -> None:
        for change in changes:
            news.put(change)

    threading.Thread(target=read, name="keyferry-watch", daemon=True).start()
    table = LiveTable()
    shown: dict[ObjectKey, Object] = {}
    try:
        while True:
            while not news.empty():
                gone, body = news.get()
                if gone:
                    shown.pop(key_of(body), None)
                else:
                    shown[key_of(body)] = body
            table.show([status_of(shown[key]) for key in sorted(shown)], api.now())
            time.sleep(FRAME)
    finally:
        table.close()


class _Changes:
    """Every identity once, and then each change: (whether it is gone, the identity). Goes on after interruptions."""

    def __init__(self, api: Api, scope: str | None, names: frozenset[str]) -> None:
        self._api = api
        self._scope = scope
        self._names = names
        self._known: dict[ObjectKey, Object] = {}

    def __iter__(self) -> Iterator[tuple[bool, Object]]:
        while True:
            try:
                version, bodies = self._api.items(IDENTITIES, self._scope)
                yield from self._compare(bodies)
                yield from self._stream(version)
            except RefusedError as error:
                complain(f"{error.message}; trying again")
                time.sleep(PAUSE)

    def _compare(self, bodies: Sequence[Object]) -> Iterator[tuple[bool, Object]]:
        there = {key_of(body) for body in bodies}
        for key in [key for key in self._known if key not in there]:
            yield True, self._known.pop(key)
        for body in bodies:
            yield from self._take(body)

    def _stream(self, version: str) -> Iterator[tuple[bool, Object]]:
        for event in self._api.watch(IDENTITIES, self._scope, version):
            body = event.get("object") or {}
            if event.get("type") == "ERROR":
                return  # the version is too old: list again
            if event.get("type") == "DELETED":
                if self._known.pop(key_of(body), None) is not None:
                    yield True, body
            else:
                yield from self._take(body)

    def _take(self, body: Object) -> Iterator[tuple[bool, Object]]:
        key = key_of(body)
        if self._names and key.name not in self._names:
            return
        before = self._known.get(key)
        self._known[key] = body
        if before is None or before["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            yield False, body


def _line(body: Object, now: float, *, gone: bool) -> str:
    status = status_of(body)
    if gone:
        return f"{status.key}: gone"
    text = f"{status.key}: {status.state(now).value}, {status.shown_reason(now).value}"
    if status.revision:
        text += f", revision {status.revision}, expires {relative(status.expiration_time, now)}"
    return clean(f"{text}: {status.message}" if status.retry is not None else text)


def _print_object(body: Object, *, yaml: bool) -> None:
    if yaml:
        from yaml import safe_dump  # noqa: PLC0415 - only where it is wanted

        typer.echo("---\n" + safe_dump(bare(body), sort_keys=False, allow_unicode=True), nl=False)
    else:
        typer.echo(json.dumps(bare(body), ensure_ascii=False))
    sys.stdout.flush()
