"""What the tests of the demo issuer's core share: a clock, and requests to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyferry.demo.wire import FORM, FormRequest, HttpRequest, OAuthError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.demo.token_service import TokenService

ISSUER = "https://auth.example.org"


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def form(parameters: Mapping[str, str], **request: Any) -> FormRequest:
    return FormRequest.parse(
        HttpRequest("POST", "/token", urlencode(parameters).encode(), content_type=FORM, **request)
    )


def ask(service: TokenService, grant: str, **parameters: str) -> dict[str, Any]:
    return service.token(form({"client_id": "bot", "client_secret": "new", "grant_type": grant, **parameters}))


def refresh(service: TokenService, token: str, **parameters: str) -> dict[str, Any]:
    return ask(service, "refresh_token", refresh_token=token, **parameters)


def introspect(service: TokenService, token: str) -> dict[str, Any]:
    return service.introspect(form({"client_id": "bot", "client_secret": "new", "token": token}))


def refused(code: str, service: TokenService, grant: str, **parameters: str) -> OAuthError:
    with pytest.raises(OAuthError) as caught:
        ask(service, grant, **parameters)
    assert caught.value.code == code
    return caught.value


def key_pair() -> tuple[ec.EllipticCurvePrivateKey, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def assertion(key: ec.EllipticCurvePrivateKey, clock: Clock, **claims: Any) -> str:
    return jwt.encode({"aud": ISSUER, "exp": int(clock.now + 60), "sub": "job", **claims}, key, algorithm="ES256")
