"""The demo's resource file and secrets, as a person would have written them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.demo.clients import AuthMethod, Grant
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.demo.issuer import DemoAccount, DemoIssuer


NAMESPACE: Final = "default"

_PROVIDER: Final = """\
# Where tokens come from: an authorization server, known by its issuer. The rest is discovered.
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {{name: demo}}
spec:
  type: OAuth
  oauth: {{issuer: "{issuer}"}}
"""
_IDENTITY: Final = """\
---
# {comment}
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {name}}}
spec:
  providerRef: {{name: demo}}
  client:
    id: {client_id}
    authentication: {authentication}
    secretsFrom: [{{secretKeyRef: {{name: {name}, key: client_secret}}}}]
  grant:
    {grant}
  scopes: [{scopes}]
"""
_AUTHENTICATION: Final = {AuthMethod.BASIC: "ClientSecretBasic", AuthMethod.POST: "ClientSecretPost"}
_COMMENTS: Final = {
    Grant.CLIENT_CREDENTIALS: "A service that speaks for itself: its client secret is all it needs (RFC 6749 4.4).",
    Grant.REFRESH_TOKEN: "A login that a person made once. Each refresh token is good once, so none may be lost"
    " (RFC 6749 6).",
    Grant.DEVICE_CODE: "A person approves once, with a code on whatever screen they have; then the session lives on"
    " (RFC 8628).",
    Grant.PASSWORD: "An account with a password: one login, and refresh tokens from then on (RFC 6749 4.3).",
}
_GRANTS: Final = {
    Grant.CLIENT_CREDENTIALS: "type: ClientCredentials",
    Grant.REFRESH_TOKEN: """type: RefreshToken
    refreshToken: {{from: {{secretKeyRef: {{name: {name}, key: refresh_token}}}}}}""",
    Grant.DEVICE_CODE: "type: DeviceCode",
    Grant.PASSWORD: """type: Password
    password:
      usernameFrom: {{secretKeyRef: {{name: {name}, key: username}}}}
      passwordFrom: {{secretKeyRef: {{name: {name}, key: password}}}}""",
}


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Where the demo's files are; all of them under one private directory."""

    resources: Path
    secrets: Path
    out: Path
    state: Path


def resource_text(issuer: str, accounts: tuple[DemoAccount, ...]) -> str:
    """Return the resources as YAML: one provider, and an identity for each account. No secret is in it."""
    return _PROVIDER.format(issuer=issuer) + "".join(
        _IDENTITY.format(
            comment=_COMMENTS[account.grant],
            name=account.name,
            client_id=account.client_id,
            authentication=_AUTHENTICATION[account.authentication],
            grant=_GRANTS[account.grant].format(name=account.name),
            scopes=", ".join(account.scopes),
        )
        for account in accounts
    )


def write_files(issuer: DemoIssuer, base: Path) -> DemoFiles:
    """Write the resource file and the secrets under ``base``, readable by their owner alone. Blocks."""
    files = DemoFiles(base / "resources.yaml", base / "secrets", base / "out", base / "state")
    files.resources.write_text(resource_text(issuer.issuer, issuer.accounts), encoding="utf-8")
    for account in issuer.accounts:
        directory = files.secrets / NAMESPACE / account.name
        directory.mkdir(mode=0o700, parents=True)
        for key, secret in _secrets(account).items():
            _write_secret(directory / key, secret)
    return files


def _secrets(account: DemoAccount) -> dict[str, SecretValue]:
    given = {
        "client_secret": account.client_secret,
        "refresh_token": account.refresh_token,
        "password": account.password,
    }
    found = {key: value for key, value in given.items() if value is not None}
    if account.username is not None:
        found["username"] = SecretValue(account.username)
    return found


def _write_secret(path: Path, secret: SecretValue) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secret.reveal())
