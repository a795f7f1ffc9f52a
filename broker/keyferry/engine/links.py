"""Addresses on the approval page: links that nobody can guess, and where logins are sent back to."""

from __future__ import annotations

import secrets
import uuid
from typing import TYPE_CHECKING, Final

from keyferry.approval import Link
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.model import ObjectKey
    from keyferry.spec.identity import ProviderKind
    from keyferry.spec.resources import ProviderResource

ENTROPY: Final = 32
"""Bytes of a link: 256 bits."""


class Links:
    """Makes the links of new questions, where there is a page."""

    def __init__(self, page_url: str, digest_key: bytes, lifetime: float) -> None:
        """``lifetime`` is in seconds."""
        self.page_url = page_url.rstrip("/")
        self._digest_key = digest_key
        self._lifetime = lifetime

    def of(self, before: Link | None, now: float, *, renew: bool) -> Link | None:
        """Return the link of a question that is asked now; None where there is no page.

        A question that takes another's place keeps its link, while that lasts. With ``renew`` it lasts for a whole
        life from now on, since it was not whoever has the link that asked for it.
        """
        if not self.page_url:
            return None
        if before is None or now >= before.expires_at:
            secret = SecretValue(secrets.token_urlsafe(ENTROPY))
            return Link(secret, self.digest(secret), now + self._lifetime)
        return Link(before.secret, before.digest, now + self._lifetime) if renew else before

    def digest(self, secret: SecretValue) -> str:
        """Return what a link, a ``state`` or a browser's value is known by."""
        return secret.fingerprint(self._digest_key)

    def redirect_uri(self, provider: ProviderResource) -> str:
        """Return where a provider sends browsers back to: one address each, against mix-up (RFC 9700 4.4.2.2)."""
        return f"{self.page_url}/callback/{provider_uid(provider)}"


def page_address(page_url: str, link: Link) -> str:
    """Return the address of a question; empty where there is no page."""
    return f"{page_url.rstrip('/')}/approve/{link.secret.reveal()}" if page_url else ""


def provider_uid(provider: ProviderResource) -> str:
    """Return a provider's uid; one that hangs on its name alone where it has none, as on a machine."""
    return provider.uid or named_uid(provider.kind, provider.key)


def named_uid(kind: ProviderKind, key: ObjectKey) -> str:
    """Return what stands for the uid of a provider that has none: the same wherever and whenever it is declared."""
    return str(uuid.uuid5(_NAMESPACE, f"{kind.value}/{key}"))


_NAMESPACE: Final = uuid.UUID("f4a3c1de-6f1b-5a52-9b0e-6b1c9a8d2e70")
"""Of the names that `provider_uid` is made from: a redirect URI is registered once, and must stay."""
