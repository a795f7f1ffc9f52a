"""Who may see the overview of a ``keyferry run``: whoever can read a token in its state directory."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from keyferry.errors import PublishError, Reason, Refused, RetryClass, StoreUnavailable
from keyferry.io.files import Folder
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from keyferry.model import ObjectKey

TOKEN_NAME: Final = "viewer-token"  # noqa: S105 - the name of a file
ENTROPY: Final = 32


class LocalViewers:
    """Implements ``keyferry.engine.questions.Viewers`` with one token, kept over restarts."""

    def __init__(self, token: SecretValue) -> None:
        self._token = token

    @classmethod
    def open(cls, state: Path) -> LocalViewers:
        """Read the token of a state directory, made now where there is none. Raises StoreUnavailable."""
        try:
            with Folder.open(state) as folder:
                raw = folder.read(TOKEN_NAME)
                if not raw:
                    raw = secrets.token_urlsafe(ENTROPY).encode()
                    folder.write(TOKEN_NAME, raw)
                    folder.sync()
        except PublishError as error:
            raise StoreUnavailable(error.message) from error
        return cls(SecretValue(raw.decode("ascii", "replace").strip()))

    async def sees(self, viewer: SecretValue) -> Callable[[ObjectKey], bool]:
        """Return that everything is seen; raises Refused for another token."""
        if viewer != self._token:
            raise Refused(
                f"This token may not list identities: it is the one in the file {TOKEN_NAME} of the state directory.",
                code="not_allowed",
                reason=Reason.PROVIDER_NOT_ALLOWED,
                retry=RetryClass.NEEDS_CONFIGURATION,
            )
        return lambda _key: True
