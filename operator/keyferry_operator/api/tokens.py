"""``GET …/token``: the current token of an identity with its files, at once or as soon as there is another one."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final
from urllib.parse import parse_qsl

from keyferry.errors import Reason
from keyferry.spec.durations import format_duration, parse_duration
from keyferry.wire import LONGEST_WAIT
from keyferry_operator.api.answers import Denied, bad_request, empty, encoded, not_found, unavailable
from keyferry_operator.api.shelf import Missing, Ready

if TYPE_CHECKING:
    from aiohttp import web

    from keyferry_operator.api.gate import Admitted, Gate
    from keyferry_operator.api.limits import Buckets, Held
    from keyferry_operator.api.news import News, Waiter
    from keyferry_operator.api.routes import Asked
    from keyferry_operator.api.shelf import Shelf
    from keyferry_operator.api.wants import Wants
    from keyferry_operator.catalog import Catalog

SOON: Final = 5.0
"""Seconds after which to ask again for what may be there any moment."""
_NEEDS_PERSON: Final = frozenset({Reason.APPROVAL_REQUIRED, Reason.GRANT_REJECTED, Reason.WRONG_SUBJECT})
_WAIT: Final = re.compile(r"wait\s*=\s*\"?([0-9]{1,9})\"?")
_TAG: Final = re.compile(r'(?:W/)?("[!#-~]*")')
_MOST_TAGS: Final = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    tags: frozenset[str]
    """What the caller has already; ``*`` stands for anything."""
    wait: float
    """Seconds for which the request may be held."""
    asked: float
    """Seconds for which the token must be valid, as the caller asks."""
    usual: float
    """The same as the identity asks: whoever has nothing yet is held back below it."""

    def has(self, ready: Ready) -> bool:
        """Tell whether the caller has that already."""
        return ready.etag in self.tags or "*" in self.tags

    def minimum(self, ready: Ready) -> float:
        """Return for how many seconds a token must be valid."""
        return self.asked if self.has(ready) else max(self.asked, self.usual)


@final
class TokenEndpoint:
    """Answers requests for tokens."""

    def __init__(
        self, gate: Gate, buckets: Buckets, held: Held, news: News, shelf: Shelf, catalog: Catalog, wants: Wants
    ) -> None:
        self._gate = gate
        self._buckets = buckets
        self._held = held
        self._news = news
        self._shelf = shelf
        self._catalog = catalog
        self._wants = wants
        self._draining = False

    async def get(self, asked: Asked) -> web.StreamResponse:
        """Answer one request. Raises Denied."""
        admitted = await self._gate.admit(asked, self._buckets)
        wanted = self._read(asked, admitted)
        found = await self._shelf.get(admitted.key)
        response = self._try(admitted, wanted, found)
        if response is not None:
            return response
        if wanted.wait <= 0 or self._draining:
            return self._end(admitted, wanted, found)
        with self._held.holding(admitted.caller.pod_uid), self._news.waiting(admitted.key) as news:
            return await self._hold(admitted, wanted, news)

    def drain(self) -> None:
        """Hold nothing any more, and let those go that are held."""
        self._draining = True
        self._held.send_away()
        self._news.wake_all()

    async def _hold(self, admitted: Admitted, wanted: Request, news: Waiter) -> web.StreamResponse:
        """Wait until there is another token than the caller has, or the time is over."""
        found: Ready | Missing | None = None
        try:
            async with asyncio.timeout(wanted.wait):
                while not self._draining:
                    if not self._gate.is_still(admitted):
                        raise not_found()
                    found = await self._shelf.get(admitted.key)
                    response = self._try(admitted, wanted, found)
                    if response is not None:
                        return response
                    if not await news.comes(self._held.look_again()):
                        await self._gate.check_alive(admitted)
        except TimeoutError:
            pass
        if not self._gate.is_still(admitted):
            raise not_found()
        if self._draining:
            raise unavailable("this replica is about to end; ask another", self._held.comes_back())
        return self._end(admitted, wanted, found or await self._shelf.get(admitted.key))

    def _try(self, admitted: Admitted, wanted: Request, found: Ready | Missing) -> web.StreamResponse | None:
        """Return the answer where there is one by now; have a longer life asked for where that is what is missing."""
        if isinstance(found, Missing) or found.remaining() <= 0:
            return None
        if found.remaining() < wanted.minimum(found):
            self._want(admitted, wanted, found)
            return None
        if wanted.has(found):
            return None
        return encoded(found.body(), headers={"ETag": found.etag, **_applied(wanted)})

    def _end(self, admitted: Admitted, wanted: Request, found: Ready | Missing) -> web.StreamResponse:
        """Return the answer of a request whose time is over. Raises Denied where there is no token."""
        if isinstance(found, Ready) and found.remaining() > 0:
            if found.remaining() < wanted.minimum(found):
                raise self._too_short(admitted, wanted, found)
            return empty(HTTPStatus.NOT_MODIFIED, {"ETag": found.etag, **_applied(wanted)})
        why = found if isinstance(found, Missing) else self._shelf.status(admitted.key)
        raise _missing(why)

    def _want(self, admitted: Admitted, wanted: Request, found: Ready) -> None:
        """Have a token renewed that is too short. Raises Denied where no renewal would make it long enough."""
        lifetime = found.answer.expires_at - found.answer.issued_at
        minimum = wanted.minimum(found)
        if lifetime < minimum:
            raise Denied(
                HTTPStatus.CONFLICT,
                Reason.LIFETIME_TOO_SHORT,
                f"the provider issues tokens for {format_duration(lifetime)}, and one that is valid for"
                f" {format_duration(minimum)} is asked for, which there will never be. Ask for less"
                " (keyferry.dev/minimum-remaining of the pod, spec.renewal.minimumRemaining of the identity), have the"
                " provider issue longer tokens, or let the job take up renewed ones as the sidecar writes them.",
                headers={"ETag": found.etag},
            )
        self._wants.want(admitted.key, minimum)

    def _too_short(self, admitted: Admitted, wanted: Request, found: Ready) -> Denied:
        status = self._shelf.status(admitted.key)
        trouble = f" ({status.message})" if status.reason is not Reason.ISSUED and status.message else ""
        return unavailable(
            f"the token is valid for {format_duration(found.remaining())} more, and"
            f" {format_duration(wanted.minimum(found))} are asked for; it is being renewed{trouble}",
            SOON,
        )

    def _read(self, asked: Asked, admitted: Admitted) -> Request:
        minimum = _minimum(asked.query)
        resource = self._catalog.identities.get(admitted.key)
        own = resource.spec.renewal.minimum_remaining if resource is not None else 0.0
        headers = asked.request.headers
        return Request(
            tags=_tags(headers.getall("If-None-Match", [])),
            wait=_wait(headers.getall("Prefer", [])),
            asked=minimum,
            usual=own,
        )


def _minimum(query: str) -> float:
    """Return the seconds that ``minimum_remaining`` says: a duration such as ``90m``, or seconds alone."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=4)
    except ValueError:
        raise bad_request("the query cannot be read") from None
    if not pairs:
        return 0.0
    if len(pairs) > 1 or pairs[0][0] != "minimum_remaining":
        raise bad_request("the query takes minimum_remaining, once, and nothing else")
    text = pairs[0][1]
    try:
        return parse_duration(f"{text}s" if text.isascii() and text.isdigit() else text)
    except ValueError as error:
        raise bad_request(f"minimum_remaining {error}") from None


def _tags(lines: list[str]) -> frozenset[str]:
    """Return the entity tags of ``If-None-Match``; one that cannot be read matches nothing."""
    text = ",".join(lines).strip()
    if text == "*":
        return frozenset({"*"})
    return frozenset(_TAG.findall(text)[:_MOST_TAGS])


def _wait(lines: list[str]) -> float:
    """Return the seconds of ``Prefer: wait`` (RFC 7240 4.3), as far as they are granted."""
    for part in ",".join(lines).replace(";", ",").split(","):
        found = _WAIT.fullmatch(part.strip())
        if found is not None:
            return float(min(int(found[1]), LONGEST_WAIT))
    return 0.0


def _applied(wanted: Request) -> dict[str, str]:
    return {"Preference-Applied": f"wait={wanted.wait:.0f}"} if wanted.wait else {}


def _missing(why: Missing) -> Denied:
    """Return the refusal of an identity that has no good token."""
    person = why.reason in _NEEDS_PERSON
    status = HTTPStatus.CONFLICT if person else HTTPStatus.SERVICE_UNAVAILABLE
    reason = Reason.APPROVAL_REQUIRED if person else (why.reason if why.reason is not Reason.ISSUED else Reason.PENDING)
    detail = why.message or "there is no token yet"
    return Denied(status, reason, detail, retry_after=SOON, next_attempt_time=why.next_attempt_time)
