"""``POST …/labarchives/…``: what a sidecar's LabArchives endpoint needs; the organization's key stays here."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn, final

from keyferry.errors import KeyferryError, Reason, Refused, RetryClass
from keyferry.wire import ProblemReason, encode_call, encode_user
from keyferry_operator.api.answers import Denied, answer, bad_request, empty, read_json, unavailable
from keyferry_operator.reads import SharedReads

if TYPE_CHECKING:
    from aiohttp import web

    from keyferry.engine import Engine
    from keyferry.model import ObjectKey
    from keyferry.providers.labarchives import LabArchivesUser
    from keyferry_operator.api.gate import Gate
    from keyferry_operator.api.limits import Buckets
    from keyferry_operator.api.routes import Asked
    from keyferry_operator.api.wants import Wants

SOON: Final = 5.0
SHARED_FOR: Final = 5.0
"""Seconds for which LabArchives' word on a person, or its clock, serves all pods of an identity."""
_METHOD: Final = re.compile(r"[a-z][a-z0-9_]{0,62}[a-z_]")


@final
class LabArchivesEndpoint:
    """Signs calls for pods, and asks LabArchives about the person for them."""

    def __init__(self, gate: Gate, buckets: Buckets, signatures: Buckets, engine: Engine, wants: Wants) -> None:
        """``signatures`` bounds how often a pod has calls signed, ``buckets`` how often it asks all else."""
        self._gate = gate
        self._buckets = buckets
        self._signatures = signatures
        self._engine = engine
        self._wants = wants
        self._users: SharedReads[ObjectKey, LabArchivesUser] = SharedReads(SHARED_FOR)
        self._clocks: SharedReads[ObjectKey, None] = SharedReads(SHARED_FOR)

    async def signature(self, asked: Asked) -> web.StreamResponse:
        """Sign one call of ``method``."""
        key = await self._admit(asked, self._signatures)
        body = await read_json(asked.request)
        method = body.get("method") if isinstance(body, dict) and set(body) == {"method"} else None
        if not isinstance(method, str) or _METHOD.fullmatch(method) is None:
            raise bad_request("the body takes method, the name of a LabArchives method, and nothing else")
        try:
            return answer(encode_call(await self._engine.labarchives.sign(key, method)))
        except KeyferryError as error:
            self._refuse(key, error)

    async def user(self, asked: Asked) -> web.StreamResponse:
        """Tell whose login it is, without the user id."""
        key = await self._admit(asked, self._buckets)
        try:
            found = await self._users.get(key, lambda: self._engine.labarchives.user(key))
        except KeyferryError as error:
            self._refuse(key, error)
        return answer(encode_user(found))

    async def clock(self, asked: Asked) -> web.StreamResponse:
        """Have LabArchives asked for its time, by which this replica signs from now on."""
        key = await self._admit(asked, self._buckets)
        try:
            await self._clocks.get(key, lambda: self._engine.labarchives.correct_clock(key))
        except KeyferryError as error:
            self._refuse(key, error)
        return empty(HTTPStatus.NO_CONTENT)

    async def refused(self, asked: Asked) -> web.StreamResponse:
        """Take note that LabArchives wants the person to log in again: it is asked, and then the person."""
        key = await self._admit(asked, self._buckets)
        self._wants.want(key, 0.0)
        return empty(HTTPStatus.NO_CONTENT)

    async def _admit(self, asked: Asked, buckets: Buckets) -> ObjectKey:
        key = (await self._gate.admit(asked, buckets)).key
        if key not in self._engine.roster.entries or not self._engine.labarchives.serves(key):
            raise Denied(HTTPStatus.NOT_FOUND, ProblemReason.NOT_OFFERED, f"{key} is no identity of LabArchives")
        return key

    def _refuse(self, key: ObjectKey, error: KeyferryError) -> NoReturn:
        if error.reason is Reason.PROVIDER_NOT_ALLOWED:
            raise Denied(HTTPStatus.FORBIDDEN, ProblemReason.NOT_SIGNED, error.message) from None
        person = error.retry is RetryClass.NEEDS_PERSON
        if person and isinstance(error, Refused):
            self._wants.want(key, 0.0)  # so that the person hears of it, too
        if person:
            raise Denied(HTTPStatus.CONFLICT, Reason.APPROVAL_REQUIRED, error.message, retry_after=SOON) from None
        raise unavailable(error.message, SOON, error.reason) from None
