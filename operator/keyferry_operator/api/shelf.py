"""What is handed out of each identity just now: made once for all who ask, and again when there is news."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, final

from keyferry.engine.outlet import HandedOut, Place
from keyferry.errors import KeyferryError, Reason
from keyferry.render import Delivery, Endpoint
from keyferry.secret import SecretValue
from keyferry.web.presented import ACCESS_KEY_ID
from keyferry.wire import ENDPOINT_MARKER, PLACEHOLDER_MARKER, ROOT, TokenAnswer, TokenFile
from keyferry_operator.api.answers import to_bytes

if TYPE_CHECKING:
    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry_operator.api.news import News
    from keyferry_operator.catalog import Catalog

LIFE: Final = 30.0
"""Seconds after which it is read again, though there was no news: another replica's word of it may be lost."""
MISSING_LIFE: Final = 2.0
"""The same where there was no token."""
MOST: Final = 4096
"""Identities that are kept ready."""
_ENDPOINT: Final = Endpoint(ENDPOINT_MARKER, SecretValue(PLACEHOLDER_MARKER), ACCESS_KEY_ID)
_MARKERS: Final = (ENDPOINT_MARKER.encode(), PLACEHOLDER_MARKER.encode())


@dataclass(frozen=True, slots=True)
class Ready:
    """A token that can be handed out."""

    answer: TokenAnswer
    etag: str
    """Of uid, revision and content; with its quotes (RFC 9110 8.8.3)."""
    arrived: float | None
    """When (monotonic) this replica heard of it; None where it was there before."""
    lasting: bytes = field(repr=False)
    """The JSON of the answer's members that are the same for all who ask, without the closing brace."""

    def body(self) -> bytes:
        """Return the answer as JSON, as it is now."""
        age = None if self.arrived is None else asyncio.get_running_loop().time() - self.arrived
        passing = replace(self.answer, age=age).passing()
        return self.lasting + b"," + to_bytes(passing)[1:]

    def remaining(self) -> float:
        """Return for how many seconds it is valid."""
        return self.answer.expires_at - time.time()


@dataclass(frozen=True, slots=True)
class Missing:
    """There is none."""

    reason: Reason
    message: str
    """For people."""
    next_attempt_time: float | None = None


@dataclass(slots=True)
class _Entry:
    reading: asyncio.Future[Ready | Missing]
    until: float


@final
class Shelf:
    """Keeps answers ready."""

    def __init__(self, engine: Engine, catalog: Catalog, news: News) -> None:
        self._engine = engine
        self._catalog = catalog
        self._entries: OrderedDict[ObjectKey, _Entry] = OrderedDict()
        self._told: dict[ObjectKey, tuple[str, float]] = {}
        """Of identities with news that were not read since: the etag before, and when (monotonic) the news came."""
        self._arrived: dict[ObjectKey, tuple[str, float]] = {}
        """Of identities that somebody waits for: the etag, and when (monotonic) the news of it came."""
        self._news = news
        news.listeners.append(self._forget)

    async def get(self, key: ObjectKey) -> Ready | Missing:
        """Return what there is of a declared identity. Raises no KeyferryErrors."""
        now = asyncio.get_running_loop().time()
        entry = self._entries.get(key)
        if entry is None or now > entry.until or _failed(entry.reading):
            entry = _Entry(asyncio.ensure_future(self._read(key)), now + LIFE)
            self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > MOST:
            self._entries.popitem(last=False)
        found = await asyncio.shield(entry.reading)
        if isinstance(found, Missing):
            entry.until = min(entry.until, now + MISSING_LIFE)
        return found

    def status(self, key: ObjectKey) -> Missing:
        """Return why there is no better token, as far as it is known."""
        if self._engine.looks_after(key):
            status = self._engine.status(key)
            return Missing(status.shown_reason(time.time()), status.message, status.next_attempt_time)
        return _told(self._catalog.status_of(key))

    def _forget(self, key: ObjectKey) -> None:
        """Make it again when next asked for; note since when it may be another one."""
        gone = self._entries.pop(key, None)
        if not self._news.waits(key):
            self._told.pop(key, None)
            self._arrived.pop(key, None)
        elif gone is not None and gone.reading.done() and not _failed(gone.reading):
            found = gone.reading.result()
            etag = found.etag if isinstance(found, Ready) else ""
            self._told[key] = (etag, asyncio.get_running_loop().time())

    async def _read(self, key: ObjectKey) -> Ready | Missing:
        place = Place(Delivery.DIRECTORY, f"{ROOT}/{key.name}", _ENDPOINT)
        try:
            found = await self._engine.outlet.take(key, place)
            uid = self._engine.roster.entries[key].uid
        except KeyError:
            return Missing(Reason.PENDING, f"ServiceIdentity {key} is gone")
        except KeyferryError as error:
            return Missing(error.reason, error.message)
        if found is None:
            return self.status(key)
        answer = _answer(found)
        etag = _etag(uid, answer)
        return Ready(answer, etag, self._arrival(key, etag), to_bytes(answer.lasting())[:-1])

    def _arrival(self, key: ObjectKey, etag: str) -> float | None:
        before, at = self._told.pop(key, (etag, 0.0))
        if etag != before:
            self._arrived[key] = (etag, at)
        known, since = self._arrived.get(key, ("", 0.0))
        return since if known == etag else None


def _failed(reading: asyncio.Future[Ready | Missing]) -> bool:
    return reading.done() and (reading.cancelled() or reading.exception() is not None)


def _answer(found: HandedOut) -> TokenAnswer:
    token = found.token
    files = tuple(
        TokenFile(path, SecretValue(content.decode()), local=any(marker in content for marker in _MARKERS))
        for path, content in sorted(found.files.items())
    )
    return TokenAnswer(
        access_token=SecretValue("") if found.is_login else token.access_token,
        token_type=token.token_type,
        issued_at=token.issued_at,
        expires_at=token.expires_at,
        scope=token.scope,
        revision=found.revision,
        files=files,
    )


def _etag(uid: str, answer: TokenAnswer) -> str:
    digest = hashlib.sha256()
    parts = [answer.access_token.reveal(), answer.scope, str(answer.expires_at)]
    parts += [part for file in answer.files for part in (file.path, file.content.reveal())]
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return f'"{uid}.{answer.revision}.{digest.hexdigest()[:24]}"'


def _told(status: dict[str, Any]) -> Missing:
    """Read back what the replica that looks after an identity wrote of it."""
    conditions = status.get("conditions") or ()
    ready: dict[str, Any] = next((each for each in conditions if each.get("type") == "Ready"), {})
    try:
        reason = Reason(ready.get("reason", Reason.PENDING.value))
    except ValueError:
        reason = Reason.PENDING
    at = status.get("nextAttemptTime")
    expires = status.get("expirationTime")
    lapsed = isinstance(expires, str) and datetime.fromisoformat(expires).timestamp() <= time.time()
    if reason is Reason.ISSUED and lapsed:
        reason = Reason.EXPIRED
    return Missing(
        reason, str(ready.get("message", "")), datetime.fromisoformat(at).timestamp() if isinstance(at, str) else None
    )
