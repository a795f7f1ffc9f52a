"""What reading files of resources gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from keyferry.model import ObjectKey
from keyferry.spec.frozen import EMPTY
from keyferry.spec.identity import ProviderKind, ServiceIdentitySpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.spec.core import ConfigMapResource, SecretResource
    from keyferry.spec.problem import Problem
    from keyferry.spec.provider import TokenProviderSpec

GROUP: Final = "keyferry.dev"
API_VERSION: Final = "keyferry.dev/v1alpha1"
IDENTITY_KIND: Final = "ServiceIdentity"
KINDS: Final = (IDENTITY_KIND, *ProviderKind)
DEFAULT_NAMESPACE: Final = "default"
CLUSTER_NAMESPACE: Final = "keyferry"
"""Where a ClusterTokenProvider's references resolve: the operator's namespace."""

Identified: TypeAlias = tuple[str, ObjectKey]
"""A kind and the key of one resource of it."""


@dataclass(frozen=True, slots=True)
class ProviderResource:
    """A valid TokenProvider or ClusterTokenProvider."""

    key: ObjectKey
    """A ClusterTokenProvider's namespace is the one in which its references resolve."""
    kind: ProviderKind
    spec: TokenProviderSpec
    source: str = ""
    line: int | None = None
    uid: str = ""
    generation: int = 0
    annotations: Mapping[str, str] = EMPTY
    """Only those of keyferry.dev."""


@dataclass(frozen=True, slots=True)
class IdentityResource:
    """A valid ServiceIdentity."""

    key: ObjectKey
    spec: ServiceIdentitySpec
    source: str = ""
    line: int | None = None
    uid: str = ""
    generation: int = 0
    annotations: Mapping[str, str] = EMPTY
    """Only those of keyferry.dev."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, and what was wrong."""

    providers: tuple[ProviderResource, ...] = ()
    identities: tuple[IdentityResource, ...] = ()
    secrets: tuple[SecretResource, ...] = ()
    config_maps: tuple[ConfigMapResource, ...] = ()
    problems: tuple[Problem, ...] = ()
    invalid: frozenset[Identified] = frozenset()
    """Resources that are there by name but not valid: their last good version stays in force."""
    complete: bool = True
    """False where a file could not be read to its end: what is missing may be only unreadable, not deleted."""


def provider_key(
    identity: IdentityResource, cluster_namespace: str = CLUSTER_NAMESPACE
) -> tuple[ProviderKind, ObjectKey]:
    """Return which provider an identity means: its own namespace's, or a cluster provider."""
    reference = identity.spec.provider_ref
    if reference.kind is ProviderKind.CLUSTER_TOKEN_PROVIDER:
        return reference.kind, ObjectKey(cluster_namespace, reference.name)
    return reference.kind, ObjectKey(identity.key.namespace, reference.name)
