"""The LabArchives endpoint: signed with a placeholder, checked, signed anew with the organization's key, streamed.

The signature covers the method and the time alone, and LabArchives takes parameters from the query and from forms: so
what names a user or a signature is taken out, wherever it stands, and nothing that LabArchives could read in another
way than we do is passed on as it came. Errors are LabArchives' own XML, which its clients understand.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web

from keyferry.errors import KeyferryError
from keyferry.providers.labarchives.methods import is_signable
from keyferry.providers.labarchives.signature import AccessKey, sign_at
from keyferry.secret import SecretValue
from keyferry.web.presented import ACCESS_KEY_ID, is_same, placeholder_uid
from keyferry.web.scrub import Scrubber
from keyferry.web.serving import SERVER
from keyferry.web.source import NotAllowed, NotOffered, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from keyferry.providers.labarchives.login import LabArchivesUser, SignedCall
    from keyferry.web.source import Source
    from keyferry.web.upstream import Upstream

WINDOW: Final = 300.0
"""Seconds by which a request's time may differ from ours; clients send up to a minute ahead."""
MOST_PARAMETERS: Final = 256
LONGEST_FORM: Final = 16 << 20
LONGEST_BODY: Final = 5 << 30
"""Bytes of an upload; LabArchives itself takes some 4 GB."""
LONGEST_ERROR: Final = 64 << 10
CHUNK: Final = 64 << 10

LOGIN: Final = ("users", "user_access_info")
CLOCK: Final = ("utilities", "epoch_time")

_CALL: Final = re.compile(r"api/(?P<group>[a-z][a-z0-9_]{0,63})/(?P<method>[a-z][a-z0-9_]{0,63})")
_SIGNATURE: Final = ("akid", "expires", "sig")
_NEVER_GIVEN: Final = frozenset({*_SIGNATURE, "uid"})
_EXPIRES: Final = re.compile(r"[1-9][0-9]{0,15}")
_ERROR_CODE: Final = re.compile(rb"<error-code>\s*([0-9]{1,8})\s*</error-code>")
_FORM: Final = "application/x-www-form-urlencoded"
_OPAQUE: Final = "application/octet-stream"
_KEPT_HEADERS: Final = ("Content-Type", "Content-Disposition", "Last-Modified")
_WRITTEN: Final = re.compile(r"xml|html|json|text/", re.IGNORECASE)
"""Content in which LabArchives may repeat what it was asked."""

_BAD_REQUEST, _TIME, _KEY, _SIGNED, _USER, _SESSION, _FAILED = 4500, 4504, 4506, 4520, 4529, 4533, 4999


class _Failure(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, description: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(code)
        self.code, self.description, self.status = code, description, status


@dataclass(frozen=True, slots=True)
class _Body:
    """What is sent on."""

    data: Any
    content_type: str | None
    length: int | None
    again: bool
    """Whether it can be sent once more."""


class LabArchivesEndpoint:
    """Answers what lies under ``labarchives/``."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def serve(self, request: web.BaseRequest, source: Source, path: str, query: str) -> web.StreamResponse:
        """Answer one request; ``query`` is as it came."""
        try:
            return await self._serve(request, source, path, query)
        except _Failure as failure:
            return _error(failure)
        except NotOffered:
            return _error(_Failure(_KEY, "this identity has no LabArchives login", HTTPStatus.NOT_FOUND))
        except Unavailable as error:
            if error.person:
                return _error(_Failure(_SESSION, error.message, HTTPStatus.UNAUTHORIZED))
            return _error(_Failure(_FAILED, error.message, HTTPStatus.SERVICE_UNAVAILABLE))

    async def _serve(self, request: web.BaseRequest, source: Source, path: str, query: str) -> web.StreamResponse:
        called = _CALL.fullmatch(path)
        if called is None:
            raise _Failure(_FAILED, "there is no such method here", HTTPStatus.NOT_FOUND)
        call, method = (called["group"], called["method"]), called["method"]
        parameters = _verified(method, _parameters(query), source)
        if call == CLOCK:
            return _xml(f"<utilities><epoch-time>{time.time():.0f}</epoch-time></utilities>")
        if call == LOGIN:
            return _login(await source.user(), source)
        if not is_signable(method):
            raise _Failure(_FAILED, f"{method} is never signed for a workload", HTTPStatus.FORBIDDEN)
        return await self._forward(request, source, path, parameters)

    async def _forward(
        self, request: web.BaseRequest, source: Source, path: str, parameters: list[tuple[str, str]]
    ) -> web.StreamResponse:
        body = await _body(request)
        corrected = False
        while True:
            signed = await self._sign(source, path.rpartition("/")[2])
            answer = await self._send(request.method, path, parameters, signed, body)
            try:
                if answer.status == HTTPStatus.OK:
                    return await _stream(request, answer, signed, source)
                code, text = await _read_error(answer)
            finally:
                answer.close()
            if code == _SESSION:
                with contextlib.suppress(Unavailable, NotOffered):
                    await source.login_refused()
            if code == _TIME and not corrected:
                # It was refused for its time alone, so nothing happened yet.
                await source.correct_clock()
                corrected = True
                if body.again:
                    continue
            return _passed_on(answer, text, signed, source)

    async def _sign(self, source: Source, method: str) -> SignedCall:
        try:
            return await source.sign(method)
        except NotAllowed:
            raise _Failure(
                _FAILED,
                f"Keyferry does not sign {method}: it is not among spec.labarchives.methods of the TokenProvider",
                HTTPStatus.FORBIDDEN,
            ) from None

    async def _send(
        self, http_method: str, path: str, parameters: list[tuple[str, str]], signed: SignedCall, body: _Body
    ) -> aiohttp.ClientResponse:
        swapped = [(name, signed.uid.reveal() if name == "uid" else value) for name, value in parameters]
        url = signed.signature.url(f"{signed.region.rstrip('/')}/{path}", swapped)
        headers = {"Accept": "*/*"}
        if body.content_type is not None:
            headers["Content-Type"] = body.content_type
        if body.length is not None:
            headers["Content-Length"] = str(body.length)
        try:
            answer = await self._upstream.send(
                http_method, url, headers=headers, data=body.data, authorities=signed.authorities
            )
        except KeyferryError as error:
            raise _Failure(_FAILED, error.message, HTTPStatus.BAD_GATEWAY) from None
        except (aiohttp.ClientError, TimeoutError, OSError):
            # No cause: it may hold the URL, which is signed.
            raise _Failure(_FAILED, "LabArchives cannot be reached, or hung up", HTTPStatus.BAD_GATEWAY) from None
        encoding = answer.headers.get("Content-Encoding", "identity")
        redirected = HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST
        if redirected or encoding != "identity":
            answer.close()
            what = "redirects" if redirected else "sends what was not asked for"
            raise _Failure(_FAILED, f"LabArchives {what}; Keyferry does not follow", HTTPStatus.BAD_GATEWAY)
        return answer


def _parameters(text: str) -> list[tuple[str, str]]:
    """Read a query or form. They are written anew, so that no other reading of the same text is possible."""
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_PARAMETERS, errors="surrogateescape")
    except ValueError:
        raise _Failure(_BAD_REQUEST, "there are too many parameters") from None


def _verified(method: str, parameters: list[tuple[str, str]], source: Source) -> list[tuple[str, str]]:
    """Return the parameters without the signature, if it was made with the placeholder at about this time."""
    _reject_repeated(parameters)
    given = dict(parameters)
    akid, expires, sig = (given.get(name, "") for name in _SIGNATURE)
    if not is_same(SecretValue(ACCESS_KEY_ID), akid):
        raise _Failure(_KEY, "The access key id is not this endpoint's", HTTPStatus.UNAUTHORIZED)
    timed = _EXPIRES.fullmatch(expires) is not None
    key = AccessKey(SecretValue(ACCESS_KEY_ID), source.placeholder)
    wanted = sign_at(key, method, int(expires) if timed else 0)
    if not is_same(SecretValue(wanted.value), sig) or not timed:
        raise _Failure(_SIGNED, "The signature is not valid", HTTPStatus.UNAUTHORIZED)
    if abs(int(expires) / 1000 - time.time()) > WINDOW:
        raise _Failure(_TIME, "The request's expires time is too far from this machine's")
    uid = given.get("uid")
    if uid is not None and not is_same(SecretValue(placeholder_uid(source.placeholder)), uid):
        raise _Failure(_USER, "The user id is not the one of this login", HTTPStatus.FORBIDDEN)
    return [(name, value) for name, value in parameters if name not in _SIGNATURE]


def _reject_repeated(parameters: Iterable[tuple[str, str]]) -> None:
    """Refuse a second ``uid`` or signature, also in the forms in which frameworks nest parameters (``uid[]``)."""
    seen: set[str] = set()
    for name, _ in parameters:
        bare = name.partition("[")[0].strip()
        if bare in _NEVER_GIVEN and (bare in seen or bare != name):
            raise _Failure(_BAD_REQUEST, f"{bare} is given twice, or nested")
        seen.add(bare)


async def _body(request: web.BaseRequest) -> _Body:
    """Return what is sent on; an upload is read while it is sent."""
    if request.method == "GET":
        if request.body_exists and request.content_length != 0:
            raise _Failure(_BAD_REQUEST, "a GET has no body")
        return _Body(None, None, None, again=True)
    length = request.content_length
    if length is not None and length > LONGEST_BODY:
        raise _Failure(_BAD_REQUEST, "the body is too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.content_type == _FORM:
        return await _form_body(request)
    if request.content_type.startswith("multipart/"):
        raise _Failure(_BAD_REQUEST, "multipart bodies are not passed on", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    # A type that LabArchives' framework would take parameters from, such as JSON, must not reach it.
    declared = _OPAQUE if "Content-Type" in request.headers else None
    return _Body(_upload(request), declared, length, again=False)


async def _form_body(request: web.BaseRequest) -> _Body:
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > LONGEST_FORM:
            raise _Failure(_BAD_REQUEST, "the form is too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    try:
        fields = _parameters(body.decode("ascii"))
    except UnicodeDecodeError:
        raise _Failure(_BAD_REQUEST, "the form is not encoded as one") from None
    if any(name.partition("[")[0].strip() in _NEVER_GIVEN for name, _ in fields):
        raise _Failure(_BAD_REQUEST, "uid and signature belong in the query", HTTPStatus.FORBIDDEN)
    written = urlencode(fields, errors="surrogateescape").encode()
    return _Body(written, _FORM, len(written), again=True)


async def _upload(request: web.BaseRequest) -> AsyncIterator[bytes]:
    total = 0
    async for piece in request.content.iter_any():
        total += len(piece)
        if total > LONGEST_BODY:
            raise _Failure(_BAD_REQUEST, "the body is too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        yield piece


async def _read_error(answer: aiohttp.ClientResponse) -> tuple[int, bytes]:
    try:
        text = await answer.content.read(LONGEST_ERROR)
        while len(text) < LONGEST_ERROR and (more := await answer.content.read(LONGEST_ERROR - len(text))):
            text += more
    except (aiohttp.ClientError, TimeoutError, OSError):
        raise _Failure(_FAILED, "LabArchives hung up", HTTPStatus.BAD_GATEWAY) from None
    code = _ERROR_CODE.search(text)
    return (int(code[1]) if code is not None else 0), text


def _passed_on(answer: aiohttp.ClientResponse, text: bytes, signed: SignedCall, source: Source) -> web.Response:
    scrubber = _scrubber(signed, source)
    return web.Response(status=answer.status, body=scrubber.feed(text) + scrubber.end(), headers=_headers_of(answer))


async def _stream(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, signed: SignedCall, source: Source
) -> web.StreamResponse:
    """Pass an answer on piece by piece; where it breaks off, so does ours, for half of it must not look whole."""
    written = _WRITTEN.search(answer.headers.get("Content-Type", "xml")) is not None
    response = web.StreamResponse(status=answer.status, headers=_headers_of(answer))
    scrubber = _scrubber(signed, source) if written else None
    if scrubber is None and answer.content_length is not None:
        response.content_length = answer.content_length
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_chunked(CHUNK):
            await response.write(piece if scrubber is None else scrubber.feed(piece))
        if scrubber is not None:
            await response.write(scrubber.end())
    except (aiohttp.ClientError, TimeoutError, OSError):
        if request.transport is not None:
            request.transport.abort()
        raise
    await response.write_eof()
    return response


def _headers_of(answer: aiohttp.ClientResponse) -> dict[str, str]:
    kept = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
    return {**kept, "Cache-Control": "no-store", "Server": SERVER}


def _scrubber(signed: SignedCall, source: Source) -> Scrubber:
    """Return what takes our own secrets out of an answer: LabArchives repeats requests in some of its answers."""
    return Scrubber({signed.uid.reveal(): placeholder_uid(source.placeholder), signed.signature.value: "***"})


def _login(user: LabArchivesUser, source: Source) -> web.Response:
    """Answer a login with what LabArchives says of the user whom Keyferry is logged in as."""
    notebooks = "".join(
        f"<notebook><id>{escape(notebook.id)}</id><name>{escape(notebook.name)}</name>"
        f'<is-default type="boolean">{str(notebook.is_default).lower()}</is-default></notebook>'
        for notebook in user.notebooks
    )
    allowed = str(user.may_log_in_alone).lower()
    return _xml(
        f"<users><id>{placeholder_uid(source.placeholder)}</id><fullname>{escape(user.full_name)}</fullname>"
        f"<email>{escape(user.email)}</email><request/>"
        f'<auto-login-allowed type="boolean">{allowed}</auto-login-allowed>'
        f'<notebooks type="array">{notebooks}</notebooks></users>'
    )


def _error(failure: _Failure) -> web.Response:
    text = (
        f"<error><request/><error-code>{failure.code}</error-code>"
        f"<error-description>{escape(failure.description)}</error-description></error>"
    )
    return _xml(text, failure.status)


def _xml(text: str, status: int = HTTPStatus.OK) -> web.Response:
    headers = {"Content-Type": "application/xml; charset=utf-8", "Cache-Control": "no-store", "Server": SERVER}
    body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode("utf-8", "replace")
    return web.Response(status=status, body=body, headers=headers)
