"""Turns what there is to say into HTML. Templates and assets are read once; everything that is put in is escaped."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import jinja2
import segno
from markupsafe import Markup

from keyferry.question import Stage
from keyferry.web.page import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyferry.question import Overview, Question

TYPES: Final = {".css": "text/css", ".svg": "image/svg+xml"}
GOOD: Final = frozenset({"Fresh", "Renewing"})
"""States in which a workload has what it needs."""
QUIET_ZONE: Final = 3

_ADDRESS: Final = re.compile(r"https?://[!-~]{1,8000}", re.IGNORECASE)
"""What may become a link or a place to go to: no script, and nothing that ends a header."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that never changes under its name."""

    content: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Verification:
    """Where a device code is approved."""

    url: str
    host: str
    complete: bool
    """The address has the code in it."""


class Pages:
    """Every page, as text."""

    def __init__(self) -> None:
        files = resources.files("keyferry.web.page")
        self.assets: dict[str, Asset] = {}
        """By path."""
        names = {}
        for file in (files / "assets").iterdir():
            stem, dot, suffix = file.name.rpartition(".")
            if dot + suffix in TYPES:
                content = file.read_bytes()
                names[file.name] = f"/assets/{stem}.{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"
                self.assets[names[file.name]] = Asset(content, TYPES[dot + suffix])
        templates = {
            file.name: file.read_text("utf-8")
            for file in (files / "templates").iterdir()
            if file.name.endswith(".html")
        }
        self._templates = jinja2.Environment(
            loader=jinja2.DictLoader(templates),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["assets"] = names
        self._templates.filters |= {
            "moment": wording.moment,
            "short": wording.short,
            "timestamp": wording.timestamp,
            "relative": wording.relative,
            "groups": wording.groups,
        }

    def question(self, question: Question, here: str, now: float, *, refreshing: bool) -> str:
        """Show a question as it stands; ``here`` is its path."""
        verification = _verification(question) if question.stage is Stage.DEVICE else None
        return self._render(
            "question.html",
            question=question,
            here=here,
            now=now,
            refreshing=refreshing,
            verification=verification,
            qr=_qr_code(verification) if verification is not None else None,
        )

    def leaving(self, address: str) -> str:
        """Show where the browser is on its way to."""
        return self._render("leaving.html", address=address, host=host_of(address))

    def returned(self, action: str, parameters: Sequence[tuple[str, str]]) -> str:
        """Show the form that carries on what a provider sent the browser back with."""
        return self._render("returned.html", action=action, parameters=parameters)

    def problem(self, heading: str, message: str, advice: str = "", back: str = "") -> str:
        """Say what did not work."""
        return self._render("problem.html", heading=heading, message=message, advice=advice, back=back)

    def entry(self, hint: str, message: str = "") -> str:
        """Ask for the token of somebody who may see the list."""
        return self._render("entry.html", hint=hint, message=message)

    def overview(self, identities: Sequence[Overview], now: float) -> str:
        """Show the list."""
        return self._render("overview.html", identities=identities, now=now, good=GOOD)

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)


def host_of(address: str) -> str:
    """Return the host of a URL, with its port where that is named, and without what may stand before an ``@``.

    Empty where a browser must not be sent there.
    """
    if _ADDRESS.fullmatch(address) is None:
        return ""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return ""
    host = parts.hostname or ""
    return f"{host}:{port}" if host and port is not None else host


def _verification(question: Question) -> Verification | None:
    device = question.device
    if device is None:
        return None
    complete = bool(host_of(device.verification_uri_complete))
    url = device.verification_uri_complete if complete else device.verification_uri
    host = host_of(url)
    return Verification(url, host, complete) if host else None


def _qr_code(verification: Verification) -> Markup | None:
    """Return the address as a QR code (ISO/IEC 18004), black on white in dark mode too, for scanners' sake."""
    out = io.BytesIO()
    try:
        code = segno.make(verification.url, micro=False, error="m")
    except segno.DataOverflowError:
        return None  # more than any QR code holds
    code.save(
        out,
        kind="svg",
        xmldecl=False,
        svgns=False,
        omitsize=True,
        border=QUIET_ZONE,
        dark="#000",
        light="#fff",
        svgclass=None,
        lineclass=None,
    )
    drawn = out.getvalue().decode().strip()
    label = Markup('<svg role="img" aria-label="QR code of the address at {}"').format(verification.host)
    return label + Markup(drawn.removeprefix("<svg"))  # noqa: S704 - segno writes numbers alone
