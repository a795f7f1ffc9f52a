"""Keeps what a `TokenService` remembers in a file, so that an issuer's process can end and start again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from keyferry.demo.clients import Client  # noqa: TC001 -- pydantic reads the annotations
from keyferry.demo.refresh_tokens import Family, Presentation, RefreshPolicy, RefreshToken, RefreshTokens
from keyferry.demo.signing import Signer, TrustedIssuer
from keyferry.demo.state import IssuedToken, Settings, User  # noqa: TC001 -- pydantic reads the annotations

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.demo.token_service import TokenService


@dataclass
class _Token:
    """A refresh token with names in place of references."""

    value: str
    family: str
    issued_at: float
    expires_at: float | None
    successors: list[str]
    presentations: list[Presentation]


@dataclass
class _State:
    issuer: str
    settings: Settings
    policy: RefreshPolicy
    private_key: str
    shared_key: str
    clients: list[Client] = field(default_factory=list)
    users: list[User] = field(default_factory=list)
    trusted: list[TrustedIssuer] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    tokens: list[_Token] = field(default_factory=list)
    unknown: dict[str, list[Presentation]] = field(default_factory=dict)
    issued: list[IssuedToken] = field(default_factory=list)


_STATE = TypeAdapter(_State)


def save(service: TokenService, path: Path) -> None:
    """Write all that a service remembers, in place of what the file held."""
    tokens = service.refresh_tokens
    state = _State(
        service.issuer,
        service.settings,
        tokens.policy,
        service.signer.private_key,
        service.signer.shared_key,
        list(service.clients),
        list(service.users.values()),
        list(service.trusted.values()),
        list(tokens.families.values()),
        [
            _Token(
                token.value,
                token.family.family_id,
                token.issued_at,
                token.expires_at,
                [successor.value for successor in token.successors],
                token.presentations,
            )
            for token in tokens.tokens.values()
        ],
        tokens.unknown,
        list(service.issued),
    )
    temporary = path.with_suffix(".new")
    temporary.write_bytes(_STATE.dump_json(state))
    temporary.replace(path)


def load(service: TokenService, path: Path) -> None:
    """Restore a service as it was saved; a file that is not there leaves it as it is."""
    if not path.exists():
        return
    state = _STATE.validate_json(path.read_bytes())
    service.issuer = state.issuer
    service.settings = state.settings
    service.signer = Signer(state.private_key, state.shared_key)
    for client in state.clients:
        service.clients.add(client)
    for user in state.users:
        service.add_user(user)
    for issuer in state.trusted:
        service.trust(issuer)
    _load_refresh_tokens(service.refresh_tokens, state)
    for issued in state.issued:
        service.issued.append(issued)
        service.access_tokens[issued.value] = issued


def _load_refresh_tokens(tokens: RefreshTokens, state: _State) -> None:
    tokens.policy = state.policy
    tokens.families = {family.family_id: family for family in state.families}
    tokens.unknown = state.unknown
    tokens.tokens = {
        kept.value: RefreshToken(
            kept.value,
            tokens.families[kept.family],
            kept.issued_at,
            kept.expires_at,
            presentations=kept.presentations,
        )
        for kept in state.tokens
    }
    for kept in state.tokens:
        tokens.tokens[kept.value].successors = [tokens.tokens[value] for value in kept.successors]
