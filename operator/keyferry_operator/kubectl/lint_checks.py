"""What is wrong with resource files in this cluster: what is not there, not labelled, or refused by the API server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from httpx import codes

from keyferry.cli.lint_checks import findings, misfits, problem_of
from keyferry.cli.options import complain
from keyferry.engine.credentials import named_configs, named_keys
from keyferry.engine.provider import front_hosts
from keyferry.engine.roster import identity_refs, subjects
from keyferry.errors import Reason
from keyferry.model import ObjectKey
from keyferry.spec.check import check_secret_formats
from keyferry.spec.documents import find_value
from keyferry.spec.identity import ProviderKind
from keyferry.spec.loaded import IDENTITY_KIND, IdentityResource, provider_key
from keyferry.spec.resources import load_object, merge_loaded
from keyferry_operator.client import (
    CLUSTER_PROVIDERS,
    CONFIG_MAPS,
    IDENTITIES,
    PROVIDERS,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from keyferry_operator.consent import objection
from keyferry_operator.kubectl.api import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.cli.lint_checks import Findings
    from keyferry.spec.core import SecretResource
    from keyferry.spec.problem import Problem
    from keyferry.spec.resources import Loaded, ProviderResource
    from keyferry_operator.client import Kind, Object
    from keyferry_operator.kubectl.api import Api

    Resource = IdentityResource | ProviderResource

KINDS: Final = {
    IDENTITY_KIND: IDENTITIES,
    ProviderKind.TOKEN_PROVIDER.value: PROVIDERS,
    ProviderKind.CLUSTER_TOKEN_PROVIDER.value: CLUSTER_PROVIDERS,
}
_NO_ANSWER: Final = frozenset({0, codes.UNAUTHORIZED, codes.TOO_MANY_REQUESTS})
_CONSENT: Final = "spec.consumers"
"""The field of a problem that is another identity's to mend, which may be in the cluster only."""


def lint_offline(loaded: Loaded) -> Findings:
    """Check the files by themselves, for use in a cluster."""
    return findings([*loaded.problems, *misfits(loaded), *_formats(loaded)], ())


def _formats(loaded: Loaded) -> Iterator[Problem]:
    """Find formats that a Secret cannot hold."""
    for identity in loaded.identities:
        problem = check_secret_formats(identity.spec)
        if problem is not None:
            yield problem_of(identity, problem.path, problem.message, problem.reason)


class ClusterLint:
    """Checks files against one cluster, with the rights of the person who asks."""

    def __init__(self, api: Api, loaded: Loaded, home: str) -> None:
        self._api = api
        self._loaded = loaded
        self._home = home
        self._mistakes: list[Problem] = [*loaded.problems, *_formats(loaded)]
        self._hints: list[Problem] = []
        self._unreadable: dict[tuple[str, str], str] = {}
        """What may not be read, by kind and namespace, and why."""
        self._seen: dict[tuple[str, str, str], Object | None] = {}

    def run(self) -> Findings | None:
        """Return what was found; None, with a note, where the cluster cannot be asked after all."""
        try:
            whole = self._surroundings()
        except RefusedError as error:
            complain(f"no cluster is asked: {error.message} (--offline leaves this note out)")
            return None
        self._mistakes += [found for found in misfits(whole) if found.source or found.path == _CONSENT]
        providers = {(provider.kind, provider.key): provider for provider in whole.providers}
        for resource in self._resources():
            self._credentials(resource, _hosts(resource, providers))
        for resource in self._resources():
            self._try(resource)
        for message in self._unreadable.values():
            complain(message)
        return findings(self._mistakes, self._hints)

    def _resources(self) -> list[Resource]:
        return [*self._loaded.providers, *self._loaded.identities]

    # --- what else there is -------------------------------------------------------------------------------------------

    def _surroundings(self) -> Loaded:
        """Return the files' resources, with what they refer to in the cluster and in no file."""
        declared = {(provider.kind.value, provider.key) for provider in self._loaded.providers}
        declared |= {(IDENTITY_KIND, identity.key) for identity in self._loaded.identities}
        wanted: dict[tuple[str, ObjectKey], None] = {}
        for identity in self._loaded.identities:
            kind, key = provider_key(identity)
            wanted[kind.value, key] = None
            for name in identity_refs(identity.spec):
                wanted[IDENTITY_KIND, ObjectKey(identity.key.namespace, name)] = None
        parts, invalid = [self._loaded], set(self._loaded.invalid)
        for kind_name, key in wanted:
            if (kind_name, key) in declared or (kind_name, key) in invalid:
                continue
            found, readable = self._find(KINDS[kind_name], key)
            if not readable:
                invalid.add((kind_name, key))  # whether it fits cannot be told, so nothing is said of it
            elif found is not None:
                part = load_object(found)
                parts.append(replace(part, problems=()))
                invalid |= part.invalid
        return replace(merge_loaded(parts), invalid=frozenset(invalid))

    def _find(self, kind: Kind, key: ObjectKey, *, metadata_only: bool = False) -> tuple[Object | None, bool]:
        """Return an object of the cluster, and whether one may read it. Raises RefusedError where nobody answers."""
        place = (kind.plural, key.namespace, key.name)
        if place in self._seen:
            return self._seen[place], True
        scope = key.namespace if kind.namespaced else None
        if (kind.plural, key.namespace) in self._unreadable:
            return None, False
        try:
            found = self._api.get(kind, scope, key.name, metadata_only=metadata_only)
        except RefusedError as error:
            if not error.denied:
                raise
            self._unreadable[kind.plural, key.namespace] = f"{error.message}. What hangs on them was not checked"
            return None, False
        self._seen[place] = found
        return found, True

    # --- credentials --------------------------------------------------------------------------------------------------

    def _credentials(self, resource: Resource, hosts: frozenset[str]) -> None:
        """Check what a resource takes its credentials from."""
        cluster_wide = getattr(resource, "kind", None) is ProviderKind.CLUSTER_TOKEN_PROVIDER
        namespace = self._home if cluster_wide else resource.key.namespace
        for name in sorted({name for name, _ in named_keys(resource.spec)}):
            self._secret(resource, ObjectKey(namespace, name), hosts)
        for name in sorted(_accounts(resource)):
            self._account(resource, ObjectKey(namespace, name), hosts)
        for name, key in sorted(named_configs(resource.spec)):
            self._config(resource, ObjectKey(namespace, name), key)

    def _secret(self, resource: Resource, key: ObjectKey, hosts: frozenset[str]) -> None:
        document = next((secret for secret in self._loaded.secrets if secret.key == key), None)
        if document is not None:
            self._object_to(resource, _metadata(document), "secret", key, hosts)
            return
        found, readable = self._try_find(SECRETS, key)
        if found is not None:
            self._object_to(resource, found["metadata"], "secret", key, hosts)
        elif readable:
            self._miss(resource, f"Secret {key}")

    def _account(self, resource: Resource, key: ObjectKey, hosts: frozenset[str]) -> None:
        found, readable = self._try_find(SERVICE_ACCOUNTS, key)
        if found is not None:
            self._object_to(resource, found["metadata"], "serviceaccount", key, hosts)
        elif readable:
            self._miss(resource, f"ServiceAccount {key}")

    def _config(self, resource: Resource, key: ObjectKey, entry: str) -> None:
        if any(config.key == key and entry in config.data for config in self._loaded.config_maps):
            return
        found, readable = self._try_find(CONFIG_MAPS, key, metadata_only=False)
        if readable and entry not in ((found or {}).get("data") or {}):
            self._miss(resource, f"key {entry!r} of ConfigMap {key}")

    def _try_find(self, kind: Kind, key: ObjectKey, *, metadata_only: bool = True) -> tuple[Object | None, bool]:
        """As ``_find``; of a Secret everything but its content. What goes wrong is a hint."""
        try:
            return self._find(kind, key, metadata_only=metadata_only)
        except RefusedError as error:
            self._unreadable[kind.plural, key.namespace] = f"{kind.plural} were not checked: {error.message}"
            return None, False

    def _object_to(
        self, resource: Resource, metadata: dict[str, Any], what: str, key: ObjectKey, hosts: frozenset[str]
    ) -> None:
        against = objection(metadata, what, key.namespace, key.name, hosts)
        if against is None:
            return
        remedy = f"; if it is meant to be: {against.remedy}" if against.remedy else "; use identityRef"
        title = "ServiceAccount" if what == "serviceaccount" else "Secret"
        self._mistakes.append(problem_of(resource, "spec", f"{title} {key} {against.fault}{remedy}", against.reason))

    def _miss(self, resource: Resource, what: str) -> None:
        message = f"{what} is neither in the cluster nor among the files; Keyferry waits until it is created"
        self._hints.append(problem_of(resource, "spec", message, Reason.SECRET_NOT_FOUND))

    # --- the API server -----------------------------------------------------------------------------------------------

    def _try(self, resource: Resource) -> None:
        """Have the API server check a resource as if it were applied."""
        kind = KINDS[getattr(resource, "kind", IDENTITY_KIND)]
        scope = resource.key.namespace if kind.namespaced else None
        if ("dry run of " + kind.plural, str(scope)) in self._unreadable:
            return
        body = _written(resource, scope)
        if body is None:
            return
        try:
            self._api.try_apply(kind, scope, body)
        except RefusedError as error:
            if error.denied or error.status in _NO_ANSWER or error.status >= codes.INTERNAL_SERVER_ERROR:
                told = f"{error.message}. So the API server was not asked what it makes of them"
                self._unreadable["dry run of " + kind.plural, str(scope)] = told
                return
            self._refused(resource, error)

    def _refused(self, resource: Resource, error: RefusedError) -> None:
        for cause in error.causes:
            text = f"the API server would refuse it: {cause.message}"
            self._mistakes.append(problem_of(resource, cause.field, text, Reason.INVALID_SPEC))
        if not error.causes:
            self._mistakes.append(problem_of(resource, "", error.message, Reason.INVALID_SPEC))


def _hosts(resource: Resource, providers: dict[tuple[ProviderKind, ObjectKey], ProviderResource]) -> frozenset[str]:
    """Return the hosts that a resource's credentials go to, as far as the provider names them itself."""
    if not isinstance(resource, IdentityResource):
        return front_hosts(resource.spec)
    provider = providers.get(provider_key(resource))
    return front_hosts(provider.spec) if provider is not None else frozenset()


def _accounts(resource: Resource) -> set[str]:
    """Return the ServiceAccounts whose tokens a resource presents."""
    if isinstance(resource, IdentityResource):
        presented = list(subjects(resource.spec))
    else:
        client = resource.spec.oauth.client if resource.spec.oauth is not None else None
        presented = [client.assertion_from] if client is not None and client.assertion_from is not None else []
    return {each.service_account_token.name for each in presented if each.service_account_token is not None}


def _metadata(secret: SecretResource) -> dict[str, Any]:
    return {"labels": dict(secret.labels), "annotations": dict(secret.annotations)}


def _written(resource: Resource, namespace: str | None) -> Object | None:
    """Return a resource as its file has it; None where the file is another one by now."""
    if resource.line is None:
        return None
    try:
        body = find_value(Path(resource.source).read_bytes(), resource.line)
    except OSError:
        return None
    if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
        return None
    metadata = {**body["metadata"], **({"namespace": namespace} if namespace else {})}
    return {**body, "metadata": metadata}
