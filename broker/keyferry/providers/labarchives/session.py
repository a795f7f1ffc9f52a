"""LabArchives logins: redeeming a code for a user id, asking whether that still holds, and the server's clock."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlencode

from keyferry.grants.failure import Asked, malformed
from keyferry.model import HttpRequest, HttpResponse
from keyferry.providers.labarchives.answer import read_tree, text_of
from keyferry.providers.labarchives.login import LabArchivesUser, Notebook
from keyferry.providers.labarchives.signature import AccessKey, sign
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from keyferry.errors import Ambiguous

SESSION_TYPE: Final = "labarchives"
"""The token type of a user id: it is no bearer token and is never published."""
LOGIN_PAGE_LIFETIME: Final = 300.0
"""Seconds for which a login link works."""

_HEADERS: Final = {"Accept": "application/xml"}
_LONGEST_UID: Final = 4096

Redemption: TypeAlias = Generator[HttpRequest, HttpResponse, LabArchivesUser]


def redeem(url: str, key: AccessKey, email: SecretValue, code: SecretValue, at: float) -> Redemption:
    """Exchange a one-hour code, or the code of a callback, for the user's id; the code is used up by it.

    ``url`` is the region without ``/api``; ``at`` is Unix seconds of the server's clock. Raises Refused (`4504`: the
    clock is wrong and nothing was used up; `4514`: no such login), and Ambiguous, after which the code may be spent.
    """
    address = f"{url.rstrip('/')}/api/users/user_access_info"
    asked = Asked(address, what="LabArchives login", one_time=True, at=at, secrets=(email, code, key.password))
    parameters = (("login_or_email", email.reveal()), ("password", code.reveal()))
    signed = sign(key, "user_access_info", at).url(address, parameters)
    response = yield HttpRequest("GET", signed, headers=_HEADERS, one_time=True)
    return _user(read_tree(response, asked), asked)


def user_info(url: str, key: AccessKey, uid: SecretValue, at: float) -> Redemption:
    """Ask about a known user, which also tells whether the login still holds (Refused `4533` where it does not)."""
    address = f"{url.rstrip('/')}/api/users/user_info_via_id"
    asked = Asked(address, what="LabArchives login", at=at, secrets=(uid, key.password))
    signed = sign(key, "user_info_via_id", at).url(address, (("uid", uid.reveal()),))
    response = yield HttpRequest("GET", signed, headers=_HEADERS)
    return _user(read_tree(response, asked), asked, known=uid)


def epoch_time(url: str, key: AccessKey, at: float) -> Generator[HttpRequest, HttpResponse, float]:
    """Return the server's time in Unix seconds; the request is not signed."""
    address = f"{url.rstrip('/')}/api/utilities/epoch_time"
    asked = Asked(address, what="LabArchives clock", at=at)
    response = yield HttpRequest("GET", f"{address}?{urlencode({'akid': key.id.reveal()})}", headers=_HEADERS)
    tree = read_tree(response, asked)
    return _epoch(text_of(tree, "epoch-time") or (tree.text or "").strip(), asked)


def login_url(url: str, key: AccessKey, redirect_uri: str, at: float) -> str:
    """Return the address of the page where a person logs in and is sent to ``redirect_uri`` from.

    It comes with ``email`` and ``auth_code``, or ``error``. The link holds a signature and is as secret as one.
    """
    signature = sign(key, redirect_uri, at + LOGIN_PAGE_LIFETIME)
    return signature.url(f"{url.rstrip('/')}/api_user_login", (("redirect_uri", redirect_uri),))


def _epoch(text: str, asked: Asked) -> float:
    """Read the server's time, which older servers tell in milliseconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise malformed(asked, "told no time")
    return value / 1000 if value > 1e11 else value  # noqa: PLR2004 - 1e11 s is the year 5138


def _user(tree: Element, asked: Asked, known: SecretValue | None = None) -> LabArchivesUser:
    uid = text_of(tree, "id")
    if known is None and not _is_uid(uid):
        raise _no_uid(asked)
    return LabArchivesUser(
        uid=known if known is not None and not _is_uid(uid) else SecretValue(uid),
        email=text_of(tree, "email"),
        full_name=text_of(tree, "fullname"),
        may_log_in_alone=text_of(tree, "auto-login-allowed").lower() != "false",
        notebooks=tuple(_notebooks(tree)),
    )


def _notebooks(tree: Element) -> Iterator[Notebook]:
    for found in tree.iterfind(".//notebook"):
        if text_of(found, "id"):
            yield Notebook(text_of(found, "id"), text_of(found, "name"), text_of(found, "is-default").lower() == "true")


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_UID and text.isprintable()


def _no_uid(asked: Asked) -> Ambiguous:
    return malformed(asked, "gave an answer that names no user id")
