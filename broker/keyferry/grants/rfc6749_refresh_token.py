"""Refreshing an access token (RFC 6749 6)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from keyferry.grants.answer import parse_token_answer
from keyferry.grants.request import token_request

if TYPE_CHECKING:
    from keyferry.grants.inputs import GrantInputs
    from keyferry.model import Exchange
    from keyferry.secret import SecretValue


def refresh(
    inputs: GrantInputs,
    refresh_token: SecretValue,
    *,
    one_time: bool,
    previous_scope: str = "",
    refresh_expires_at: float | None = None,
) -> Exchange:
    """Exchange a refresh token for new tokens; what is returned always has a refresh token.

    ``one_time``: the provider rotates refresh tokens, so this one is accepted once, and an unclear answer is
    `RetryClass.IN_DOUBT`. ``scope`` is not sent: the grant's own scope is meant, and a server may refuse more than
    that. Where the answer has no new refresh token the old one stays in force, and with it ``refresh_expires_at``
    (Unix seconds), what is known of its expiry, unless the answer says anew. ``previous_scope`` as in
    `parse_token_answer`.
    """
    grant = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.reveal())]
    response = yield token_request(inputs, grant, with_scope=False, one_time=one_time)
    tokens = parse_token_answer(
        response, inputs, one_time=one_time, previous_scope=previous_scope, sent=(refresh_token,)
    )
    if tokens.refresh_token is not None:
        return tokens
    return dataclasses.replace(
        tokens,
        refresh_token=refresh_token,
        refresh_expires_at=refresh_expires_at if tokens.refresh_expires_at is None else tokens.refresh_expires_at,
    )
