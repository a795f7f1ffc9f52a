from __future__ import annotations

import base64
from urllib.parse import unquote_plus

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from keyferry.client_auth import (
    JWT_BEARER_ASSERTION,
    ClientAssertion,
    ClientAuth,
    ClientSecretBasic,
    ClientSecretPost,
    NoAuthentication,
    PrivateKey,
    PrivateKeyJwt,
    TlsClientAuth,
)
from keyferry.errors import CredentialError, Reason
from keyferry.secret import SecretValue

NOW = 1_800_000_000.5
ENDPOINT = "https://auth.example.org/token"
RSA = rsa.generate_private_key(65537, 2048)
SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused
OTHER = dsa.generate_private_key(1024)  # noqa: S505 - to be refused
P256 = ec.generate_private_key(ec.SECP256R1())


def pem(
    key: PrivateKey | dsa.DSAPrivateKey, form: PrivateFormat = PrivateFormat.PKCS8, password: str = ""
) -> SecretValue:
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return SecretValue(key.private_bytes(Encoding.PEM, form, encryption).decode())


def applied(client: ClientAuth) -> tuple[list[tuple[str, str]], dict[str, str]]:
    form: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    client.apply(form, headers, endpoint=ENDPOINT, now=NOW)
    return form, headers


@pytest.mark.parametrize("secret", ["hush", "100% + a:b/c", "ümlaut", "", "~*-._"])
def test_basic_encodes_before_base64(secret: str) -> None:
    form, headers = applied(ClientSecretBasic("a bot:1", SecretValue(secret)))
    assert form == []
    scheme, _, credentials = headers["Authorization"].partition(" ")
    name, _, given = base64.b64decode(credentials, validate=True).decode("ascii").partition(":")
    assert scheme == "Basic"
    assert (unquote_plus(name), unquote_plus(given)) == ("a bot:1", secret)


def test_basic_refuses_what_is_no_text() -> None:
    with pytest.raises(CredentialError):
        applied(ClientSecretBasic("bot", SecretValue("\udcff")))


def test_post() -> None:
    assert applied(ClientSecretPost("bot", SecretValue("hush"))) == (
        [("client_id", "bot"), ("client_secret", "hush")],
        {},
    )


@pytest.mark.parametrize("client", [TlsClientAuth("bot"), NoAuthentication("bot")])
def test_clients_that_only_name_themselves(client: ClientAuth) -> None:
    assert applied(client) == ([("client_id", "bot")], {})


def test_a_ready_assertion() -> None:
    assert applied(ClientAssertion("bot", SecretValue("a.b.c")))[0] == [
        ("client_id", "bot"),
        ("client_assertion_type", JWT_BEARER_ASSERTION),
        ("client_assertion", "a.b.c"),
    ]


def test_an_assertion_may_name_the_client_alone() -> None:
    assert applied(ClientAssertion("", SecretValue("a.b.c"), "urn:example:spiffe"))[0] == [
        ("client_assertion_type", "urn:example:spiffe"),
        ("client_assertion", "a.b.c"),
    ]


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSA, "RS256"),
        (P256, "ES256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        (ed448.Ed448PrivateKey.generate(), "EdDSA"),
    ],
)
def test_a_signed_assertion(key: PrivateKey, algorithm: str) -> None:
    client = PrivateKeyJwt.load(
        "bot", pem(key), algorithm=algorithm, key_id="k1", audience="https://issuer.example.org"
    )
    form, headers = applied(client)
    assert headers == {}
    assert form[:2] == [("client_id", "bot"), ("client_assertion_type", JWT_BEARER_ASSERTION)]
    assertion = dict(form)["client_assertion"]
    claims = jwt.decode(
        assertion,
        key.public_key(),
        algorithms=[algorithm],
        audience="https://issuer.example.org",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert (claims["iss"], claims["sub"]) == ("bot", "bot")
    assert (claims["iat"], claims["exp"]) == (int(NOW), int(NOW) + 60)
    assert jwt.get_unverified_header(assertion)["kid"] == "k1"


def test_each_assertion_is_new_and_meant_for_the_endpoint_by_default() -> None:
    client = PrivateKeyJwt.load("bot", pem(RSA), algorithm="RS256")
    first, second = (
        jwt.decode(dict(applied(client)[0])["client_assertion"], options={"verify_signature": False}) for _ in range(2)
    )
    assert first["jti"] != second["jti"]
    assert first["aud"] == ENDPOINT
    assert "kid" not in jwt.get_unverified_header(dict(applied(client)[0])["client_assertion"])


@pytest.mark.parametrize(
    "key", [pem(RSA, PrivateFormat.TraditionalOpenSSL), SecretValue("# comment\n" + pem(RSA).reveal())]
)
def test_other_spellings_of_a_key(key: SecretValue) -> None:
    assert PrivateKeyJwt.load("bot", key, algorithm="RS256").algorithm == "RS256"


PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (SecretValue(""), "not PEM"),
        (SecretValue("hello"), "not PEM"),
        (SecretValue(PUBLIC), "public key"),
        (SecretValue("-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"), "certificate"),
        (SecretValue(pem(RSA).reveal()[:300]), "not readable"),
        (SecretValue("-----BEGIN PRIVATE KEY-----\nbm8=\n-----END PRIVATE KEY-----\n"), "not readable"),
        (SecretValue("-----BEGIN PRIVATE KEY-----\n\udcff\n-----END PRIVATE KEY-----\n"), "not readable"),
        (pem(RSA, password="x"), "passphrase"),
        (pem(RSA, PrivateFormat.TraditionalOpenSSL, password="x"), "passphrase"),
    ],
)
def test_an_unusable_key_is_explained(key: SecretValue, words: str) -> None:
    with pytest.raises(CredentialError, match=words) as raised:
        PrivateKeyJwt.load("bot", key, algorithm="RS256")
    assert raised.value.message.isprintable()


@pytest.mark.parametrize(
    ("key", "algorithm", "words"),
    [
        (pem(P256), "RS256", "needs an RSA key; the private key given is an elliptic-curve key on secp256r1"),
        (pem(SHORT), "RS256", "2048 bits or more .* this one has 1024"),
        (pem(RSA), "ES256", "P-256; the private key given is an RSA key of 2048 bits"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "ES256", "secp384r1"),
        (pem(RSA), "EdDSA", "Ed25519"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "ES256", "Edwards"),
        (pem(OTHER), "RS256", "of another kind"),
        (pem(RSA), "HS256", "RS256, ES256, EdDSA"),
        (pem(RSA), "none", "RS256, ES256, EdDSA"),
    ],
)
def test_a_key_must_fit_the_algorithm(key: SecretValue, algorithm: str, words: str) -> None:
    with pytest.raises(CredentialError, match=words) as raised:
        PrivateKeyJwt.load("bot", key, algorithm=algorithm)
    assert raised.value.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    "client",
    [
        ClientSecretBasic("bot", SecretValue("hush")),
        ClientSecretPost("bot", SecretValue("hush")),
        ClientAssertion("bot", SecretValue("hush")),
        PrivateKeyJwt.load("bot", pem(RSA), algorithm="RS256"),
    ],
)
def test_no_secret_is_printed(client: ClientAuth) -> None:
    assert "hush" not in repr(client)
    assert "key=" not in repr(client)
