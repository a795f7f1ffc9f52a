"""Tiled servers that issue no tokens themselves: an identity provider does, and Tiled believes it.

Such a session is one of OAuth in everything (RFC 8628, RFC 6749 6, RFC 7009), and its refresh tokens may be good once;
what is Tiled's is that the server says where all of that is done, and that API keys are minted as anywhere else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.client_auth import NoAuthentication
from keyferry.engine.attempt import Attempt
from keyferry.grants.inputs import GrantInputs
from keyferry.providers.metadata import ProviderMetadata
from keyferry.spec.provider import OAuthProvider

if TYPE_CHECKING:
    from keyferry.engine.apply import Context
    from keyferry.engine.job import Job
    from keyferry.providers.tiled import IdentityProvider
    from keyferry.record import Record

TERMS: Final = OAuthProvider.model_construct()
"""How tokens of such a provider live: as is assumed of one of which nothing is said."""


def is_upstream(record: Record | None) -> bool:
    """Tell whether a record of a Tiled identity holds a session at an identity provider: only that has a client."""
    return record is not None and record.revocation is not None and record.revocation.client is not None


def upstream_context(context: Context, provider: IdentityProvider) -> Context:
    """Return the context of a session at ``provider``, with its client in the order to revoke."""
    client = {"id": provider.client_id, "authentication": "None"}
    return replace(context, revocation=replace(context.revocation, client=client))


def upstream_attempt(job: Job, provider: IdentityProvider, context: Context) -> Attempt:
    """Return all that one try at the identity provider's endpoints needs."""
    inputs = upstream_inputs(provider, job.ports.clock.now())
    metadata = ProviderMetadata(
        token_endpoint=provider.token_endpoint,
        device_authorization_endpoint=provider.device_authorization_endpoint,
    )
    return Attempt(job, TERMS, metadata, inputs.client, inputs, context)


def upstream_inputs(provider: IdentityProvider, now: float) -> GrantInputs:
    """Return what a request to the identity provider is made of, at ``now`` (Unix seconds)."""
    return GrantInputs(
        token_endpoint=provider.token_endpoint,
        issuer="",
        client=NoAuthentication(provider.client_id),
        started_at=now,
        scopes=provider.scopes,
        assumed_lifetime=TERMS.lifetime.assumed,
        maximum_lifetime=TERMS.lifetime.maximum,
    )
