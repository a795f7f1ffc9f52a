"""What the client shows when it revokes, kept with what is to be revoked: a namespace takes its Secrets with it.

A namespace that is deleted takes its identities, its provider and the client's secret at once, in any order, and may do
so while nobody is listening. RFC 7009 (2.1) wants the client to authenticate all the same, so each exchange keeps what
it was made with. It is used for nothing but the revocation, and only where the Secret itself is not there any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from keyferry.errors import CredentialError, Reason
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from keyferry.engine.ports import CredentialSource

LARGEST: Final = 32 * 1024
"""Bytes of all that is kept of one identity: certificates of a whole public key infrastructure are not."""


@final
class Keepsakes:
    """Implements ``keyferry.engine.ports.CredentialSource``: hands on what another says, and takes note of it."""

    def __init__(self, source: CredentialSource) -> None:
        self._source = source
        self.restricts_hosts = source.restricts_hosts
        self._kept: dict[str, SecretValue] = {}
        self._size = 0

    def all(self) -> tuple[tuple[str, SecretValue], ...]:
        """Return what was handed on, by where it came from."""
        return tuple(sorted(self._kept.items()))

    async def secret(self, namespace: str, name: str, key: str, hosts: frozenset[str]) -> bytes:
        """Return one key of a Secret."""
        content = await self._source.secret(namespace, name, key, hosts)
        self._keep(_secret(namespace, name, key), content)
        return content

    async def config(self, namespace: str, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap."""
        content = await self._source.config(namespace, name, key)
        self._keep(_config(namespace, name, key), content)
        return content

    async def service_account_token(
        self, namespace: str, name: str, audience: str, expiration: float, hosts: frozenset[str]
    ) -> SecretValue:
        """Return a token of a service account: its last one is good for some minutes after its account is gone."""
        token = await self._source.service_account_token(namespace, name, audience, expiration, hosts)
        self._keep(_account(namespace, name, audience), token.reveal().encode())
        return token

    def _keep(self, place: str, content: bytes) -> None:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return  # no credential that is used here is anything but text
        self._size += len(content)
        if self._size <= LARGEST:
            self._kept[place] = SecretValue(text)


@final
class Remembered:
    """Implements ``keyferry.engine.ports.CredentialSource``: what was kept answers for what is not there any more."""

    def __init__(self, source: CredentialSource, kept: tuple[tuple[str, SecretValue], ...]) -> None:
        self._source = source
        self.restricts_hosts = source.restricts_hosts
        self._kept = dict(kept)

    async def secret(self, namespace: str, name: str, key: str, hosts: frozenset[str]) -> bytes:
        """Return one key of a Secret, as it is or as it was."""
        try:
            return await self._source.secret(namespace, name, key, hosts)
        except CredentialError as error:
            return self._instead(_secret(namespace, name, key), error).reveal().encode()

    async def config(self, namespace: str, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap, as it is or as it was."""
        try:
            return await self._source.config(namespace, name, key)
        except CredentialError as error:
            return self._instead(_config(namespace, name, key), error).reveal().encode()

    async def service_account_token(
        self, namespace: str, name: str, audience: str, expiration: float, hosts: frozenset[str]
    ) -> SecretValue:
        """Return a token of a service account, the last one where there is no other."""
        try:
            return await self._source.service_account_token(namespace, name, audience, expiration, hosts)
        except CredentialError as error:
            return self._instead(_account(namespace, name, audience), error)

    def _instead(self, place: str, error: CredentialError) -> SecretValue:
        """Return what was kept; raise the error where its owner said no, or where nothing was."""
        if error.reason is not Reason.SECRET_NOT_FOUND or place not in self._kept:
            raise error
        return self._kept[place]


def _secret(namespace: str, name: str, key: str) -> str:
    return f"secret/{namespace}/{name}/{key}"


def _config(namespace: str, name: str, key: str) -> str:
    return f"config/{namespace}/{name}/{key}"


def _account(namespace: str, name: str, audience: str) -> str:
    return f"account/{namespace}/{name}/{audience}"
