"""Whose token it is: the claims of a JWT that came to us straight from its issuer.

The signature is not checked, for the token came over TLS from the endpoint of the issuer itself (OpenID Connect Core
3.1.3.7 (6)). Never use this on a token that came any other way.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.grants.document import Document, read_object, strings

if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_CLAIMS: Final[Mapping[str, object]] = {}
_PARTS: Final = 3  # of a signed JWT (RFC 7515 7.1); an encrypted one has five and says nothing to us
_LONGEST: Final = 255  # OpenID Connect Core 2, of `sub`


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a token, as far as it says."""

    subject: str = ""
    email: str = ""
    """Only where the issuer calls it verified."""
    issuer: str = ""


def unverified_claims(token: str) -> Document:
    """Return the claims of a signed JWT; none where ``token`` is anything else."""
    parts = token.split(".")
    if len(parts) != _PARTS or not token.isascii():
        return _NO_CLAIMS
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
    except (binascii.Error, ValueError):
        return _NO_CLAIMS
    return read_object(payload) or _NO_CLAIMS


def read_holder(*, id_token: str, access_token: str, issuer: str, client_id: str) -> Holder:
    """Say who the tokens are about: the ID token if it is one for us from ``issuer``, else the access token.

    An ID token of another issuer or for another client is not believed (OpenID Connect Core 3.1.3.7 (2) and (3)).
    """
    claims = unverified_claims(id_token)
    if not _is_for_us(claims, issuer=issuer, client_id=client_id):
        claims = unverified_claims(access_token)
    verified = claims.get("email_verified") is True
    return Holder(
        subject=_claim(claims, "sub"),
        email=_claim(claims, "email") if verified else "",
        issuer=_claim(claims, "iss") or issuer,
    )


def _is_for_us(claims: Document, *, issuer: str, client_id: str) -> bool:
    if not _claim(claims, "sub"):
        return False
    if issuer and claims.get("iss") != issuer:
        return False
    audience = claims.get("aud")
    return not client_id or audience == client_id or client_id in strings(audience)


def _claim(claims: Document, name: str) -> str:
    value = claims.get(name)
    usable = isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()
    return str(value) if usable else ""
