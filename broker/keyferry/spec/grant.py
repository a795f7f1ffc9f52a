"""What an identity gives to be given a token: one member per grant type."""

from collections.abc import Iterator
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from keyferry.spec.common import (
    PARAMETER_PATTERN,
    CamelEnum,
    CheckedModel,
    Members,
    Mistake,
    Model,
    SecretKeySource,
    Subject,
    Union,
    Uri,
    rule_error,
)

ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name (RFC 8693 3)

PROTOCOL_PARAMETERS: Final = frozenset(
    {
        "actor_token",
        "actor_token_type",
        "assertion",
        "audience",
        "auth_req_id",
        "client_assertion",
        "client_assertion_type",
        "client_id",
        "client_secret",
        "code",
        "code_challenge",
        "code_challenge_method",
        "code_verifier",
        "device_code",
        "grant_type",
        "nonce",
        "password",
        "redirect_uri",
        "refresh_token",
        "request",
        "request_uri",
        "requested_token_type",
        "resource",
        "response_mode",
        "response_type",
        "scope",
        "state",
        "subject_token",
        "subject_token_type",
        "token",
        "token_type_hint",
        "user_code",
        "username",
    }
)
"""Parameters that the protocols set; no resource may set them."""


def _not_of_the_protocol(name: str) -> str:
    if name.lower() in PROTOCOL_PARAMETERS:
        raise rule_error("is set by the protocol itself and cannot be an extra parameter")
    return name


ParameterName = Annotated[str, Field(pattern=PARAMETER_PATTERN, max_length=64), AfterValidator(_not_of_the_protocol)]
"""The name of an extra token-request parameter."""


class GrantType(CamelEnum):
    """The way to a token."""

    CLIENT_CREDENTIALS = "ClientCredentials"
    REFRESH_TOKEN = "RefreshToken"  # noqa: S105 - a choice, not a secret
    PASSWORD = "Password"  # noqa: S105
    DEVICE_CODE = "DeviceCode"
    AUTHORIZATION_CODE = "AuthorizationCode"
    JWT_BEARER = "JwtBearer"
    TOKEN_EXCHANGE = "TokenExchange"  # noqa: S105
    LABARCHIVES_LOGIN = "LabArchivesLogin"
    LABARCHIVES_CODE = "LabArchivesCode"


class RefreshTokenGrant(Model):
    """A refresh token that somebody obtained (RFC 6749 6)."""

    from_: SecretKeySource = Field(
        alias="from",
        description="Where the first refresh token is kept. It is used once; its successors are Keyferry's own.",
    )


class PasswordGrant(Model):
    """A user name and password (RFC 6749 4.3; Tiled). A refusal is never retried, for accounts lock."""

    username_from: SecretKeySource = Field(description="Where the user name is kept.")
    password_from: SecretKeySource = Field(description="Where the password is kept.")


class JwtBearerGrant(Model):
    """A JWT of an issuer that the provider trusts (RFC 7523 2.1)."""

    assertion: Subject = Field(description="The JWT, read afresh for each exchange.")


class TokenExchangeGrant(CheckedModel):
    """A token that is exchanged for another (RFC 8693)."""

    subject: Subject = Field(description="The token of the party on whose behalf the request is made, read afresh.")
    subject_token_type: Uri = Field(default=ACCESS_TOKEN_TYPE, description="Type of the subject token (RFC 8693 3).")
    actor: Subject | None = Field(default=None, description="The token of the acting party, read afresh.")
    actor_token_type: Uri = Field(
        default=ACCESS_TOKEN_TYPE, description="Type of the actor token; sent only where there is an actor."
    )
    requested_token_type: Uri | None = Field(
        default=None, description="Type of the token asked for. Unset: the server's choice."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Find the type of a token that is not there."""
        if self.actor is None and self.is_set("actor_token_type"):
            yield Mistake(("actorTokenType",), "has no actor that it could be the type of (RFC 8693 2.1)")


class LabArchivesCodeGrant(Model):
    """A one-hour code from LabArchives' page for external applications; redeemed once."""

    email_from: SecretKeySource = Field(description="Where the user's e-mail address is kept.")
    code_from: SecretKeySource = Field(description="Where the one-hour code is kept; a changed value is a new code.")


class Grant(CheckedModel):
    """The way to a token: a type, and the member of that name where the type needs one."""

    type: GrantType = Field(description="Grant type; the member of that name says what it needs.")
    refresh_token: RefreshTokenGrant | None = Field(default=None, description="The first refresh token (from).")
    password: PasswordGrant | None = Field(
        default=None, description="The user name and password (usernameFrom, passwordFrom)."
    )
    jwt_bearer: JwtBearerGrant | None = Field(default=None, description="The JWT to present (assertion).")
    token_exchange: TokenExchangeGrant | None = Field(
        default=None, description="The token to exchange (subject), and for whom (actor)."
    )
    lab_archives_code: LabArchivesCodeGrant | None = Field(
        default=None, description="The e-mail address and one-hour code (emailFrom, codeFrom)."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Find a member that is missing or another type's."""
        yield from self.members(GRANT_RULES)


GRANT_RULES: Final = Union(
    "type",
    {
        GrantType.CLIENT_CREDENTIALS: Members(),
        GrantType.REFRESH_TOKEN: Members(needs=("refresh_token",)),
        GrantType.PASSWORD: Members(needs=("password",)),
        GrantType.DEVICE_CODE: Members(),
        GrantType.AUTHORIZATION_CODE: Members(),
        GrantType.JWT_BEARER: Members(needs=("jwt_bearer",)),
        GrantType.TOKEN_EXCHANGE: Members(needs=("token_exchange",)),
        GrantType.LABARCHIVES_LOGIN: Members(),
        GrantType.LABARCHIVES_CODE: Members(needs=("lab_archives_code",)),
    },
)
