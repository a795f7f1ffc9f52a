"""Ends what a Tiled identity that is gone has left: its API keys, then its session, wherever that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.client_auth import NoAuthentication
from keyferry.engine.tiled_upstream import is_upstream, upstream_inputs
from keyferry.errors import Reason, ResourceError
from keyferry.grants.rfc6749_refresh_token import refresh as refresh_upstream
from keyferry.io.http import drive
from keyferry.providers.revocation import find_revocation_endpoint, revoke
from keyferry.providers.tiled import delete_api_key, refresh, revoke_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyferry.io.clock import Clock
    from keyferry.model import Exchange, HttpRequest, HttpResponse
    from keyferry.providers.tiled import IdentityProvider, TiledMetadata
    from keyferry.record import Record
    from keyferry.secret import SecretValue

    Send = Callable[[HttpRequest], Awaitable[HttpResponse]]


async def revoke_tiled(record: Record, metadata: TiledMetadata, send: Send, clock: Clock) -> bool:
    """Delete the API keys, for which a login is needed, then end the session; tell whether there was anything.

    Raises KeyferryErrors.
    """
    if record.refresh_token is None or record.refresh_ended:
        if record.api_keys:
            raise ResourceError(
                f"the session is over, and with it the way to the API keys {', '.join(record.api_keys)}",
                reason=Reason.APPROVAL_REQUIRED,
            )
        return False
    _check_place(record, metadata)
    session, refresh_token = record.login or record.token, record.refresh_token
    if record.api_keys:
        if session is None or not session.access_token or session.expires_at <= clock.now():
            session = await drive(_refresh(metadata, refresh_token, clock.now()), send)
            refresh_token = session.refresh_token or refresh_token
        for key in record.api_keys:
            await drive(delete_api_key(metadata, session.access_token, key, now=clock.now()), send)
    if metadata.identity_provider is not None:
        issuer = session.issuer if session is not None else ""
        await _log_out(metadata.identity_provider, issuer, refresh_token, send, clock)
    else:
        expired = record.refresh_expires_at is not None and record.refresh_expires_at <= clock.now()
        await drive(revoke_session(metadata, refresh_token, expired=expired, now=clock.now()), send)
    return True


def _check_place(record: Record, metadata: TiledMetadata) -> None:
    """Raise ResourceError where the session's credentials would go elsewhere than where they came from."""
    hosts_changed = record.binding is not None and metadata.hosts != frozenset(record.binding.hosts)
    if hosts_changed or is_upstream(record) != (metadata.identity_provider is not None):
        raise ResourceError(
            "the server's logins lie elsewhere than when the session began, so nothing was sent",
            reason=Reason.PROVIDER_CHANGED,
        )


def _refresh(metadata: TiledMetadata, token: SecretValue, now: float) -> Exchange:
    provider = metadata.identity_provider
    if provider is None:
        return refresh(metadata, token, now)
    return refresh_upstream(upstream_inputs(provider, now), token, one_time=True)


async def _log_out(
    provider: IdentityProvider, issuer: str, refresh_token: SecretValue, send: Send, clock: Clock
) -> None:
    """End a session at an identity provider (RFC 7009)."""
    endpoint = await drive(find_revocation_endpoint(issuer, provider.token_endpoint), send)
    if not endpoint:
        raise ResourceError("the identity provider has no revocation endpoint", reason=Reason.GRANT_NOT_SUPPORTED)
    client = NoAuthentication(provider.client_id)
    await drive(revoke(endpoint, client, refresh_token, "refresh_token", clock.now()), send)
