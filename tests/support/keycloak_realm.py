"""What the tests' Keycloak realms hold: clients, a person, trusted issuers; and the secrets of all of them.

Every realm that ``realm_representation`` describes has the same clients with the same secrets: one ``Material`` serves
them all. They differ in their name and in the lifetimes and rotation of tokens.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.pki import Authority, Certificate

ALGORITHMS = ("RS256", "ES256", "EdDSA")
# The realm's own signing key. Keycloak would make RSA keys, which takes it 5 s of processor time for each realm.
REALM_KEYS = {
    "org.keycloak.keys.KeyProvider": [
        {
            "name": "signing",
            "providerId": "ecdsa-generated",
            "config": {"priority": ["100"], "ecdsaEllipticCurveKey": ["P-256"]},
        }
    ]
}


@dataclass(frozen=True)
class SigningKey:
    """A private key (PEM, PKCS #8) and the JWS algorithm it is for (RFC 7518, RFC 8037)."""

    algorithm: str
    key_id: str
    private_key: str = field(repr=False)

    @classmethod
    def create(cls, algorithm: str, key_id: str) -> SigningKey:
        """Make a new key for ``RS256``, ``ES256`` or ``EdDSA`` (Ed25519)."""
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
        if algorithm == "RS256":
            key = rsa.generate_private_key(65537, 2048)
        elif algorithm == "ES256":
            key = ec.generate_private_key(ec.SECP256R1())
        else:
            key = ed25519.Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(algorithm, key_id, pem.decode())

    def jwks(self) -> str:
        """Return the JSON Web Key Set (RFC 7517) that holds the public key."""
        public = serialization.load_pem_private_key(self.private_key.encode(), None).public_key()
        key = json.loads(jwt.get_algorithm_by_name(self.algorithm).to_jwk(public))
        return json.dumps({"keys": [{**key, "kid": self.key_id, "use": "sig", "alg": self.algorithm}]})

    def sign(self, *, issuer: str, subject: str, audience: str, lifetime: int = 60, **claims: Any) -> str:
        """Return a JWT with a fresh ``jti`` that expires in ``lifetime`` seconds; ``claims`` are added or replaced."""
        now = int(time.time())
        payload = {
            "iss": issuer,
            "sub": subject,
            "aud": audience,
            "iat": now,
            "exp": now + lifetime,
            "jti": uuid.uuid4().hex,
            **claims,
        }
        return jwt.encode(payload, self.private_key, self.algorithm, {"kid": self.key_id})


@dataclass(frozen=True)
class SecretClient:
    """A confidential client that authenticates with a secret. Keycloak takes it by Basic and in the body alike."""

    id: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class SignedClient:
    """A confidential client that authenticates with a JWT that it signs (private_key_jwt)."""

    id: str
    key: SigningKey

    def assertion(self, audience: str, lifetime: int = 60) -> str:
        """Return a client assertion (RFC 7523 section 2.2); ``audience`` is the realm's issuer."""
        return self.key.sign(issuer=self.id, subject=self.id, audience=audience, lifetime=lifetime)


@dataclass(frozen=True)
class CertificateClient:
    """A confidential client that authenticates with the subject of its certificate (RFC 8705 section 2.1)."""

    id: str
    certificate: Certificate = field(repr=False)


@dataclass(frozen=True)
class Person:
    """Somebody who can log in."""

    name: str
    password: str = field(repr=False)
    email: str


@dataclass(frozen=True)
class TrustedIssuer:
    """An issuer outside Keycloak whose tokens the realm accepts, and the subject that stands for a user or client."""

    alias: str
    issuer: str
    subject: str
    key: SigningKey

    def sign(self, audience: str, *, subject: str | None = None, lifetime: int = 60, **claims: Any) -> str:
        """Return a token of this issuer; ``audience`` is the realm's issuer."""
        wanted = self.subject if subject is None else subject
        return self.key.sign(issuer=self.issuer, subject=wanted, audience=audience, lifetime=lifetime, **claims)


@dataclass(frozen=True)
class Material:
    """Names, secrets and keys of everything in the realms. See ``realm_representation`` for what each may do."""

    authority: Authority
    basic: SecretClient
    post: SecretClient
    signed: dict[str, SignedClient]  # by algorithm
    mtls: CertificateClient
    federated_client: str
    workload_issuer: TrustedIssuer
    login: SecretClient
    public_client: str
    introspection: SecretClient
    exchange: SecretClient
    exchange_audience: str
    bearer: SecretClient
    assertion_issuer: TrustedIssuer
    alice: Person

    @classmethod
    def create(cls) -> Material:
        """Make the keys and the certificate authority."""
        authority = Authority.create()
        return cls(
            authority=authority,
            basic=SecretClient("basic-bot", "basic: 100% + ümlaut"),  # a secret that form-encoding changes
            post=SecretClient("post-bot", "post-secret"),
            signed={
                name: SignedClient(f"{name.lower()}-bot", SigningKey.create(name, f"{name.lower()}-1"))
                for name in ALGORITHMS
            },
            mtls=CertificateClient("mtls-bot", authority.client("mtls-bot")),
            federated_client="federated-bot",
            workload_issuer=TrustedIssuer(
                "workloads",
                "https://workloads.example.test",
                "system:serviceaccount:batch:ingest",
                SigningKey.create("RS256", "workloads-1"),
            ),
            login=SecretClient("login-app", "login-secret"),
            public_client="public-app",
            introspection=SecretClient("introspector", "introspector-secret"),
            exchange=SecretClient("exchanger", "exchanger-secret"),
            exchange_audience="reports-api",
            bearer=SecretClient("bearer-app", "bearer-secret"),
            assertion_issuer=TrustedIssuer(
                "partner", "https://partner.example.test", "partner-alice", SigningKey.create("ES256", "partner-1")
            ),
            alice=Person("alice", "secret", "alice@example.test"),
        )


@dataclass(frozen=True)
class RealmOptions:
    """How a realm's tokens live. Durations are seconds."""

    access_token_lifespan: int = 300
    rotating: bool = False  # a refresh token is good once; a replay ends the session
    session_idle: int = 1800
    session_maximum: int = 36_000


def subject_of(realm: str, person: Person) -> str:
    """Return the ``sub`` that ``realm`` gives to ``person``: the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{realm}/{person.name}"))


def realm_representation(name: str, material: Material, options: RealmOptions) -> dict[str, Any]:
    """Describe the realm ``name`` for Keycloak's admin API."""
    return {
        "realm": name,
        "enabled": True,
        "sslRequired": "none",
        "components": REALM_KEYS,
        "defaultSignatureAlgorithm": "ES256",
        "accessTokenLifespan": options.access_token_lifespan,
        "revokeRefreshToken": options.rotating,
        "refreshTokenMaxReuse": 0,
        "ssoSessionIdleTimeout": options.session_idle,
        "ssoSessionMaxLifespan": options.session_maximum,
        "clients": _clients(material),
        "users": [_user(name, material)],
        "identityProviders": _identity_providers(material),
    }


def _clients(material: Material) -> list[dict[str, Any]]:
    issuers = material.assertion_issuer, material.workload_issuer
    exchangeable = [audience_mapper(material.exchange.id)]
    return [
        _secret_client(material.basic, serviceAccountsEnabled=True, protocolMappers=exchangeable),
        _secret_client(material.post, serviceAccountsEnabled=True),
        *(_signed_client(client) for client in material.signed.values()),
        _mtls_client(material.mtls, material.authority),
        _client(
            material.federated_client,
            serviceAccountsEnabled=True,
            clientAuthenticatorType="federated-jwt",
            attributes={"jwt.credential.issuer": issuers[1].alias, "jwt.credential.sub": issuers[1].subject},
        ),
        _secret_client(material.login, directAccessGrantsEnabled=True, protocolMappers=exchangeable),
        _client(
            material.public_client,
            publicClient=True,
            directAccessGrantsEnabled=True,
            attributes={"oauth2.device.authorization.grant.enabled": "true"},
        ),
        # Keycloak calls every token inactive that is not meant for whoever asks; this client may ask about all.
        _secret_client(material.introspection, attributes={"allow.token.introspection.without.audience.check": "true"}),
        _secret_client(
            material.exchange,
            attributes={"standard.token.exchange.enabled": "true"},
            protocolMappers=[audience_mapper(material.exchange_audience)],
        ),
        _client(material.exchange_audience, secret=f"{material.exchange_audience}-secret"),
        _secret_client(
            material.bearer,
            attributes={
                "oauth2.jwt.authorization.grant.enabled": "true",
                "oauth2.jwt.authorization.grant.idp": issuers[0].alias,
            },
        ),
    ]


def _client(client_id: str, **settings: Any) -> dict[str, Any]:
    """Describe a client that may do nothing but what ``settings`` allow."""
    closed = {"enabled": True, "protocol": "openid-connect", "publicClient": False, "standardFlowEnabled": False}
    return {"clientId": client_id, **closed, **settings}


def _secret_client(client: SecretClient, **settings: Any) -> dict[str, Any]:
    return _client(client.id, clientAuthenticatorType="client-secret", secret=client.secret, **settings)


def _signed_client(client: SignedClient) -> dict[str, Any]:
    attributes = {
        "use.jwks.string": "true",
        "jwks.string": client.key.jwks(),
        "token.endpoint.auth.signing.alg": client.key.algorithm,
    }
    return _client(client.id, serviceAccountsEnabled=True, clientAuthenticatorType="client-jwt", attributes=attributes)


def _mtls_client(client: CertificateClient, authority: Authority) -> dict[str, Any]:
    attributes = {
        "x509.subjectdn": client.certificate.subject,
        "x509.casubjectdn": authority.subject,
        "x509.allow.regex.pattern.comparison": "false",
    }
    return _client(client.id, serviceAccountsEnabled=True, clientAuthenticatorType="client-x509", attributes=attributes)


def audience_mapper(client_id: str) -> dict[str, Any]:
    """Put ``client_id`` into the audience of the access tokens of the client that this mapper is part of."""
    return {
        "name": f"audience {client_id}",
        "protocol": "openid-connect",
        "protocolMapper": "oidc-audience-mapper",
        "config": {"included.client.audience": client_id, "access.token.claim": "true"},
    }


def _user(realm: str, material: Material) -> dict[str, Any]:
    person, issuer = material.alice, material.assertion_issuer
    return {
        "id": subject_of(realm, person),
        "username": person.name,
        "enabled": True,
        "email": person.email,
        "emailVerified": True,
        "firstName": person.name.title(),
        "lastName": "Tester",
        "credentials": [{"type": "password", "value": person.password, "temporary": False}],
        "realmRoles": ["offline_access"],
        "federatedIdentities": [{"identityProvider": issuer.alias, "userId": issuer.subject, "userName": person.name}],
    }


def _identity_providers(material: Material) -> list[dict[str, Any]]:
    """Describe the issuers whose JWTs are accepted: one for RFC 7523 grants, one for client assertions."""
    grants, clients = material.assertion_issuer, material.workload_issuer

    def trust(issuer: TrustedIssuer) -> dict[str, str]:
        # Keycloak takes a whole JWKS where it asks for a public key.
        return {"issuer": issuer.issuer, "useJwksUrl": "false", "publicKeySignatureVerifier": issuer.key.jwks()}

    return [
        {
            "alias": grants.alias,
            "providerId": "jwt-authorization-grant",
            "enabled": True,
            "config": {
                **trust(grants),
                "jwtAuthorizationGrantEnabled": "true",
                "jwtAuthorizationGrantAssertionReuseAllowed": "false",
                "jwtAuthorizationGrantMaxAllowedAssertionExpiration": "300",
            },
        },
        {
            "alias": clients.alias,
            "providerId": "oidc",
            "enabled": True,
            "config": {
                **trust(clients),
                "validateSignature": "true",
                "supportsClientAssertions": "true",
                "clientId": "keycloak",
                "clientSecret": "unused",
                "authorizationUrl": f"{clients.issuer}/authorize",
                "tokenUrl": f"{clients.issuer}/token",
            },
        },
    ]
