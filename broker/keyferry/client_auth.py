"""How a client proves to a provider who it is (RFC 6749 2.3, RFC 7523 2.2, RFC 8705).

A method of authentication adds to a form and to headers that are being built; it sends nothing and reads no clock.
Which method is used is what the resource says. It is never probed: a second method that is tried after a refusal
would show one secret to two places, and servers lock clients for it.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from urllib.parse import quote_plus

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keyferry.errors import CredentialError, Reason

if TYPE_CHECKING:
    from keyferry.secret import SecretValue

JWT_BEARER_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 2.2."""

ASSERTION_LIFETIME: Final = 60
"""Seconds. Long enough for a slow network and a clock that is a little off, short enough to be of no use to a thief."""

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""What `PrivateKeyJwt` can sign with (RFC 7518 3.1, RFC 8037 3.1)."""

_SMALLEST_RSA_KEY: Final = 2048  # RFC 7518 3.3

PrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey


class ClientAuth(Protocol):
    """One client and its way of authenticating."""

    @property
    def client_id(self) -> str:
        """The client's identifier at the provider (RFC 6749 2.2)."""

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """What must be cut out of anything that the provider says."""

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:
        """Add what authenticates the client to a request to ``endpoint`` that is begun at ``now`` (Unix seconds).

        Raises `CredentialError` if the credential cannot be sent.
        """


@dataclass(frozen=True, slots=True)
class ClientSecretBasic:
    """``client_secret_basic``: HTTP Basic over the form-encoded id and secret (RFC 6749 2.3.1).

    The encoding before base64 is easily forgotten; without it a secret with ``%``, ``+`` or ``:`` is another secret.
    """

    client_id: str
    client_secret: SecretValue

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """Return the client secret."""
        return (self.client_secret,)

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:  # noqa: ARG002 - the Protocol's
        """Set the ``Authorization`` header; the form stays as it is, for one request shows one method (2.3)."""
        try:
            pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret.reveal())}"
        except UnicodeEncodeError:
            raise CredentialError("The client id or client secret is not text that can be sent (UTF-8).") from None
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")


@dataclass(frozen=True, slots=True)
class ClientSecretPost:
    """``client_secret_post``: id and secret in the form (RFC 6749 2.3.1)."""

    client_id: str
    client_secret: SecretValue

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """Return the client secret."""
        return (self.client_secret,)

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:  # noqa: ARG002 - the Protocol's
        """Append ``client_id`` and ``client_secret`` to the form."""
        form.append(("client_id", self.client_id))
        form.append(("client_secret", self.client_secret.reveal()))


@dataclass(frozen=True, slots=True)
class PrivateKeyJwt:
    """``private_key_jwt``: a short assertion that the client signs itself (RFC 7523 2.2 and 3).

    Make it with `load`, which checks the key once; signing then cannot fail for a reason that a person could mend.
    """

    client_id: str
    key: PrivateKey = field(repr=False)
    algorithm: str
    key_id: str = ""
    """Sent as ``kid``; empty: not sent."""
    audience: str = ""
    """Usually the issuer (draft-ietf-oauth-rfc7523bis); empty: the endpoint that the request goes to."""

    @classmethod
    def load(
        cls, client_id: str, private_key: SecretValue, *, algorithm: str, key_id: str = "", audience: str = ""
    ) -> PrivateKeyJwt:
        """Read a PEM key. Raises `CredentialError` where it is unusable or does not fit ``algorithm``."""
        key = load_private_key(private_key, algorithm)
        return cls(client_id=client_id, key=key, algorithm=algorithm, key_id=key_id, audience=audience)

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """Return nothing: no secret is sent."""
        return ()

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:  # noqa: ARG002 - the Protocol's
        """Append an assertion with a ``jti`` of its own: servers refuse one that they have seen (RFC 7523 3 (7))."""
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self.audience or endpoint,
            "jti": secrets.token_urlsafe(24),
            "iat": int(now),
            "exp": int(now) + ASSERTION_LIFETIME,
        }
        headers_of_jwt = {"kid": self.key_id} if self.key_id else None
        assertion = jwt.encode(claims, self.key, algorithm=self.algorithm, headers=headers_of_jwt)
        form.append(("client_id", self.client_id))
        form.append(("client_assertion_type", JWT_BEARER_ASSERTION))
        form.append(("client_assertion", assertion))


@dataclass(frozen=True, slots=True)
class ClientAssertion:
    """A ready assertion of an issuer that the provider trusts, such as a service account's token (RFC 7521 4.2).

    ``client_id`` may be empty, and is then not sent: the assertion's subject says who the client is. Entra ID wants it
    sent; Keycloak 26.5 refuses one that differs from the assertion's ``sub``, as a service account's name does.
    """

    client_id: str
    assertion: SecretValue
    assertion_type: str = JWT_BEARER_ASSERTION

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """Return the assertion."""
        return (self.assertion,)

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:  # noqa: ARG002 - the Protocol's
        """Append the assertion, and the id where there is one."""
        if self.client_id:
            form.append(("client_id", self.client_id))
        form.append(("client_assertion_type", self.assertion_type))
        form.append(("client_assertion", self.assertion.reveal()))


@dataclass(frozen=True, slots=True)
class TlsClientAuth:
    """``tls_client_auth``: the certificate is in the connection, the id in the form (RFC 8705 2)."""

    client_id: str

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """Return nothing: no secret is sent."""
        return ()

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:  # noqa: ARG002 - the Protocol's
        """Append ``client_id``, by which the server finds the certificate to expect."""
        form.append(("client_id", self.client_id))


@dataclass(frozen=True, slots=True)
class NoAuthentication:
    """A public client, that names itself and proves nothing (RFC 6749 2.1 and 3.2.1)."""

    client_id: str

    @property
    def secrets(self) -> tuple[SecretValue, ...]:
        """Return nothing: no secret is sent."""
        return ()

    def apply(self, form: list[tuple[str, str]], headers: dict[str, str], *, endpoint: str, now: float) -> None:  # noqa: ARG002 - the Protocol's
        """Append ``client_id``."""
        form.append(("client_id", self.client_id))


def load_private_key(pem: SecretValue, algorithm: str) -> PrivateKey:
    """Return the key in ``pem`` if ``algorithm`` can sign with it; raise `CredentialError` with the remedy if not."""
    text = pem.reveal()
    if "PRIVATE KEY-----" not in text:
        raise CredentialError(_not_a_private_key(text))
    try:
        key = load_pem_private_key(text.encode("utf-8", "replace"), password=None)
    except TypeError:
        raise CredentialError(
            "The private key is encrypted with a passphrase. Keyferry cannot ask for one: store the key without it "
            "(openssl pkcs8 -topk8 -nocrypt) and let the Secret protect it."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's own text may quote what it could not parse.
        raise CredentialError(
            "The private key is not readable: it is cut off, altered or of an unknown kind. Expected is an unencrypted "
            "PEM private key (PKCS #8, PKCS #1 or SEC 1)."
        ) from None
    problem = _misfit(key, algorithm)
    if problem or not isinstance(key, PrivateKey):
        raise CredentialError(problem, reason=Reason.INVALID_SPEC)
    return key


def _not_a_private_key(text: str) -> str:
    if "-----BEGIN CERTIFICATE-----" in text:
        return "What is given as private key is a certificate. The key that belongs to it is needed."
    if "PUBLIC KEY-----" in text:
        return "What is given as private key is a public key: it is for the provider; Keyferry needs the private one."
    return "What is given as private key is not PEM: it has no line -----BEGIN PRIVATE KEY-----."


def _misfit(key: object, algorithm: str) -> str:
    """Say why ``key`` cannot sign with ``algorithm``, or nothing where it can."""
    fits, needed = {
        "RS256": (isinstance(key, RSAPrivateKey), "an RSA key"),
        "ES256": (
            isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1),
            "a key on the curve P-256",
        ),
        "EdDSA": (isinstance(key, (Ed25519PrivateKey, Ed448PrivateKey)), "an Ed25519 or Ed448 key"),
    }.get(algorithm, (False, ""))
    if not needed:
        return f"Keyferry cannot sign with the algorithm it is told to use; it knows {', '.join(ALGORITHMS)}."
    if not fits:
        return f"Algorithm {algorithm} needs {needed}; the private key given is {_kind(key)}."
    if isinstance(key, RSAPrivateKey) and key.key_size < _SMALLEST_RSA_KEY:
        return f"Algorithm RS256 needs an RSA key of 2048 bits or more (RFC 7518 3.3); this one has {key.key_size}."
    return ""


def _kind(key: object) -> str:
    if isinstance(key, RSAPrivateKey):
        return f"an RSA key of {key.key_size} bits"
    if isinstance(key, EllipticCurvePrivateKey):
        return f"an elliptic-curve key on {key.curve.name}"
    if isinstance(key, (Ed25519PrivateKey, Ed448PrivateKey)):
        return "an Edwards-curve key"
    return "of another kind"
