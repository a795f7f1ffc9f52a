"""ServiceIdentity: who a workload is, and where its token is put."""

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from keyferry.spec.common import (
    NAME_PATTERN,
    CamelEnum,
    CheckedModel,
    Duration,
    Flag,
    Mistake,
    Model,
    Name,
    PositiveDuration,
    Scope,
    Text,
    Uri,
)
from keyferry.spec.durations import format_duration
from keyferry.spec.frozen import EMPTY, FrozenMap
from keyferry.spec.grant import Grant, ParameterName
from keyferry.spec.provider import Client
from keyferry.spec.target import Target


class ProviderKind(CamelEnum):
    """The kinds of provider resources."""

    TOKEN_PROVIDER = "TokenProvider"  # noqa: S105 - a kind, not a secret
    CLUSTER_TOKEN_PROVIDER = "ClusterTokenProvider"  # noqa: S105


class DeletionPolicy(CamelEnum):
    """What becomes of a token whose identity is deleted."""

    REVOKE = "Revoke"
    DELETE = "Delete"
    RETAIN = "Retain"


class ProviderRef(Model):
    """The provider that issues the token."""

    kind: ProviderKind = Field(
        default=ProviderKind.TOKEN_PROVIDER,
        description="TokenProvider (of the identity's namespace) or ClusterTokenProvider.",
    )
    name: Name = Field(description="Name of the provider.")


class ExpectedSubject(CheckedModel):
    """Whose token it must be; exactly one of its fields. Another's is refused, and so is an unverifiable one."""

    subject: Text | None = Field(default=None, description="The sub claim.")
    email: Text | None = Field(default=None, description="The e-mail address, which the provider must call verified.")

    def mistakes(self) -> Iterator[Mistake]:
        """Find more or less than one."""
        yield from self.exactly_one("subject", "email")


class ApiKey(Model):
    """A Tiled API key that is minted by the login and published instead of the login's token."""

    scopes: tuple[Scope, ...] = Field(
        default=("read:metadata", "read:data"), min_length=1, max_length=32, description="Scopes of the key."
    )
    expires_in: PositiveDuration = Field(
        default=43200.0, description="Lifetime of a key; it is replaced well before its end."
    )
    access_tags: tuple[Text, ...] = Field(
        default=(), max_length=64, description="Access tags that the key is limited to. Empty: not limited."
    )
    note: Annotated[Text, Field(max_length=255)] | None = Field(
        default=None, description="Note that Tiled shows beside the key."
    )


class Renewal(CheckedModel):
    """When the token is renewed."""

    before: PositiveDuration | None = Field(
        default=None,
        description="Renew this long before expiry. Unset: at two thirds of the lifetime.",
    )
    minimum_remaining: Duration = Field(
        default=0.0, description="Consumers are held back while the token is valid for less than this."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Find a renewal that is too late for the consumers."""
        if self.before is not None and self.before < self.minimum_remaining:
            yield Mistake(
                ("before",),
                f"is shorter than minimumRemaining ({format_duration(self.minimum_remaining)}): consumers would be "
                "held back before every renewal",
            )


class Consumer(CheckedModel):
    """Who may have the token; exactly one of its fields."""

    service_account_name: Name | None = Field(
        default=None, description="A ServiceAccount whose pods may fetch the token through a sidecar."
    )
    identity_name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)] | None = Field(
        default=None, description="A ServiceIdentity that may present the token to obtain its own."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Find more or less than one."""
        yield from self.exactly_one("service_account_name", "identity_name")


class ServiceIdentitySpec(Model):
    """What a ServiceIdentity says."""

    provider_ref: ProviderRef = Field(description="The provider that issues the token.")
    grant: Grant = Field(description="How the token is obtained.")
    client: Client | None = Field(
        default=None, description="Replaces the provider's client as a whole. Unset: the provider's client."
    )
    scopes: tuple[Scope, ...] = Field(default=(), max_length=128, description="Scopes to ask for (RFC 6749 3.3).")
    audiences: tuple[Text, ...] = Field(default=(), max_length=32, description="Audiences to ask for (RFC 8693 2.1).")
    resources: tuple[Uri, ...] = Field(
        default=(), max_length=32, description="Resource indicators to ask for (RFC 8707)."
    )
    parameters: Annotated[
        Mapping[ParameterName, Annotated[str, Field(max_length=4096)]], Field(max_length=32), AfterValidator(FrozenMap)
    ] = Field(
        default=EMPTY, description="Extra parameters of the token request; never one that the protocol itself sets."
    )
    expected_subject: ExpectedSubject | None = Field(
        default=None, description="Whose token it must be. Unset: not checked."
    )
    api_key: ApiKey | None = Field(
        default=None, description="Tiled: publish a scoped API key instead of the login's token."
    )
    renewal: Renewal = Field(default=Renewal(), description="When the token is renewed.")
    suspend: Flag = Field(default=False, description="Stop renewing; what is published stays until it expires.")
    target: Target = Field(default=Target(), description="Where the token is published.")
    consumers: tuple[Consumer, ...] = Field(
        default=(), max_length=128, description="Who may fetch the token through a sidecar, or chain it. Empty: nobody."
    )
    deletion_policy: DeletionPolicy = Field(
        default=DeletionPolicy.REVOKE,
        description="When the identity is deleted: Revoke the credentials and delete the Secret, only Delete the "
        "Secret, or Retain it.",
    )
