"""How access tokens look: random text, or JSON Web Tokens (RFC 7519) in the profile of RFC 9068."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ASSERTION_ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA")
_OPAQUE_BYTES: Final = 24


class TokenFormat(StrEnum):
    """What an access token is made of; ``OPAQUE`` is the cheapest to issue."""

    OPAQUE = "opaque"
    ES256 = "ES256"
    HS256 = "HS256"


@dataclass(slots=True)
class TrustedIssuer:
    """Another issuer whose assertions are accepted (RFC 7523), with its public keys as PEM."""

    issuer: str
    public_keys: tuple[str, ...] = field(repr=False)


class Signer:
    """Signs with one EC P-256 key and one shared key, each made when first needed."""

    def __init__(self, private_key: str | None = None, shared_key: str | None = None) -> None:
        self._given_private_key = private_key
        self._given_shared_key = shared_key

    @cached_property
    def _key(self) -> ec.EllipticCurvePrivateKey:
        if self._given_private_key is None:
            return ec.generate_private_key(ec.SECP256R1())
        key = load_pem_private_key(self._given_private_key.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the signing key must be an EC key")
        return key

    @cached_property
    def shared_key(self) -> str:
        """The key of HS256 tokens (hexadecimal text)."""
        return self._given_shared_key or secrets.token_hex(32)

    @property
    def private_key(self) -> str:
        """The key of ES256 tokens as unencrypted PEM, so that a restarted issuer can go on with it."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    @cached_property
    def key_id(self) -> str:
        """The key's name in the JWKS, random so that two issuers never share one."""
        return secrets.token_hex(8)

    def sign(self, claims: Mapping[str, Any], token_format: TokenFormat, *, kind: str = "at+jwt") -> str:
        """Return the claims as a signed JWT whose ``typ`` is ``kind``; an ``OPAQUE`` token carries no claims at all."""
        if token_format is TokenFormat.OPAQUE:
            return secrets.token_urlsafe(_OPAQUE_BYTES)
        headers = {"typ": kind, "kid": self.key_id}
        if token_format is TokenFormat.HS256:
            return jwt.encode(dict(claims), self.shared_key, algorithm="HS256", headers={"typ": kind})
        return jwt.encode(dict(claims), self._key, algorithm="ES256", headers=headers)

    def jwks(self) -> dict[str, object]:
        """Return the public key set (RFC 7517 5)."""
        key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**key, "kid": self.key_id, "use": "sig", "alg": "ES256"}]}


def verify_assertion(
    assertion: str, public_keys: Iterable[str], *, issuer: str, audiences: Iterable[str], now: float
) -> dict[str, Any]:
    """Return the claims of an assertion (RFC 7523 3) that one of the keys signed, by and for whom it must be, in time.

    Raises ``jwt.PyJWTError`` where any of it does not hold. ``now`` is in seconds since the epoch.
    """
    problem: jwt.PyJWTError = jwt.InvalidKeyError("no public key is registered")
    for key in public_keys:
        try:
            claims: dict[str, Any] = jwt.decode(
                assertion,
                key,
                algorithms=ASSERTION_ALGORITHMS,
                issuer=issuer,
                audience=list(audiences),
                # The clock is injected, so the library's own look at the time is left out and done below.
                options={
                    "require": ["exp", "sub", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.PyJWTError as error:
            problem = error
        else:
            _check_times(claims, now)
            return claims
    raise problem


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    if not isinstance(claims["exp"], int | float) or claims["exp"] <= now:
        raise jwt.ExpiredSignatureError("the assertion has expired")
    starts = claims.get("nbf", 0)
    if not isinstance(starts, int | float) or starts > now:
        raise jwt.ImmatureSignatureError("the assertion is not valid yet")
