"""The random value by which the page knows a browser again, and what a browser must send with a POST.

Only a POST sets the cookie, so that a link alone, followed from wherever, makes no browser into the one that begins a
login. Over TLS its name begins with ``__Host-``: no other host, and nothing on plain HTTP, can set one. On the plain
loopback not every browser keeps a ``Secure`` cookie, so there it is an ordinary one with the port in its name, for
cookies know no ports.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from aiohttp import web

NAME: Final = "__Host-keyferry"
BYTES: Final = 32
LONGEST: Final = 8192

_VALUE: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Browsers:
    """Knows the cookie and the origin of a page at ``url``."""

    url: str

    @property
    def secure(self) -> bool:
        """Tell whether the page is on TLS."""
        return self.url.startswith("https:")

    @property
    def cookie(self) -> str:
        """The cookie's name."""
        return NAME if self.secure else f"keyferry-{urlsplit(self.url).port or 80}"

    def of(self, request: web.BaseRequest) -> SecretValue | None:
        """Return the browser's value; None where it has none, or one that is not ours."""
        headers = request.headers.getall("Cookie", [])
        if len(headers) != 1 or len(headers[0]) > LONGEST:
            return None
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(headers[0])
        except CookieError:
            return None
        found = jar.get(self.cookie)
        return SecretValue(found.value) if found is not None and _VALUE.fullmatch(found.value) else None

    def set(self, response: web.Response, browser: SecretValue) -> None:
        """Have the browser keep its value until it is closed."""
        response.set_cookie(self.cookie, browser.reveal(), secure=self.secure, httponly=True, samesite="Lax", path="/")

    def is_own_form(self, request: web.BaseRequest) -> bool:
        """Tell whether a POST comes from a page of ours, by what browsers alone can say (Fetch, ``Sec-Fetch-Site``)."""
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site is None and origin is None:
            return False
        return site in {None, "same-origin"} and origin in {None, self.url}


def new_browser() -> SecretValue:
    """Return 256 random bits."""
    return SecretValue(secrets.token_urlsafe(BYTES))
