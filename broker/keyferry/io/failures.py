"""Turns what the HTTP library raises into `NotSent` or `Ambiguous`, in words for people.

Only a failure to connect counts as not sent. httpx-aiohttp reports a connection that broke after the request was
written as a failed connect, so its own exceptions are never looked at, only what aiohttp raised.
No message repeats what the library says: that may hold the URL or a piece of the answer.
"""

from __future__ import annotations

import errno
import ssl
from typing import Final

import aiohttp

from keyferry.errors import Ambiguous, ExchangeError, NotSent
from keyferry.io.addresses import AddressNotAllowedError

_CONNECTING: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)
_ERRNO: Final = {
    errno.ECONNREFUSED: ("refused", "connection refused"),
    errno.ECONNRESET: ("reset", "the connection was reset"),
    errno.EPIPE: ("reset", "the connection was reset"),
    errno.ETIMEDOUT: ("connect_timeout", "no connection: timed out"),
    errno.EHOSTUNREACH: ("unreachable", "no route to the host"),
    errno.ENETUNREACH: ("unreachable", "the network cannot be reached"),
    errno.EMFILE: ("descriptors", "Keyferry has too many files open"),
}

_KINDS: Final[tuple[tuple[type[BaseException], str, str], ...]] = (
    (aiohttp.ClientConnectorCertificateError, "certificate", "its certificate is not accepted: {detail}"),
    (aiohttp.ClientConnectorSSLError, "tls", "the TLS handshake failed: {detail}"),
    (aiohttp.ClientConnectorDNSError, "dns", "the name cannot be resolved"),
    (aiohttp.ClientProxyConnectionError, "proxy", "the proxy cannot be reached: {detail}"),
    (aiohttp.ClientHttpProxyError, "proxy", "the proxy refused to connect: {detail}"),
    (aiohttp.ConnectionTimeoutError, "connect_timeout", "no connection: timed out"),
    (aiohttp.ServerTimeoutError, "timeout", "no answer: timed out"),
    (aiohttp.ServerDisconnectedError, "disconnected", "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "truncated", "the answer ended early"),
    (aiohttp.ClientResponseError, "malformed", "the answer is not HTTP"),
    (aiohttp.InvalidURL, "invalid_url", "this is not a URL that can be requested"),
    (ssl.SSLError, "tls", "the server broke off TLS: {detail}"),
)
"""The first that fits is told: (what was raised, the error's code, its sentence)."""


def explain(cause: BaseException, host: str, *, sent: bool) -> ExchangeError:
    """Return the error for what aiohttp raised; ``sent`` says whether a connection had been handed over."""
    if isinstance(cause, aiohttp.ClientConnectorDNSError) and isinstance(cause.os_error, AddressNotAllowedError):
        return cause.os_error.refusal
    code, text = _describe(cause)
    if not sent and isinstance(cause, _CONNECTING):
        return NotSent(f"{host}: {text}", code=code)
    return Ambiguous(f"{host}: {text}", code=code)


def overdue(host: str, seconds: float, *, sent: bool) -> ExchangeError:
    """Return the error for a request that did not end within its time."""
    if sent:
        return Ambiguous(f"{host}: no whole answer within {seconds:g} s", code="timeout")
    return NotSent(f"{host}: no connection within {seconds:g} s", code="connect_timeout")


def _describe(cause: BaseException) -> tuple[str, str]:
    """Return the short code and the sentence."""
    for kind, code, text in _KINDS:
        if isinstance(cause, kind):
            return code, text.format(detail=_detail(cause))
    error = cause.os_error if isinstance(cause, aiohttp.ClientConnectorError) else cause
    if isinstance(error, OSError):
        return _system(error)
    return "broken", f"the exchange broke ({type(cause).__name__})"


def _system(error: OSError) -> tuple[str, str]:
    number = errno.ECONNRESET if isinstance(error, ConnectionResetError) else error.errno
    return _ERRNO.get(number or 0, ("broken", "the connection broke"))


def _detail(cause: BaseException) -> str:
    """Return the part of an error that is known to hold nothing but its cause."""
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        return f"HTTP {cause.status}"
    if isinstance(cause, aiohttp.ClientProxyConnectionError):
        return _system(cause.os_error)[1]
    error = getattr(cause, "certificate_error", None) or getattr(cause, "os_error", cause)
    # OpenSSL: a sentence where a certificate was verified, else a name such as WRONG_VERSION_NUMBER.
    sentence = getattr(error, "verify_message", None)
    name = getattr(error, "reason", None) or "no reason given"
    return str(sentence).rstrip(".") if sentence else str(name).lower().replace("_", " ")
