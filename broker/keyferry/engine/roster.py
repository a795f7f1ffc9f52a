"""Who is declared: identities and providers, who uses what, and which resources cannot be used as they are written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from keyferry.engine.credentials import Reference, named_keys, references
from keyferry.engine.entry import Entry, ProviderKey
from keyferry.engine.provider import Drivers, Provider
from keyferry.errors import KeyferryError, Reason, ResourceError
from keyferry.model import ObjectKey
from keyferry.render import ENDPOINT_FORMATS, Delivery
from keyferry.spec.check import check_pair, check_secret_formats
from keyferry.spec.hashes import files_hash, token_hash
from keyferry.spec.identity import ProviderKind
from keyferry.spec.resources import provider_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.engine.ports import Ports
    from keyferry.engine.shards import Shards
    from keyferry.spec.common import Subject
    from keyferry.spec.identity import ServiceIdentitySpec
    from keyferry.spec.resources import IdentityResource, ProviderResource

_K = TypeVar("_K")
_V = TypeVar("_V")


class Roster:
    """The declared resources, as the engine works with them."""

    def __init__(self, ports: Ports, drivers: Drivers, shards: Shards, *, page_url: str = "") -> None:
        """``page_url`` is where the approval page is; empty where there is none."""
        self.shards = shards
        self.page_url = page_url
        self._ports = ports
        self._drivers = drivers
        self.entries: dict[ObjectKey, Entry] = {}
        self.providers: dict[ProviderKey, Provider] = {}
        self._invalid: dict[ProviderKey, KeyferryError] = {}
        """Providers whose newest version is not valid."""
        self._by_provider: defaultdict[ProviderKey, set[ObjectKey]] = defaultdict(set)
        self._by_reference: defaultdict[Reference, set[ObjectKey]] = defaultdict(set)
        self._providers_by_reference: defaultdict[Reference, set[ProviderKey]] = defaultdict(set)
        self._by_subject: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)

    def declare_provider(self, resource: ProviderResource) -> set[ObjectKey]:
        """Take in a new or changed provider; return the identities that it concerns."""
        key: ProviderKey = (resource.kind.value, resource.key)
        was_invalid = self._invalid.pop(key, None) is not None
        provider = self.providers.get(key)
        if provider is None:
            self.providers[key] = Provider(resource, self._ports, self._drivers)
        elif provider.resource.spec == resource.spec:
            provider.update(resource)
            return self._recheck(key) if was_invalid else set()
        else:
            self._unlink_provider(provider.resource, key)
            provider.update(resource)
        for reference in references(resource.spec, resource.key.namespace):
            self._providers_by_reference[reference].add(key)
        return self._recheck(key)

    def drop_provider(self, key: ProviderKey) -> set[ObjectKey]:
        """Forget a provider; return the identities that it concerns."""
        gone = self.providers.pop(key, None)
        if gone is not None:
            self._unlink_provider(gone.resource, key)
        self._invalid.pop(key, None)
        return self._recheck(key)

    def refuse_provider(self, key: ProviderKey, error: KeyferryError) -> set[ObjectKey]:
        """Note that a provider's new version is not valid; return the identities that it concerns.

        A good version before it goes on; else they are told why there is none.
        """
        self._invalid[key] = error
        return self._recheck(key)

    def recheck_namespace(self, namespace: str) -> set[ObjectKey]:
        """Check a namespace's identities again, whose provider may be open to it or closed now; return those changed.

        Only ClusterTokenProviders are offered to namespaces.
        """
        changed: set[ObjectKey] = set()
        for (kind, _), users in self._by_provider.items():
            if kind != ProviderKind.CLUSTER_TOKEN_PROVIDER:
                continue
            for key in users:
                entry = self.entries[key]
                if key.namespace == namespace:
                    before = entry.refusal
                    self.check(entry)
                    if (before and before.message) != (entry.refusal and entry.refusal.message):
                        changed.add(key)
        return changed

    def declare_identity(self, resource: IdentityResource) -> Entry:
        """Take in a new or changed identity."""
        entry = self.entries.get(resource.key)
        kind, key = provider_key(resource, self._ports.cluster_namespace)
        if entry is None:
            entry = Entry(resource, resource.uid, (kind.value, key), "", "", page_url=self.page_url)
            self.entries[resource.key] = entry
        else:
            self._unlink(entry)
            entry.resource = resource
            entry.provider_key = (kind.value, key)
        self._by_provider[entry.provider_key].add(resource.key)
        entry.named_keys = named_keys(resource.spec)
        for reference in references(resource.spec, resource.key.namespace):
            self._by_reference[reference].add(resource.key)
        for name in identity_refs(resource.spec):
            self._by_subject[ObjectKey(resource.key.namespace, name)].add(resource.key)
        self.check(entry)
        return entry

    def presenters_of(self, key: ObjectKey) -> set[ObjectKey]:
        """Return the identities that present this one's token (``identityRef``), directly or by way of others.

        They are checked again: a change of this one may close or open a circle, or give or take its consent.
        """
        found: set[ObjectKey] = set()
        pending = [key]
        while pending:
            following = self._by_subject.get(pending.pop(), set()) - found
            found |= following
            pending += following
        found.discard(key)
        for presenter in found:
            self.check(self.entries[presenter])
        return found

    def users_of_provider(self, key: ProviderKey) -> set[ObjectKey]:
        """Return the identities whose tokens come from a provider."""
        return set(self._by_provider.get(key, ()))

    def drop_identity(self, key: ObjectKey) -> Entry | None:
        """Forget an identity."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self._unlink(entry)
        return entry

    def provider_of(self, entry: Entry) -> Provider | None:
        """Return the provider that an identity means, where it is declared."""
        return self.providers.get(entry.provider_key)

    def shard_name(self, entry: Entry) -> str:
        """Return what an identity's shard hangs on: its provider's uid, or its name where nothing else is known."""
        provider = self.provider_of(entry)
        kind, key = entry.provider_key
        return (provider.resource.uid if provider is not None else "") or f"{kind} {key}"

    def shard_of(self, entry: Entry) -> int:
        """Return the shard that an identity falls to."""
        return self.shards.of(self.shard_name(entry))

    def held_providers(self) -> list[Provider]:
        """Return the providers of the shards that this process holds."""
        return [
            provider
            for (kind, key), provider in self.providers.items()
            if self.shards.of(provider.resource.uid or f"{kind} {key}") in self.shards.held
        ]

    def users_of(self, reference: Reference) -> set[ObjectKey]:
        """Return the identities that use what a reference leads to, themselves or through their provider."""
        users = set(self._by_reference.get(reference, ()))
        for key in self.providers_using(reference):
            users |= self._by_provider.get(key, set())
        return users

    def providers_using(self, reference: Reference) -> set[ProviderKey]:
        """Return the providers that use what a reference leads to."""
        return set(self._providers_by_reference.get(reference, ()))

    def providers_trusting(self, reference: Reference) -> set[ProviderKey]:
        """Return the providers whose TLS hangs on what a reference leads to."""
        return {
            key
            for key in self.providers_using(reference)
            if reference in references(self.providers[key].resource.spec.tls, reference.namespace)
        }

    def references(self) -> frozenset[Reference]:
        """Return everything that anything points to."""
        return frozenset(self._by_reference.keys() | self._providers_by_reference.keys())

    def check(self, entry: Entry) -> None:
        """Work out whether an identity can be used as it is written, and the hashes that tell a change."""
        provider = self.provider_of(entry)
        spec = entry.resource.spec
        entry.files_hash = self._files_hash(entry)
        if provider is None:
            entry.refusal = self._without_provider(entry)
            return
        entry.spec_hash = token_hash(spec, provider.resource.spec)
        entry.refusal = self._refusal(entry, provider)

    def _without_provider(self, entry: Entry) -> KeyferryError:
        """Say why an identity has no provider."""
        kind, key = entry.provider_key
        cluster = kind == ProviderKind.CLUSTER_TOKEN_PROVIDER
        name = key.name if cluster else str(key)
        invalid = self._invalid.get(entry.provider_key)
        if invalid is not None:
            text = f"its provider, {kind} {name}, is not valid: {invalid.message}"
            return ResourceError(f"ServiceIdentity {entry.key}: {text}", reason=invalid.reason)
        if cluster and self._ports.without_cluster_providers:
            text = f"there is no {kind} for it: {self._ports.without_cluster_providers}"
            return ResourceError(f"ServiceIdentity {entry.key}: {text}", reason=Reason.PROVIDER_NOT_ALLOWED)
        return ResourceError(
            f"ServiceIdentity {entry.key}: its provider, {kind} {name}, is not there. Create it, or correct"
            " spec.providerRef; Keyferry goes on as soon as it appears.",
            reason=Reason.PROVIDER_NOT_FOUND,
        )

    def _refusal(self, entry: Entry, provider: Provider) -> KeyferryError | None:
        spec = entry.resource.spec
        objection = self._ports.admits(entry.key.namespace, provider.resource)
        if objection:
            return ResourceError(f"ServiceIdentity {entry.key}: {objection}", reason=Reason.PROVIDER_NOT_ALLOWED)
        unwanted = self._ports.permits(entry.resource)
        if unwanted:
            return ResourceError(f"ServiceIdentity {entry.key}: {unwanted}", reason=Reason.INVALID_SPEC)
        problems = check_pair(spec, provider.resource.spec)
        lasting = check_secret_formats(spec) if self._ports.publisher.delivery is Delivery.SECRET else None
        problems += [lasting] if lasting is not None else []
        if problems:
            text = "; ".join(f"{problem.path} {problem.message}" for problem in problems)
            return ResourceError(f"ServiceIdentity {entry.key}: {text}", reason=problems[0].reason)
        cycle = self._cycle(entry.key)
        if cycle:
            chain = " -> ".join(key.name for key in cycle)
            return ResourceError(
                f"ServiceIdentity {entry.key}: its identityRef leads back to itself ({chain}), so none of them could"
                " ever be first. Let one of them obtain its token in another way.",
                reason=Reason.IDENTITY_CYCLE,
            )
        return None

    def _files_hash(self, entry: Entry) -> str:
        """Return the digest of what is published, with the endpoint where a file names it."""
        target = entry.resource.spec.target
        plain = files_hash(target)
        endpoint = self._ports.publisher.endpoint(entry.key)
        if endpoint is None or not any(file.format in ENDPOINT_FORMATS for file in target.files):
            return plain
        placeholder = endpoint.placeholder.fingerprint(self._ports.store.digest_key)
        return hashlib.sha256(f"{plain} {endpoint.url} {placeholder}".encode()).hexdigest()

    def _cycle(self, start: ObjectKey) -> list[ObjectKey]:
        """Return the way from an identity back to itself over identityRefs, or nothing."""
        stack: list[list[ObjectKey]] = [[start]]
        seen: set[ObjectKey] = set()
        while stack:
            path = stack.pop()
            entry = self.entries.get(path[-1])
            if entry is None:
                continue
            for name in identity_refs(entry.resource.spec):
                following = ObjectKey(start.namespace, name)
                if following == start:
                    return [*path, start]
                if following not in seen:
                    seen.add(following)
                    stack.append([*path, following])
        return []

    def _recheck(self, key: ProviderKey) -> set[ObjectKey]:
        affected = set(self._by_provider.get(key, ()))
        for identity in affected:
            self.check(self.entries[identity])
        return affected

    def _unlink_provider(self, resource: ProviderResource, key: ProviderKey) -> None:
        for reference in references(resource.spec, resource.key.namespace):
            _discard(self._providers_by_reference, reference, key)

    def _unlink(self, entry: Entry) -> None:
        _discard(self._by_provider, entry.provider_key, entry.key)
        for reference in references(entry.resource.spec, entry.key.namespace):
            _discard(self._by_reference, reference, entry.key)
        for name in identity_refs(entry.resource.spec):
            _discard(self._by_subject, ObjectKey(entry.key.namespace, name), entry.key)


def _discard(index: dict[_K, set[_V]], place: _K, key: _V) -> None:
    """Take a key out of an index, and the place with it when it was the last: names come and go for months."""
    keys = index.get(place)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[place]


def identity_refs(spec: ServiceIdentitySpec) -> Iterator[str]:
    """Yield the names of the identities whose tokens an identity presents."""
    for subject in subjects(spec):
        if subject.identity_ref is not None:
            yield subject.identity_ref.name


def subjects(spec: ServiceIdentitySpec) -> Iterator[Subject]:
    """Yield the tokens that an identity presents to obtain its own."""
    found: list[Subject | None] = []
    if spec.grant.jwt_bearer is not None:
        found.append(spec.grant.jwt_bearer.assertion)
    if spec.grant.token_exchange is not None:
        found += [spec.grant.token_exchange.subject, spec.grant.token_exchange.actor]
    if spec.client is not None:
        found.append(spec.client.assertion_from)
    yield from (subject for subject in found if subject is not None)
