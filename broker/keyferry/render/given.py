"""What a format is given, and how it reads it: the token's own text is checked here before it reaches any file."""

from __future__ import annotations

import enum
import math
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keyferry.errors import PublishError, Reason, ResourceError, RetryClass

if TYPE_CHECKING:
    from keyferry.model import TokenSet
    from keyferry.secret import SecretValue
    from keyferry.spec.target import TargetFile

_PRINTABLE: Final = re.compile(r"[ -~]+")


class Delivery(enum.StrEnum):
    """Where rendered files go."""

    SECRET = "Secret"  # noqa: S105 - a place, not a secret
    """The keys of a Kubernetes Secret: one level of names, read-only where it is mounted."""
    DIRECTORY = "Directory"
    """A directory that the client may write in: of a sidecar, of ``run`` or of ``exec``."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an identity's loopback endpoints are, and what a workload presents to them."""

    url: str
    """Without a slash at the end."""
    placeholder: SecretValue
    access_key_id: str
    """The LabArchives access key id that goes with the placeholder."""


@dataclass(frozen=True, slots=True)
class RenderInput:
    """All that formats may draw on."""

    token: TokenSet
    revision: int
    """Grows by one with each renewal."""
    provider_url: str
    """The Tiled API URL where the provider is a Tiled server, else the issuer."""
    api_key: bool
    """``token.access_token`` is a Tiled API key, not a login's access token."""
    delivery: Delivery
    directory: str = ""
    """The absolute directory that the files will lie in for the client; empty where that is not known."""
    endpoint: Endpoint | None = None
    """The loopback endpoints, where they are served."""


def access_token(file: TargetFile, given: RenderInput) -> str:
    """Return the access token's text; raise ``PublishError`` where RFC 6749 (Appendix A.12) does not allow it."""
    return _printable(given.token.access_token, "access token", file)


def template_values(file: TargetFile, given: RenderInput) -> dict[str, str]:
    """Return the value of every template name that has one: ``id_token`` is left out where none was issued.

    Raises ``PublishError`` where a value holds a control character: a line end in a subject, say, would let the
    provider write lines of its own into a configuration file.
    """
    token = given.token
    values = {
        "access_token": access_token(file, given),
        "token_type": token.token_type,
        "issued_at": timestamp(token.issued_at),
        "expires_at": timestamp(token.expires_at),
        "expires_at_unix": str(math.floor(token.expires_at)),
        "scope": token.scope,
        "issuer": token.issuer or given.provider_url,
        "subject": token.subject,
        "revision": str(given.revision),
    }
    if token.id_token is not None:
        values["id_token"] = _printable(token.id_token, "ID token", file)
    for name, value in values.items():
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in value):
            raise _refused(file, f"the provider's {name} holds a control character")
    return values


def timestamp(seconds: float) -> str:
    """Write Unix seconds as RFC 3339 in UTC, cut to the whole second: an expiry is never told later than it is."""
    return datetime.fromtimestamp(math.floor(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def file_name(file: TargetFile) -> str:
    """Return the name that a format without fixed names needs; raise ``ResourceError`` where there is none."""
    if file.name is None:
        raise ResourceError(f"Format {file.format} in spec.target.files needs a name.")
    return file.name


def described(file: TargetFile) -> str:
    """Name a file of ``spec.target.files`` for a message."""
    return f"format {file.format}" + (f", file {file.name!r}" if file.name else "")


def _printable(secret: SecretValue, what: str, file: TargetFile) -> str:
    text = secret.reveal()
    if _PRINTABLE.fullmatch(text) is None:
        raise _refused(file, f"the {what} is empty or holds characters other than printable ASCII (RFC 6749 A.12)")
    return text


def _refused(file: TargetFile, why: str) -> PublishError:
    return PublishError(
        f"Cannot write the token ({described(file)}): {why}. The files that were published before stay as they are."
        " Ask the provider's operator for a token that HTTP headers and text files can carry.",
        reason=Reason.GRANT_REJECTED,
        retry=RetryClass.NEEDS_CONFIGURATION,
    )
