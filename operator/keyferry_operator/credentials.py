"""Credentials of the cluster: used only where their owner said so, by a label, and sent only where the owner said.

Leave to create providers and identities is thereby not leave to read, or to send away, Secrets.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Final, final

from keyferry.errors import CredentialError, ExchangeError, Reason, RetryClass
from keyferry.secret import SecretValue
from keyferry_operator.client import CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS
from keyferry_operator.consent import objection
from keyferry_operator.errors import ApiError
from keyferry_operator.reads import SharedReads

if TYPE_CHECKING:
    from keyferry_operator.client import Kind, KubeClient, Object

SHORTEST_TOKEN: Final = 600
"""Seconds; the API server grants no less."""
AUDIENCE_LIFE: Final = 3600.0
"""Seconds for which an audience counts as one that the API server does not accept."""

TITLES: Final = {"secret": "Secret", "serviceaccount": "ServiceAccount"}
"""From what kubectl takes to what people read."""
SHARED_FOR: Final = 1.0
"""Seconds for which what was read serves all who ask: thousands of identities use the Secret of one client. A change
that the watch tells of ends it at once; one that it does not tell of (a ServiceAccount's) is late by no more."""


@final
class ClusterCredentials:
    """Implements ``keyferry.engine.ports.CredentialSource`` over the API server."""

    restricts_hosts = True

    def __init__(
        self, client: KubeClient, *, api_audiences: frozenset[str], allow_service_account_tokens: bool
    ) -> None:
        self._client = client
        self._api_audiences = api_audiences
        self._allow_tokens = allow_service_account_tokens
        self._foreign_until: dict[str, float] = {}
        """Audiences that the API server does not accept, and until when that is believed."""
        self._reads: SharedReads[tuple[Kind, str, str], Object | None] = SharedReads(SHARED_FOR)

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
            raise _opens_cluster(namespace, name, audience)
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
        token = SecretValue(made["status"]["token"])
        if await self._is_for_api(audience, token, f"system:serviceaccount:{namespace}:{name}"):
            raise _opens_cluster(namespace, name, audience)
        return token

    async def _is_for_api(self, audience: str, token: SecretValue, user: str) -> bool:
        """Try, once an hour for each audience, whether the API server accepts such a token: its flags tell nobody."""
        now = asyncio.get_running_loop().time()
        if now < self._foreign_until.get(audience, 0.0):
            return False
        try:
            accepted = await self._client.accepts(token, user)
        except ApiError as error:
            raise _unavailable(error) from None
        if not accepted:
            self._foreign_until = {known: until for known, until in self._foreign_until.items() if until > now}
            self._foreign_until[audience] = now + AUDIENCE_LIFE
        return accepted

    def forget(self, namespace: str, name: str) -> None:
        """Read what has this name anew from now on: it changed."""
        for kind in (SECRETS, CONFIG_MAPS, SERVICE_ACCOUNTS):
            self._reads.forget((kind, namespace, name))

    async def _get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            return await self._reads.get((kind, namespace, name), lambda: self._client.get(kind, namespace, name))
        except ApiError as error:
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


def _opens_cluster(namespace: str, name: str, audience: str) -> CredentialError:
    return CredentialError(
        f"ServiceAccount {namespace}/{name}: the audience {audience!r} is the API server's own, and such a token would"
        " open the cluster, so it was not sent. Choose one that only the provider accepts.",
        reason=Reason.HOST_NOT_ALLOWED,
    )


def _unavailable(error: ApiError) -> ExchangeError:
    found = ExchangeError(
        f"a credential could not be read: {error.message}. Nothing was sent; Keyferry tries again.",
        code="api_server",
        retry=RetryClass.SUSPICIOUS if error.forbidden else RetryClass.TRANSIENT,
    )
    found.counted = True  # that is no fault of the provider's
    return found
