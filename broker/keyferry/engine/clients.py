"""Resolves what a request presents: the client's authentication, subject tokens, user names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from keyferry.client_auth import (
    ClientAssertion,
    ClientSecretBasic,
    ClientSecretPost,
    NoAuthentication,
    PrivateKeyJwt,
    TlsClientAuth,
)
from keyferry.errors import CredentialError, Reason, ResourceError
from keyferry.grants.inputs import SubjectToken
from keyferry.secret import SecretValue
from keyferry.spec.grant import ACCESS_TOKEN_TYPE
from keyferry.spec.provider import AssertionAudience, Client, ClientAuthentication

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyferry.client_auth import ClientAuth
    from keyferry.engine.credentials import CredentialReader
    from keyferry.model import ObjectKey
    from keyferry.spec.common import SecretKeySource, Subject
    from keyferry.spec.identity import ServiceIdentitySpec

JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"


class IdentityTokens(Protocol):
    """Where the current token of another identity comes from."""

    async def current(self, namespace: str, name: str, consumer: ObjectKey, hosts: frozenset[str]) -> SecretValue:
        """Return it, to be sent to ``hosts``.

        Raises ResourceError without consent, CredentialError where it may not go there, and ExchangeError (transient)
        while there is none.
        """
        ...


async def value(reader: CredentialReader, source: SecretKeySource) -> SecretValue:
    """Return the single-line credential that a field points to."""
    return await reader.text(source.secret_key_ref.name, source.secret_key_ref.key)


async def subject_token(
    reader: CredentialReader, subject: Subject, token_type: str, tokens: IdentityTokens, consumer: ObjectKey
) -> SubjectToken:
    """Return a subject token, read afresh (RFC 8693 2.1)."""
    if subject.secret_key_ref is not None:
        return SubjectToken(await reader.text(subject.secret_key_ref.name, subject.secret_key_ref.key), token_type)
    if subject.identity_ref is not None:
        name = subject.identity_ref.name
        return SubjectToken(await tokens.current(reader.namespace, name, consumer, reader.hosts), token_type)
    account = subject.service_account_token
    if account is None:
        raise ResourceError(f"ServiceIdentity {consumer}: a subject names no token")
    token = await reader.service_account_token(account.name, account.audience, account.expiration)
    return SubjectToken(token, token_type)


async def client_candidates(
    client: Client | None, reader: CredentialReader, issuer: str, tokens: IdentityTokens, consumer: ObjectKey
) -> list[ClientAuth]:
    """Return the ways in which the client may authenticate: one for each configured secret, in order."""
    if client is None:
        raise ResourceError(
            "neither the provider nor the identity names a client (spec.oauth.client, spec.client)",
            reason=Reason.INVALID_SPEC,
        )
    client_id = client.id or ""
    if client.id_from is not None:
        client_id = (await value(reader, client.id_from)).reveal()
    match client.authentication:
        case ClientAuthentication.NONE:
            return [NoAuthentication(client_id)]
        case ClientAuthentication.TLS_CLIENT_AUTH:
            return [TlsClientAuth(client_id)]
        case ClientAuthentication.PRIVATE_KEY_JWT:
            return [await _private_key(client, client_id, reader, issuer)]
        case ClientAuthentication.CLIENT_ASSERTION:
            if client.assertion_from is None:
                raise ResourceError("ClientAssertion needs assertionFrom")
            assertion = await subject_token(reader, client.assertion_from, JWT_TYPE, tokens, consumer)
            return [ClientAssertion(client_id, assertion.token)]
        case ClientAuthentication.CLIENT_SECRET_BASIC | ClientAuthentication.CLIENT_SECRET_POST:
            kind = (
                ClientSecretBasic
                if client.authentication is ClientAuthentication.CLIENT_SECRET_BASIC
                else ClientSecretPost
            )
            return [kind(client_id, secret) for secret in await _secrets(client, reader)]


def hidden_id(client: Client | None, used: Iterable[ClientAuth]) -> tuple[SecretValue, ...]:
    """Return the client id where it came from a Secret: then it is no more for everybody's eyes than that is."""
    return tuple(SecretValue(auth.client_id) for auth in used) if client is not None and client.id_from else ()


async def _secrets(client: Client, reader: CredentialReader) -> list[SecretValue]:
    """Read the configured secrets; while one of several is missing (a rotation half-way), the others do."""
    found: list[SecretValue] = []
    missing: CredentialError | None = None
    for source in client.secrets_from:
        try:
            found.append(await value(reader, source))
        except CredentialError as error:
            missing = error
    if found:
        return found
    raise missing or ResourceError("the client has no secret (secretsFrom)")


async def _private_key(client: Client, client_id: str, reader: CredentialReader, issuer: str) -> PrivateKeyJwt:
    if client.private_key_from is None:
        raise ResourceError("PrivateKeyJwt needs privateKeyFrom")
    key = await value(reader, client.private_key_from)
    audience = issuer if client.assertion_audience is AssertionAudience.ISSUER else ""
    return PrivateKeyJwt.load(
        client_id, key, algorithm=client.algorithm.value, key_id=client.key_id or "", audience=audience
    )


def presents_fresh_token(spec: ServiceIdentitySpec) -> bool:
    """Tell whether the token that is presented is another one each time: a service account's, or an identity's."""
    grant = spec.grant
    subjects = [grant.jwt_bearer.assertion] if grant.jwt_bearer is not None else []
    if grant.token_exchange is not None:
        subjects.append(grant.token_exchange.subject)
    return any(subject.secret_key_ref is None for subject in subjects)


def asserts_afresh(client: Client | None) -> bool:
    """Tell whether the client authenticates with a token that is another one each time."""
    return client is not None and client.assertion_from is not None and client.assertion_from.secret_key_ref is None


def token_type_of(subject: Subject, declared: str) -> str:
    """Return a subject token's type: a service account's token is a JWT, unless the resource says what it is."""
    return JWT_TYPE if subject.service_account_token is not None and declared == ACCESS_TOKEN_TYPE else declared
