"""What one try at an OAuth provider's token endpoint is made of, read afresh for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyferry.engine.clients import (
    JWT_TYPE,
    client_candidates,
    hidden_id,
    subject_token,
    token_type_of,
    value,
)
from keyferry.engine.credentials import CredentialReader
from keyferry.engine.keepsakes import Keepsakes
from keyferry.frozen import replace
from keyferry.grants.inputs import GrantInputs
from keyferry.record import Binding

if TYPE_CHECKING:
    from keyferry.client_auth import ClientAuth
    from keyferry.engine.apply import Context
    from keyferry.engine.clients import IdentityTokens
    from keyferry.engine.job import Job
    from keyferry.engine.ports import Ports
    from keyferry.grants.inputs import SubjectToken
    from keyferry.providers.metadata import ProviderMetadata
    from keyferry.secret import SecretValue
    from keyferry.spec.common import Subject
    from keyferry.spec.provider import Client, OAuthProvider


@dataclass(frozen=True, slots=True)
class Attempt:
    """All that one try with one client candidate needs."""

    job: Job
    oauth: OAuthProvider
    metadata: ProviderMetadata
    client: ClientAuth
    inputs: GrantInputs
    context: Context


class Attempts:
    """Gathers clients and inputs from the resources and the credentials that they point to."""

    def __init__(self, ports: Ports, tokens: IdentityTokens) -> None:
        self._ports = ports
        self._tokens = tokens

    async def seed(self, job: Job, metadata: ProviderMetadata) -> SecretValue | None:
        """Return what a chain of refresh tokens begins with: a refresh token, or the user who logs in."""
        grant = job.spec.grant
        if grant.refresh_token is not None:
            return await value(job.reader(metadata.hosts), grant.refresh_token.from_)
        if grant.password is not None:
            return await value(job.reader(metadata.hosts), grant.password.username_from)
        return None

    async def clients(self, job: Job, oauth: OAuthProvider, metadata: ProviderMetadata) -> list[ClientAuth]:
        """Return the ways in which the client may authenticate, in order. Raises CredentialError and ResourceError."""
        own: Client | None = job.spec.client
        keepsakes = Keepsakes(self._ports.credentials)
        namespace = job.key.namespace if own is not None else job.provider.resource.key.namespace
        reader = CredentialReader(keepsakes, namespace, metadata.hosts)
        candidates = await client_candidates(own or oauth.client, reader, metadata.issuer, self._tokens, job.key)
        if self._ports.keeps_credentials:
            job.keepsakes = keepsakes.all() + job.provider.keepsakes
        return candidates

    async def attempt(self, job: Job, oauth: OAuthProvider, metadata: ProviderMetadata, client: ClientAuth) -> Attempt:
        """Return all that one try as ``client`` needs. Raises CredentialError and ResourceError."""
        spec = job.spec
        metadata = metadata.for_client(client)
        reader = job.reader(metadata.hosts)
        inputs = GrantInputs(
            token_endpoint=metadata.token_endpoint,
            issuer=metadata.issuer,
            client=client,
            started_at=self._ports.clock.now(),
            scopes=spec.scopes,
            audiences=spec.audiences,
            resources=spec.resources,
            parameters=spec.parameters,
            hidden=hidden_id(spec.client or oauth.client, [client]),
            assumed_lifetime=oauth.lifetime.assumed,
            maximum_lifetime=oauth.lifetime.maximum,
        )
        grant = spec.grant
        if grant.password is not None:
            inputs = replace(
                inputs,
                username=await value(reader, grant.password.username_from),
                password=await value(reader, grant.password.password_from),
            )
        if grant.jwt_bearer is not None:
            inputs = replace(inputs, assertion=await self._subject(job, reader, grant.jwt_bearer.assertion, JWT_TYPE))
        if grant.token_exchange is not None:
            exchange = grant.token_exchange
            subject_type = token_type_of(exchange.subject, exchange.subject_token_type)
            inputs = replace(
                inputs,
                subject=await self._subject(job, reader, exchange.subject, subject_type),
                requested_token_type=exchange.requested_token_type or "",
            )
            if exchange.actor is not None:
                actor_type = token_type_of(exchange.actor, exchange.actor_token_type)
                inputs = replace(inputs, actor=await self._subject(job, reader, exchange.actor, actor_type))
        binding = Binding(metadata.issuer, tuple(sorted(metadata.hosts)), client.client_id)
        return Attempt(job, oauth, metadata, client, inputs, job.context(binding, oauth.refresh_tokens.idle))

    async def _subject(self, job: Job, reader: CredentialReader, subject: Subject, token_type: str) -> SubjectToken:
        return await subject_token(reader, subject, token_type, self._tokens, job.key)
