"""A person at a browser without JavaScript, who fills in the forms of Keycloak's and Tiled's own pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import httpx

if TYPE_CHECKING:
    from tests.support.keycloak_realm import Person

MOST_REDIRECTS = 10


@dataclass
class Form:
    """A form, with the values that it has without anybody typing: not its buttons."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    asks: set[str] = field(default_factory=set)
    """Names of all that may be sent, buttons included."""


@dataclass
class Page:
    """What the person sees."""

    url: str
    text: str
    forms: list[Form]

    def asks_for(self, name: str) -> bool:
        """Tell whether a form on it has a field or button of this name."""
        return any(name in form.asks for form in self.forms)


class Visitor:
    """Keeps cookies, those marked Secure over plain HTTP as well: the loopback is as good to a browser."""

    def __init__(self) -> None:
        self._cookies: dict[str, str] = {}

    def open(self, url: str) -> Page:
        """Visit an address, by whatever redirects."""
        return self._request("GET", url, None)

    def submit(self, page: Page, **typed: str) -> Page:
        """Send the form on ``page`` that has all the fields or buttons of ``typed``."""
        form = next((form for form in page.forms if form.asks >= typed.keys()), None)
        assert form is not None, f"no form with {sorted(typed)} at {page.url}:\n{page.text[:2000]}"
        return self._request("POST", urljoin(page.url, form.action), {**form.fields, **typed})

    def approve(self, url: str, person: Person) -> Page:
        """Open a link of Keycloak's, log in there if it asks, and consent if it asks."""
        page = self.open(url)
        if page.asks_for("password"):
            page = self.submit(page, username=person.name, password=person.password)
        return self.submit(page, accept="Yes") if page.asks_for("accept") else page

    def _request(self, method: str, url: str, form: dict[str, str] | None) -> Page:
        for _ in range(MOST_REDIRECTS):
            headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
            answer = httpx.request(method, url, data=form, headers=headers, timeout=60, trust_env=False)
            for line in answer.headers.get_list("set-cookie"):
                self._cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
            if not answer.is_redirect:
                return Page(url, answer.text, _forms(answer.text))
            method, url, form = "GET", urljoin(url, answer.headers["location"]), None
        raise AssertionError(f"too many redirects, the last to {url}")


def _forms(text: str) -> list[Form]:
    parser = _Forms()
    parser.feed(text)
    return parser.found


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Form] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append(Form(given.get("action", "")))
        name = given.get("name")
        if tag not in ("input", "button") or not name or not self.found:
            return
        form = self.found[-1]
        form.asks.add(name)
        if tag == "input" and given.get("type", "text") not in ("submit", "checkbox", "radio"):
            form.fields[name] = given.get("value", "")
