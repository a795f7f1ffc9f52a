"""TokenProvider and ClusterTokenProvider: where tokens come from."""

from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import Field

from keyferry.spec.common import (
    METHOD_PATTERN,
    CamelEnum,
    CaSource,
    CheckedModel,
    Count,
    Duration,
    Issuer,
    Members,
    Mistake,
    Model,
    PositiveDuration,
    Scope,
    SecretKeySource,
    SecretRef,
    Subject,
    Text,
    Union,
    Uri,
    Url,
)
from keyferry.spec.grant import GrantType, ParameterName
from keyferry.spec.selector import NamespaceSelector


class ProviderType(CamelEnum):
    """What speaks at the other end."""

    OAUTH = "OAuth"
    TILED = "Tiled"
    LABARCHIVES = "LabArchives"


class ClientAuthentication(CamelEnum):
    """How the client proves itself at the token endpoint."""

    CLIENT_SECRET_BASIC = "ClientSecretBasic"  # noqa: S105 - a choice, not a secret
    CLIENT_SECRET_POST = "ClientSecretPost"  # noqa: S105
    PRIVATE_KEY_JWT = "PrivateKeyJwt"
    CLIENT_ASSERTION = "ClientAssertion"
    TLS_CLIENT_AUTH = "TlsClientAuth"
    NONE = "None"


class SigningAlgorithm(CamelEnum):
    """The algorithm of a signed client assertion."""

    RS256 = "RS256"
    ES256 = "ES256"
    EDDSA = "EdDSA"


class AssertionAudience(CamelEnum):
    """Whom a signed client assertion is addressed to."""

    ISSUER = "Issuer"
    TOKEN_ENDPOINT = "TokenEndpoint"  # noqa: S105


class Rotation(CamelEnum):
    """What a use does to a refresh token."""

    AUTO = "Auto"
    ROTATING = "Rotating"
    REUSABLE = "Reusable"


class InDoubt(CamelEnum):
    """What is done when it is unknown whether a one-time credential was spent."""

    REPLAY_ONCE = "ReplayOnce"
    ASK_PERSON = "AskPerson"


class Endpoints(Model):
    """Addresses of the authorization server, instead of, or over, what discovery finds."""

    token: Url | None = Field(default=None, description="Token endpoint (RFC 6749 3.2).")
    device_authorization: Url | None = Field(default=None, description="Device authorization endpoint (RFC 8628 3.1).")
    authorization: Url | None = Field(default=None, description="Authorization endpoint (RFC 6749 3.1).")
    revocation: Url | None = Field(default=None, description="Revocation endpoint (RFC 7009).")
    introspection: Url | None = Field(default=None, description="Introspection endpoint (RFC 7662).")
    pushed_authorization_request: Url | None = Field(
        default=None, description="Pushed authorization request endpoint (RFC 9126)."
    )


CLIENT_RULES: Final = Union(
    "authentication",
    {
        ClientAuthentication.CLIENT_SECRET_BASIC: Members(needs=("secrets_from",)),
        ClientAuthentication.CLIENT_SECRET_POST: Members(needs=("secrets_from",)),
        ClientAuthentication.PRIVATE_KEY_JWT: Members(
            needs=("private_key_from",), takes=("algorithm", "key_id", "assertion_audience")
        ),
        ClientAuthentication.CLIENT_ASSERTION: Members(needs=("assertion_from",)),
        ClientAuthentication.TLS_CLIENT_AUTH: Members(),
        ClientAuthentication.NONE: Members(),
    },
)


class Client(CheckedModel):
    """The OAuth client in whose name tokens are asked for."""

    id: Text | None = Field(default=None, description="Client identifier. Exactly one of id and idFrom.")
    id_from: SecretKeySource | None = Field(default=None, description="Where the client identifier is kept.")
    authentication: ClientAuthentication = Field(
        default=ClientAuthentication.CLIENT_SECRET_BASIC,
        description="How the client authenticates at the token endpoint; never probed. None is a public client.",
    )
    secrets_from: tuple[SecretKeySource, ...] = Field(
        default=(),
        max_length=8,
        description="Client secrets, tried in order, so that a second one lets a rotation overlap.",
    )
    private_key_from: SecretKeySource | None = Field(
        default=None, description="Private key (PEM) that signs the client assertion (RFC 7523 2.2)."
    )
    algorithm: SigningAlgorithm = Field(
        default=SigningAlgorithm.RS256, description="Algorithm of the signed client assertion; it must fit the key."
    )
    key_id: Text | None = Field(default=None, description="The kid header of the signed client assertion.")
    assertion_from: Subject | None = Field(
        default=None,
        description="A token of an issuer that the provider trusts, presented as the client assertion (RFC 7521 4.2).",
    )
    assertion_audience: AssertionAudience = Field(
        default=AssertionAudience.ISSUER, description="The aud claim of the signed client assertion."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Each authentication has its own fields, and one client id."""
        if self.id is not None and self.id_from is not None:
            yield from self.exactly_one("id", "id_from")
        # An assertion of a trusted issuer names its client itself, by its subject (RFC 7521 4.2).
        elif (
            self.id is None
            and self.id_from is None
            and self.authentication is not ClientAuthentication.CLIENT_ASSERTION
        ):
            yield Mistake(("id",), "is missing; a client needs id or idFrom")
        yield from self.members(CLIENT_RULES)


class RefreshTokens(Model):
    """How the provider treats refresh tokens."""

    rotation: Rotation = Field(
        default=Rotation.AUTO,
        description="Whether a refresh token can be used once (Rotating) or again and again (Reusable). Auto is "
        "treated as Rotating.",
    )
    reuse_window: Duration = Field(
        default=0.0, description="How long after its first use the server still accepts a rotated refresh token."
    )
    in_doubt: InDoubt = Field(
        default=InDoubt.REPLAY_ONCE,
        description="What to do when an answer was lost and the refresh token may be spent: replay it once shortly "
        "before the access token expires, or ask a person.",
    )
    idle: PositiveDuration | None = Field(
        default=None, description="A refresh token that is not used for this long lapses. Unset: not known."
    )
    maximum: PositiveDuration | None = Field(
        default=None, description="A login lapses this long after it began, whatever is used. Unset: not known."
    )


class Lifetime(CheckedModel):
    """What is assumed about the lifetime of tokens."""

    assumed: PositiveDuration = Field(
        default=300.0, description="Lifetime of a token whose answer says none and which is no JWT with an exp claim."
    )
    maximum: PositiveDuration = Field(
        default=86400.0, description="A token is renewed as if it lived at most this long, whatever the answer says."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """More is assumed than is allowed."""
        if self.assumed > self.maximum:
            yield Mistake(("assumed",), "must not be longer than maximum")


class OAuthProvider(CheckedModel):
    """An OAuth 2 or OpenID Connect authorization server."""

    issuer: Issuer | None = Field(
        default=None,
        description="Issuer URL, from which the endpoints are discovered (OpenID Connect Discovery, RFC 8414); the "
        "answer must name the identical issuer.",
    )
    endpoints: Endpoints = Field(default=Endpoints(), description="Endpoints instead of, or over, what is discovered.")
    client: Client | None = Field(default=None, description="The client of all identities that do not bring their own.")
    refresh_tokens: RefreshTokens = Field(default=RefreshTokens(), description="How refresh tokens behave.")
    lifetime: Lifetime = Field(default=Lifetime(), description="What is assumed about lifetimes.")

    def mistakes(self) -> Iterator[Mistake]:
        """There must be a way to the token endpoint, and a name for the assertion's audience."""
        if self.issuer is None and self.endpoints.token is None:
            yield Mistake(("issuer",), "is missing; either issuer (discovered) or endpoints.token is needed")
        if self.issuer is None and self.client is not None and needs_issuer(self.client):
            yield Mistake(
                ("client", "assertionAudience"),
                "addresses the assertion to the issuer, which is not set; set issuer, or TokenEndpoint here",
            )


def needs_issuer(client: Client) -> bool:
    """Tell whether the client signs assertions that are addressed to the provider's issuer."""
    return (
        client.authentication is ClientAuthentication.PRIVATE_KEY_JWT
        and client.assertion_audience is AssertionAudience.ISSUER
    )


class TiledProvider(Model):
    """A Tiled server."""

    url: Issuer = Field(description="Base of the server's API, such as https://tiled.example.org/api/v1.")
    authenticator: Text | None = Field(
        default=None, description="Name of the authentication provider; needed only if the server has several."
    )


class LabArchivesProvider(Model):
    """A LabArchives region."""

    url: Issuer = Field(description="Base URL of the region without /api, such as https://api.labarchives.com.")
    access_key_id_from: SecretKeySource = Field(description="Where the organization's access key id is kept.")
    access_password_from: SecretKeySource = Field(description="Where the organization's access password is kept.")
    methods: tuple[Annotated[str, Field(pattern=METHOD_PATTERN, max_length=64)], ...] = Field(
        default=(),
        max_length=256,
        description="API methods that pods may have signed. Login, user and administration methods never are.",
    )


class ClientCertificateSource(Model):
    """Where a TLS client certificate comes from."""

    secret_ref: SecretRef = Field(description="A Secret of type kubernetes.io/tls (keys tls.crt and tls.key).")


class Tls(Model):
    """TLS towards the provider."""

    ca_from: CaSource | None = Field(
        default=None, description="CA certificates (PEM) to trust instead of the system's."
    )
    client_certificate_from: ClientCertificateSource | None = Field(
        default=None, description="The certificate to present (RFC 8705)."
    )


class Limits(Model):
    """How hard the provider may be driven, by all its identities together."""

    requests_per_second: Annotated[float, Field(strict=True, gt=0, le=10000, allow_inf_nan=False)] = Field(
        default=10.0, description="Requests per second on average."
    )
    burst: Annotated[Count, Field(ge=1, le=10000)] = Field(
        default=20, description="Requests that may follow each other at once."
    )
    concurrency: Annotated[Count, Field(ge=1, le=1000)] = Field(default=8, description="Requests in flight.")
    timeout: PositiveDuration = Field(default=10.0, description="Deadline of one whole request.")


class TokenProviderSpec(CheckedModel):
    """What a TokenProvider says."""

    type: ProviderType = Field(description="Kind of provider; the member of that name describes it.")
    oauth: OAuthProvider | None = Field(default=None, description="The authorization server, for type OAuth.")
    tiled: TiledProvider | None = Field(default=None, description="The Tiled server, for type Tiled.")
    labarchives: LabArchivesProvider | None = Field(
        default=None, description="The LabArchives region, for type LabArchives."
    )
    tls: Tls = Field(default=Tls(), description="TLS towards the provider.")
    limits: Limits = Field(default=Limits(), description="Limits on requests to the provider.")

    def mistakes(self) -> Iterator[Mistake]:
        """Find a member that is missing or another type's, and mutual TLS without a certificate."""
        yield from self.members(PROVIDER_RULES)
        client = self.oauth.client if self.oauth is not None else None
        if (
            client is not None
            and client.authentication is ClientAuthentication.TLS_CLIENT_AUTH
            and self.tls.client_certificate_from is None
        ):
            yield Mistake(
                ("tls", "clientCertificateFrom"), "is missing; authentication: TlsClientAuth presents a certificate"
            )


PROVIDER_RULES: Final = Union(
    "type",
    {
        ProviderType.OAUTH: Members(needs=("oauth",)),
        ProviderType.TILED: Members(needs=("tiled",)),
        ProviderType.LABARCHIVES: Members(needs=("labarchives",)),
    },
)


class Allow(Model):
    """What identities of other namespaces may ask of a cluster provider; what is absent is not allowed."""

    grants: tuple[GrantType, ...] = Field(
        default=(),
        max_length=16,
        description="Grants. Absent: only the plainest (OAuth: ClientCredentials, Tiled: Password, LabArchives: "
        "LabArchivesLogin).",
    )
    scopes: tuple[Scope, ...] = Field(default=(), max_length=256, description="Scopes. Absent: none may be asked for.")
    audiences: tuple[Text, ...] = Field(default=(), max_length=256, description="Audiences. Absent: none.")
    resources: tuple[Uri, ...] = Field(
        default=(), max_length=256, description="Resource indicators (RFC 8707). Absent: none."
    )
    parameters: tuple[ParameterName, ...] = Field(
        default=(), max_length=64, description="Names of extra token-request parameters. Absent: none."
    )


class ClusterTokenProviderSpec(TokenProviderSpec):
    """What a ClusterTokenProvider says: a TokenProvider that selected namespaces may use."""

    namespace_selector: NamespaceSelector | None = Field(
        default=None, description="Namespaces whose identities may use the provider. Absent: none. {}: all."
    )
    allow: Allow = Field(default=Allow(), description="What those identities may ask for.")
