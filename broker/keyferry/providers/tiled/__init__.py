"""Tiled: a data service with sessions and API keys of its own (HTTP API ``/api/v1``; verified against 0.2.20).

It speaks password logins as RFC 6749 4.3 does and little else of OAuth: refreshing and revoking take JSON, errors are
``{"detail": …}``, and a 401 may mean a lapsed token, a lapsed session or a scope that the user does not have. Refresh
tokens are sliding and not single-use: the old one works until its own expiry. Logging in again to renew is wrong,
for each login is a session that counts until its maximum age, even when it is revoked.
"""

from __future__ import annotations

from keyferry.providers.tiled.device import authorize_device, poll_device
from keyferry.providers.tiled.keys import (
    ApiKey,
    ApiKeyInfo,
    Principal,
    SessionInfo,
    delete_api_key,
    mint_api_key,
    whoami,
)
from keyferry.providers.tiled.metadata import IdentityProvider, TiledMetadata, api_uri, discover, token_directory_name
from keyferry.providers.tiled.session import login, refresh, revoke_session, session_id

__all__ = [
    "ApiKey",
    "ApiKeyInfo",
    "IdentityProvider",
    "Principal",
    "SessionInfo",
    "TiledMetadata",
    "api_uri",
    "authorize_device",
    "delete_api_key",
    "discover",
    "login",
    "mint_api_key",
    "poll_device",
    "refresh",
    "revoke_session",
    "session_id",
    "token_directory_name",
    "whoami",
]
