"""Stable digests of what was declared, by which a change is noticed after a restart or an upgrade.

A digest covers the fields that differ from their defaults, as JSON with sorted names: so it is the same on every
version of Python, and a new field with a default changes nobody's digest (and causes no exchange).
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from keyferry.spec.common import Model

if TYPE_CHECKING:
    from keyferry.spec.identity import ServiceIdentitySpec
    from keyferry.spec.provider import TokenProviderSpec
    from keyferry.spec.target import Target

_NOT_OF_THE_TOKEN: Final = frozenset({"provider_ref", "renewal", "suspend", "target", "consumers", "deletion_policy"})
_NOT_OF_THE_ANSWER: Final = frozenset({"limits", "tls", "namespace_selector", "allow"})
_OAUTH_POLICY: Final = frozenset({"refresh_tokens", "lifetime"})


def spec_hash(*parts: object) -> str:
    """Return the SHA-256 (hex) of plain values and models, models without what is at its default."""
    plain = [_plain(part) if isinstance(part, Model) else part for part in parts]
    return hashlib.sha256(_canonical(plain)).hexdigest()


def token_hash(identity: ServiceIdentitySpec, provider: TokenProviderSpec) -> str:
    """Return the digest of what determines which token is issued; another digest means another token is wanted.

    When, where and for whom it is published (renewal, suspend, target, consumers, deletionPolicy), and the provider's
    limits, TLS and refresh policy, do not count. Nor does the provider's name: what it says does.
    """
    digest = hashlib.sha256(_canonical(_plain(identity, _NOT_OF_THE_TOKEN)))
    digest.update(_provider_digest(provider))
    return digest.hexdigest()


def files_hash(target: Target) -> str:
    """Return the digest of what is published and where (files, Secret name and type, labels, annotations)."""
    return _files_digest(target)


@functools.lru_cache(maxsize=1024)
def _files_digest(target: Target) -> str:
    return hashlib.sha256(_canonical(_plain(target, frozenset({"touch_pods"})))).hexdigest()


@functools.lru_cache(maxsize=1024)
def _provider_digest(provider: TokenProviderSpec) -> bytes:
    plain = _plain(provider, _NOT_OF_THE_ANSWER)
    if provider.oauth is not None:
        plain["oauth"] = _plain(provider.oauth, _OAUTH_POLICY)
    return hashlib.sha256(_canonical(plain)).digest()


def _plain(model: Model, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=set(exclude))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
