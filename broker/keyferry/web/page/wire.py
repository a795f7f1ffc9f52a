"""What the approval page and the broker API say to each other: ``POST /v1/page/<operation>`` with a JSON body.

Links, codes and what stands for a browser are in bodies, never in an address. `PageHandler` answers in the broker, on
whatever HTTP server; ``keyferry.web.page.client`` asks.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from keyferry.errors import KeyferryError, Misdirected, NoSuchQuestion, Reason, Refused, RetryClass, StoreError
from keyferry.model import ObjectKey
from keyferry.question import Account, DeviceCode, Overview, Question, Stage
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from keyferry.question import Approvals

PATH: Final = "/v1/page/"
OPERATIONS: Final = ("question", "begin", "arrive", "code", "confirm", "decline", "again", "overview")
LONGEST_BODY: Final = 64 << 10
"""Bytes of a request."""

_PLAIN: Final[Mapping[str, type]] = {
    "provider": str,
    "provider_host": str,
    "grant": str,
    "expires_at": float,
    "target": str,
    "expected": str,
    "takes_code": bool,
    "begun_here": bool,
    "message": str,
    "may_ask_again": bool,
}
_LISTS: Final = ("scopes", "audiences", "consumers")
_OVERVIEW: Final = ("provider", "grant", "state", "message", "page")
_TIMES: Final = ("expiration_time", "renewal_time", "reauthorize_by_time")
_ACCOUNT: Final = ("subject", "email", "name")
_DEVICE: Final = ("user_code", "verification_uri", "verification_uri_complete")

Answer = dict[str, Any]


class MalformedError(Exception):
    """A body is not what was agreed on."""


# --- questions --------------------------------------------------------------------------------------------------------


def encode_question(question: Question) -> Answer:
    """Return JSON-ready values."""
    out: Answer = {"identity": _encode_key(question.identity), "stage": question.stage.value}
    out |= {name: getattr(question, name) for name in _PLAIN}
    out |= {name: list(getattr(question, name)) for name in _LISTS}
    if question.device is not None:
        out["device"] = {name: getattr(question.device, name) for name in _DEVICE}
    if question.account is not None:
        out["account"] = {name: getattr(question.account, name) for name in _ACCOUNT}
    return out


def decode_question(data: Any) -> Question:
    """Return what ``encode_question`` made; what a later version adds is left out. Raises MalformedError."""
    with _Checked():
        device, account = data.get("device"), data.get("account")
        plain: Answer = {name: kind(data[name]) for name, kind in _PLAIN.items()}
        plain |= {name: tuple(str(item) for item in data[name]) for name in _LISTS}
        return Question(
            identity=_decode_key(data["identity"]),
            stage=Stage(data["stage"]),
            device=None if device is None else DeviceCode(**{name: str(device[name]) for name in _DEVICE}),
            account=None if account is None else Account(**{name: str(account[name]) for name in _ACCOUNT}),
            **plain,
        )


def encode_overview(overview: Overview) -> Answer:
    """Return JSON-ready values."""
    return {
        "identity": _encode_key(overview.identity),
        **{name: getattr(overview, name) for name in (*_OVERVIEW, *_TIMES)},
    }


def decode_overview(data: Any) -> Overview:
    """Return what ``encode_overview`` made. Raises MalformedError."""
    with _Checked():
        plain: Answer = {name: str(data[name]) for name in _OVERVIEW}
        plain |= {name: None if data[name] is None else float(data[name]) for name in _TIMES}
        return Overview(identity=_decode_key(data["identity"]), **plain)


def _encode_key(key: ObjectKey) -> Answer:
    return {"namespace": key.namespace, "name": key.name}


def _decode_key(data: Any) -> ObjectKey:
    return ObjectKey(str(data["namespace"]), str(data["name"]))


# --- errors -----------------------------------------------------------------------------------------------------------

_STATUS: Final[tuple[tuple[type[KeyferryError], int], ...]] = (
    (NoSuchQuestion, HTTPStatus.NOT_FOUND),
    (Misdirected, HTTPStatus.MISDIRECTED_REQUEST),
    (Refused, HTTPStatus.FORBIDDEN),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (KeyferryError, HTTPStatus.CONFLICT),
)


def encode_error(error: KeyferryError) -> tuple[int, Answer]:
    """Return the status and the problem document (RFC 9457) for an error whose message is for the person."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": error.message,
    }
    return int(status), problem | {"reason": error.reason.value, "retry": error.retry.value}


def decode_error(status: int, data: Any) -> KeyferryError:
    """Return the error that the page's visitor is to see. Raises MalformedError for one that is not for visitors."""
    with _Checked():
        kind = next((kind for kind, of in _STATUS if of == status), None)
        if kind is None:
            raise MalformedError
        return kind(str(data["detail"]), reason=Reason(data["reason"]), retry=RetryClass(data["retry"]))


class _Checked:
    """Turns what decoding a wrong body raises into MalformedError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, AttributeError)):
            # No cause: it may hold a part of the body.
            raise MalformedError from None


# --- the broker's side ------------------------------------------------------------------------------------------------


class PageHandler:
    """Answers the operations. Who may ask is for the HTTP server to decide before."""

    async def handle(self, approvals: Approvals, operation: str, body: bytes) -> tuple[int, Answer]:
        """Return the status and the JSON of an answer; errors are problem documents. Nothing of a body is repeated."""
        handler = _HANDLERS.get(operation)
        if handler is None:
            return _problem(HTTPStatus.NOT_FOUND, "there is no such operation")
        if len(body) > LONGEST_BODY:
            return _problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
        try:
            given = _Given(body)
            return int(HTTPStatus.OK), await handler(approvals, given)
        except MalformedError:
            return _problem(HTTPStatus.BAD_REQUEST, "the body is not what this operation takes")
        except KeyferryError as error:
            return encode_error(error)


class _Given:
    """The members of a request's body; each is read with the type that it must have."""

    def __init__(self, body: bytes) -> None:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            raise MalformedError from None
        if not isinstance(data, dict):
            raise MalformedError
        self._data = data

    def text(self, name: str) -> str:
        value = self._data.get(name)
        if not isinstance(value, str):
            raise MalformedError
        return value

    def secret(self, name: str) -> SecretValue:
        return SecretValue(self.text(name))

    def secret_or_none(self, name: str) -> SecretValue | None:
        return None if self._data.get(name) is None else self.secret(name)

    def parameters(self) -> Mapping[str, str]:
        value = self._data.get("parameters")
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise MalformedError
        return value


async def _question(approvals: Approvals, given: _Given) -> Answer:
    return encode_question(await approvals.question(given.secret("link"), given.secret_or_none("browser")))


async def _begin(approvals: Approvals, given: _Given) -> Answer:
    return {"address": await approvals.begin(given.secret("link"), given.secret("browser"))}


async def _arrive(approvals: Approvals, given: _Given) -> Answer:
    link = await approvals.arrive(given.text("provider"), given.secret_or_none("browser"), given.parameters())
    return {"link": link.reveal()}


async def _code(approvals: Approvals, given: _Given) -> Answer:
    email, code = given.text("email"), given.secret("code")
    return encode_question(await approvals.give_code(given.secret("link"), given.secret("browser"), email, code))


async def _confirm(approvals: Approvals, given: _Given) -> Answer:
    return encode_question(await approvals.confirm(given.secret("link"), given.secret("browser")))


async def _decline(approvals: Approvals, given: _Given) -> Answer:
    return encode_question(await approvals.decline(given.secret("link"), given.secret("browser")))


async def _again(approvals: Approvals, given: _Given) -> Answer:
    return encode_question(await approvals.ask_again(given.secret("link")))


async def _overview(approvals: Approvals, given: _Given) -> Answer:
    return {"identities": [encode_overview(one) for one in await approvals.overview(given.secret("viewer"))]}


_HANDLERS: Final[Mapping[str, Callable[[Approvals, _Given], Awaitable[Answer]]]] = dict(
    zip(OPERATIONS, (_question, _begin, _arrive, _code, _confirm, _decline, _again, _overview), strict=True)
)


def _problem(status: HTTPStatus, detail: str) -> tuple[int, Answer]:
    return int(status), {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
