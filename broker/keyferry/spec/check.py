"""What an identity and its provider must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.errors import Reason
from keyferry.spec.grant import GrantType
from keyferry.spec.problem import Problem, join_path
from keyferry.spec.provider import (
    Allow,
    Client,
    ClientAuthentication,
    ClusterTokenProviderSpec,
    ProviderType,
    TokenProviderSpec,
    needs_issuer,
)
from keyferry.spec.target import FileFormat, TargetType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

from keyferry.spec.explain import closest
from keyferry.spec.identity import ProviderKind, ServiceIdentitySpec
from keyferry.spec.loaded import CLUSTER_NAMESPACE, IDENTITY_KIND, IdentityResource, Loaded, provider_key

GRANTS: Final[Mapping[ProviderType, frozenset[GrantType]]] = {
    ProviderType.OAUTH: frozenset(
        {
            GrantType.CLIENT_CREDENTIALS,
            GrantType.REFRESH_TOKEN,
            GrantType.PASSWORD,
            GrantType.DEVICE_CODE,
            GrantType.AUTHORIZATION_CODE,
            GrantType.JWT_BEARER,
            GrantType.TOKEN_EXCHANGE,
        }
    ),
    ProviderType.TILED: frozenset({GrantType.REFRESH_TOKEN, GrantType.PASSWORD, GrantType.DEVICE_CODE}),
    ProviderType.LABARCHIVES: frozenset({GrantType.LABARCHIVES_LOGIN, GrantType.LABARCHIVES_CODE}),
}
"""Which grants go with which type of provider."""
PLAIN_GRANTS: Final[Mapping[ProviderType, GrantType]] = {
    ProviderType.OAUTH: GrantType.CLIENT_CREDENTIALS,
    ProviderType.TILED: GrantType.PASSWORD,
    ProviderType.LABARCHIVES: GrantType.LABARCHIVES_LOGIN,
}
"""What a ClusterTokenProvider allows whose ``allow.grants`` is absent."""
FORMATS: Final[Mapping[FileFormat, ProviderType]] = {
    FileFormat.TILED: ProviderType.TILED,
    FileFormat.AIOD: ProviderType.OAUTH,
    FileFormat.LABARCHIVES: ProviderType.LABARCHIVES,
}
"""Formats that need a type of provider."""

_REQUEST_FIELDS: Final = ("scopes", "audiences", "resources", "parameters", "client")


def check_pair(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> list[Problem]:
    """Return what an identity and its provider disagree on; paths are the identity's. Empty: they fit."""
    checks: tuple[Callable[[ServiceIdentitySpec, TokenProviderSpec], Iterator[Problem]], ...] = (
        _check_grant,
        _check_client,
        _check_formats,
        _check_request,
        _check_allowed,
    )
    return [problem for check in checks for problem in check(identity, provider)]


def check_loaded(loaded: Loaded, *, cluster_namespace: str = CLUSTER_NAMESPACE) -> list[Problem]:
    """Return what does not fit between resources that are each valid, each identity's problems with its place.

    An identity whose provider is not valid is passed over: the provider's own problems say why. Lines are those where
    the identity begins; :func:`keyferry.spec.documents.find_line` finds the field's.
    """
    providers = {(provider.kind, provider.key): provider for provider in loaded.providers}
    problems: list[Problem] = []
    for identity in loaded.identities:
        kind, key = provider_key(identity, cluster_namespace)
        provider = providers.get((kind, key))
        if provider is not None:
            found = check_pair(identity.spec, provider.spec)
        elif (kind, key) in loaded.invalid:
            continue
        else:
            found = [_not_found(identity, [other.key.name for other in loaded.providers if other.kind is kind])]
        label = f"{IDENTITY_KIND} {identity.key}"
        problems.extend(problem.at(source=identity.source, line=identity.line, resource=label) for problem in found)
    return problems


def _not_found(identity: IdentityResource, names: list[str]) -> Problem:
    reference = identity.spec.provider_ref
    place = "" if reference.kind is ProviderKind.CLUSTER_TOKEN_PROVIDER else f" in namespace {identity.key.namespace}"
    meant = closest(reference.name, names)
    hint = f"; did you mean {meant}?" if meant is not None and meant != reference.name else ""
    return Problem(
        "spec.providerRef",
        f"there is no {reference.kind} {reference.name}{place}{hint}",
        Reason.PROVIDER_NOT_FOUND,
    )


def check_secret_formats(identity: ServiceIdentitySpec) -> Problem | None:
    """Return the format that a published Secret cannot hold (reason FormatNeedsSidecar), or None.

    Only the operator asks this: `keyferry run` writes files, which can be anything.
    """
    if identity.target.type is TargetType.NONE:
        return None
    for index, file in enumerate(identity.target.files):
        if file.format is FileFormat.LABARCHIVES or (file.format is FileFormat.TILED and identity.api_key is None):
            return Problem(
                join_path(("spec", "target", "files", index, "format")),
                f"{file.format} cannot be kept in a Secret; use the sidecar with target.type: None"
                + (", or set apiKey" if file.format is FileFormat.TILED else ""),
                Reason.FORMAT_NEEDS_SIDECAR,
            )
    return None


def client_of(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> Client | None:
    """Return the OAuth client that counts: the identity's, else the provider's."""
    if identity.client is not None:
        return identity.client
    return provider.oauth.client if provider.oauth is not None else None


def _check_grant(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> Iterator[Problem]:
    if identity.grant.type not in GRANTS[provider.type]:
        choices = ", ".join(grant for grant in GrantType if grant in GRANTS[provider.type])
        yield Problem(
            "spec.grant.type",
            f"{identity.grant.type} does not go with a provider of type {provider.type}, which takes {choices}",
        )
    if identity.api_key is not None and provider.type is not ProviderType.TILED:
        yield Problem("spec.apiKey", f"needs a provider of type Tiled; this one is of type {provider.type}")


def _check_client(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> Iterator[Problem]:
    if provider.oauth is None:
        return
    client = client_of(identity, provider)
    if client is None:
        yield Problem("spec.client", "is missing; neither the identity nor its provider names a client")
        return
    if identity.grant.type is GrantType.CLIENT_CREDENTIALS and client.authentication is ClientAuthentication.NONE:
        yield Problem(
            "spec.grant.type", "ClientCredentials needs a client that authenticates (RFC 6749 4.4); its is None"
        )
    if identity.client is None:
        return  # The provider's own client was checked with the provider.
    if client.authentication is ClientAuthentication.TLS_CLIENT_AUTH and provider.tls.client_certificate_from is None:
        yield Problem(
            "spec.client.authentication",
            "TlsClientAuth needs tls.clientCertificateFrom of the provider, which is not set",
        )
    if provider.oauth.issuer is None and needs_issuer(client):
        yield Problem(
            "spec.client.assertionAudience", "is the issuer, which the provider does not set; set it to TokenEndpoint"
        )


def _check_formats(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> Iterator[Problem]:
    for index, file in enumerate(identity.target.files):
        needed = FORMATS.get(file.format, provider.type)
        if needed is not provider.type:
            yield Problem(
                join_path(("spec", "target", "files", index, "format")),
                f"{file.format} needs a provider of type {needed}; this one is of type {provider.type}",
            )
        elif provider.type is ProviderType.LABARCHIVES and file.format is not FileFormat.LABARCHIVES:
            yield Problem(
                "spec.target.files",
                "a LabArchives login is no token, and what stands for it is never published: write"
                " `files: [{format: LabArchives}]`",
            )
            return


def _check_request(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> Iterator[Problem]:
    if provider.type is ProviderType.OAUTH:
        return
    for name in _REQUEST_FIELDS:
        if identity.is_set(name):
            hint = "; scopes of a Tiled key belong to apiKey.scopes" if name == "scopes" else ""
            yield Problem(f"spec.{name}", f"does not go with a provider of type {provider.type}{hint}")


def _check_allowed(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> Iterator[Problem]:
    if not isinstance(provider, ClusterTokenProviderSpec):
        return
    allow = provider.allow
    grants = allow.grants or (PLAIN_GRANTS[provider.type],)
    if identity.grant.type not in grants:
        yield _not_allowed(("grant", "type"), f"the grant {identity.grant.type} is", "grants", allow)
    for name, plural in (("scopes", "scope"), ("audiences", "audience"), ("resources", "resource")):
        for index, value in enumerate(getattr(identity, name)):
            if value not in getattr(allow, name):
                yield _not_allowed((name, index), f"the {plural} is", name, allow)
    for name in identity.parameters:
        if name not in allow.parameters:
            yield _not_allowed(("parameters", name), "the parameter is", "parameters", allow)


def _not_allowed(path: tuple[str | int, ...], what: str, member: str, allow: Allow) -> Problem:
    listed = getattr(allow, member)
    known = f" (it lists {', '.join(listed)})" if listed else " (which is absent)"
    return Problem(
        join_path(("spec", *path)),
        f"{what} not allowed by the ClusterTokenProvider's allow.{member}{known}",
        Reason.PROVIDER_NOT_ALLOWED,
    )
