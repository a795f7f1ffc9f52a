"""How a LabArchives request is signed: HMAC-SHA512 over key id, method and time, with nothing between them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class AccessKey:
    """What LabArchives gave an organization to sign with."""

    id: SecretValue
    password: SecretValue


@dataclass(frozen=True, slots=True)
class Signature:
    """What is added to the query of a signed request; as secret as the request."""

    access_key_id: str = field(repr=False)
    expires: int
    """Unix milliseconds. The server allows two minutes around it."""
    value: str = field(repr=False)

    def query(self) -> Sequence[tuple[str, str]]:
        """Return the three parameters, not yet encoded."""
        return (("akid", self.access_key_id), ("expires", str(self.expires)), ("sig", self.value))

    def url(self, address: str, parameters: Sequence[tuple[str, str]] = ()) -> str:
        """Return ``address`` with a query of ``parameters`` and the signature."""
        return f"{address}?{urlencode([*parameters, *self.query()])}"


def sign(key: AccessKey, method: str, at: float) -> Signature:
    """Return the signature of a call of ``method`` at ``at``, Unix seconds of the server's clock.

    ``method`` is the last segment of the call's path; for the login page it is the redirect URI, unencoded. No other
    parameter is signed.
    """
    return sign_at(key, method, int(at * 1000))


def sign_at(key: AccessKey, method: str, expires: int) -> Signature:
    """Return the signature for a time that is given as it is sent: Unix milliseconds."""
    message = f"{key.id.reveal()}{method}{expires}".encode()
    digest = hmac.new(key.password.reveal().encode(), message, hashlib.sha512).digest()
    return Signature(key.id.reveal(), expires, base64.b64encode(digest).decode("ascii"))
