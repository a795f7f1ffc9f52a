"""What a grant is given: finished inputs. A grant never fetches a secret, a subject token or the time itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.client_auth import ClientAuth
    from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class SubjectToken:
    """A token that says who something is (RFC 8693 1.1, RFC 7523 2.1)."""

    token: SecretValue
    token_type: str = ""
    """Its RFC 8693 3 identifier, where the resource names one."""


@dataclass(frozen=True, slots=True)
class GrantInputs:
    """Everything that one token request is made of."""

    token_endpoint: str
    issuer: str
    client: ClientAuth
    started_at: float
    """Unix seconds; lifetimes in the answer count from here (RFC 6749 5.1)."""
    scopes: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)
    username: SecretValue | None = None
    password: SecretValue | None = None
    assertion: SubjectToken | None = None
    subject: SubjectToken | None = None
    actor: SubjectToken | None = None
    requested_token_type: str = ""
    hidden: tuple[SecretValue, ...] = ()
    """What else in the request came from a Secret, such as a client id."""
    assumed_lifetime: float = 300.0
    """Seconds, when neither the answer nor the token says."""
    maximum_lifetime: float = 86400.0
    """Seconds; a longer life is cut to this."""
