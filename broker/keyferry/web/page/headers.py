"""The headers that keep a page to itself: no scripts, no other origin, no frames, nothing kept."""

from __future__ import annotations

from typing import Final

POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""There is no script at all. ``form-action`` also binds where Chromium lets a form's answer redirect to."""
FEATURES: Final = ("camera", "clipboard-read", "display-capture", "geolocation", "microphone", "payment", "usb")
YEAR: Final = 31536000

EVERYWHERE: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in FEATURES),
    # Not "no-referrer": with that, browsers call the origin of our own forms "null". No other origin is told anything.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}


def of(*, secure: bool, kept: bool = False) -> dict[str, str]:
    """Return the headers of an answer; ``kept`` is for what never changes under its address."""
    headers = {**EVERYWHERE, "Cache-Control": f"public, max-age={YEAR}, immutable" if kept else "no-store"}
    if secure:
        headers["Strict-Transport-Security"] = f"max-age={YEAR}"  # RFC 6797
    return headers
