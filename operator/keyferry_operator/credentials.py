"""Credentials of the cluster: used only where their owner said so, by a label, and sent only where the owner said.

Leave to create providers and identities is thereby not leave to read, or to send away, Secrets.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import CredentialError, ExchangeError, Reason, RetryClass
from keyferry.secret import SecretValue
from keyferry_operator.client import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS
from keyferry_operator.consent import objection
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from keyferry_operator.client import Kind, KubeClient, Object

SHORTEST_TOKEN: Final = 600
"""Seconds; the API server grants no less."""

TITLES: Final = {"secret": "Secret", "serviceaccount": "ServiceAccount"}
"""From what kubectl takes to what people read."""


@final
class ClusterCredentials:
    """Implements ``keyferry.engine.ports.CredentialSource`` over the API server."""

    def __init__(
        self, client: KubeClient, *, api_audiences: frozenset[str], allow_service_account_tokens: bool
    ) -> None:
        self._client = client
        self._api_audiences = api_audiences
        self._allow_tokens = allow_service_account_tokens

    async def secret(self, namespace: str, name: str, key: str, hosts: frozenset[str]) -> bytes:
        """Return one key of a labelled Secret, for the hosts that it names."""
        found = await self._get(SECRETS, namespace, name)
        if found is None:
            raise CredentialError(
                f"Secret {namespace}/{name} is not there. Create it with the key {key!r}; Keyferry goes on by itself."
            )
        self._check(found, "secret", namespace, name, hosts)
        data = found.get("data") or {}
        if key not in data:
            raise CredentialError(f"Secret {namespace}/{name} has no key {key!r}. Add it; Keyferry goes on by itself.")
        return base64.b64decode(data[key])

    async def config(self, namespace: str, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap: CA certificates, which are no secret."""
        found = await self._get(CONFIG_MAPS, namespace, name)
        text = (found.get("data") or {}).get(key) if found is not None else None
        if text is None:
            raise CredentialError(f"ConfigMap {namespace}/{name} with key {key!r} is not there. Create it.")
        return str(text).encode()

    async def service_account_token(
        self, namespace: str, name: str, audience: str, expiration: float, hosts: frozenset[str]
    ) -> SecretValue:
        """Ask the API server for a token of a labelled ServiceAccount, never for the API server itself."""
        if not self._allow_tokens:
            raise CredentialError(
                f"ServiceAccount {namespace}/{name}: this installation does not let Keyferry ask for service account"
                " tokens (chart value serviceAccountTokens.enabled).",
                reason=Reason.PROVIDER_NOT_ALLOWED,
            )
        if audience in self._api_audiences:
            raise CredentialError(
                f"ServiceAccount {namespace}/{name}: the audience {audience!r} is the API server's own, and such a"
                " token would open the cluster. Choose one that only the provider accepts.",
                reason=Reason.HOST_NOT_ALLOWED,
            )
        account = await self._get(SERVICE_ACCOUNTS, namespace, name)
        if account is None:
            raise CredentialError(f"ServiceAccount {namespace}/{name} is not there. Create it.")
        self._check(account, "serviceaccount", namespace, name, hosts)
        body: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": max(SHORTEST_TOKEN, int(expiration))},
        }
        try:
            made = await self._client.create(SERVICE_ACCOUNTS, namespace, body, name=name, subresource="token")
        except ApiError as error:
            raise _unavailable(error) from None
        return SecretValue(made["status"]["token"])

    async def _get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._client.get(kind, namespace, name)
        except ApiError as error:
            if error.forbidden:
                raise CredentialError(
                    f"Keyferry may not read {kind.plural} in namespace {namespace}. Add the namespace to"
                    " watch.namespaces of the installation, or move the resource."
                ) from None
            raise _unavailable(error) from None

    def _check(self, found: Object, what: str, namespace: str, name: str, hosts: frozenset[str]) -> None:
        """Refuse what its owner did not label, or not for these hosts; say the line that would allow it."""
        against = objection(found["metadata"], what, namespace, name, hosts)
        if against is None:
            return
        title = f"{TITLES[what]} {namespace}/{name}"
        advice = (
            f"If it is meant to be: {against.remedy}"
            if against.remedy
            else "To present another identity's token, use identityRef."
        )
        raise CredentialError(f"{title} {against.fault}, so it was not used. {advice}", reason=against.reason)


def _unavailable(error: ApiError) -> ExchangeError:
    return ExchangeError(
        f"a credential could not be read: {error.message}. Nothing was sent; Keyferry tries again.",
        code="api_server",
        retry=RetryClass.TRANSIENT,
    )
