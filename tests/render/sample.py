"""A token set to render, for all tests of formats."""

from __future__ import annotations

from keyferry.model import TokenSet
from keyferry.render import Delivery, Endpoint, RenderInput
from keyferry.secret import SecretValue

TOKEN = "eyJhbGciOi.J9-canary_7f3a.sig~+/="
ID_TOKEN = "eyJpZCI6.MX0.c2ln"


def token_set(
    access_token: str = TOKEN,
    *,
    id_token: str | None = ID_TOKEN,
    subject: str = "nightly-bot",
    issuer: str = "https://auth.example.org/realms/aiod",
) -> TokenSet:
    return TokenSet(
        access_token=SecretValue(access_token),
        token_type="Bearer",
        issued_at=1_790_000_000.9,
        expires_at=1_790_003_600.9,
        scope="openid read",
        id_token=None if id_token is None else SecretValue(id_token),
        subject=subject,
        issuer=issuer,
    )


def given(
    token: TokenSet | None = None,
    *,
    provider_url: str = "https://Example.org:443/api/v1",
    api_key: bool = False,
    delivery: Delivery = Delivery.DIRECTORY,
    directory: str = "",
    endpoint: Endpoint | None = None,
) -> RenderInput:
    return RenderInput(
        token=token or token_set(),
        revision=7,
        provider_url=provider_url,
        api_key=api_key,
        delivery=delivery,
        directory=directory,
        endpoint=endpoint,
    )
