"""The page's own certificate, from files that somebody else replaces."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from keyferry.errors import CredentialError, KeyferryError
from keyferry.io.tls import ClientCertificate, build_server_context, present
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

log = logging.getLogger(__name__)

LOOK: Final = 60.0
"""Seconds between two looks at the files."""


class ServingCertificate:
    """A TLS context that shows what lies in two PEM files; no connection is dropped for a new certificate."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read both files. Raises CredentialError where they cannot be used."""
        self._files = certificate, key
        self._shown = self._read()
        self.context: Final[ssl.SSLContext] = build_server_context(self._shown)
        """To serve with; the same for good."""

    def refresh(self) -> None:
        """Show what is in the files now. Raises CredentialError where that cannot be used; then the old one stays."""
        found = self._read()
        if found != self._shown:
            build_server_context(found)  # tried apart first: a context that took half of a pair is lost
            present(self.context, found, what="the serving certificate")
            self._shown = found

    async def watch(self, pause: float = LOOK) -> None:
        """Keep it up to date until cancelled."""
        while True:
            await asyncio.sleep(pause)
            try:
                await asyncio.to_thread(self.refresh)
            except KeyferryError as error:
                log.warning("the page keeps its old certificate: %s", error)

    def _read(self) -> ClientCertificate:
        certificate, key = self._files
        try:
            return ClientCertificate(certificate.read_text("utf-8"), SecretValue(key.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise CredentialError(f"{certificate} or {key} cannot be read: {why}") from None
