"""Who may use what: providers that are offered to some namespaces, and labels that the installation allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from keyferry.spec.provider import ClusterTokenProviderSpec
from keyferry_operator.installation import ANY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyferry.spec.resources import IdentityResource, ProviderResource
    from keyferry.spec.selector import NamespaceSelector
    from keyferry_operator.client import Object
    from keyferry_operator.installation import TargetSettings

Labels = Mapping[str, str]


class Admission:
    """Knows the namespaces' labels, as far as they were seen."""

    def __init__(self, targets: TargetSettings, watch_namespaces: tuple[str, ...] = ()) -> None:
        self._targets = targets
        self._namespaces: dict[str, Labels] = {}
        self.without_cluster_providers = (
            f"this installation looks after named namespaces only (watch.namespaces: {', '.join(watch_namespaces)}),"
            " and ClusterTokenProviders need rights on the whole cluster. Use a TokenProvider in the identity's own"
            " namespace, or have Keyferry installed without watch.namespaces"
            if watch_namespaces
            else ""
        )

    def see(self, body: Object, *, deleted: bool = False) -> bool:
        """Take in a namespace as it is now; tell whether its labels changed."""
        metadata = body["metadata"]
        name = str(metadata["name"])
        before = self._namespaces.get(name)
        if deleted:
            self._namespaces.pop(name, None)
            return before is not None
        self._namespaces[name] = labels = dict(metadata.get("labels") or {})
        return before != labels

    def admits(self, namespace: str, provider: ProviderResource) -> str:
        """Tell why identities of a namespace may not use a provider; nothing where they may."""
        if not isinstance(provider.spec, ClusterTokenProviderSpec):
            return ""
        selector = provider.spec.namespace_selector
        if selector is None:
            return (
                f"ClusterTokenProvider {provider.key.name} has no namespaceSelector, so it is not offered to namespace"
                f" {namespace}. Its administrator can offer it to namespaces by their labels, or to every namespace"
                " with `namespaceSelector: {}`."
            )
        labels = self._namespaces.get(namespace)
        if selector.selects_all or (labels is not None and selector.matches(labels)):
            return ""
        return (
            f"ClusterTokenProvider {provider.key.name} is offered to namespaces with the labels `{selector}`, which"
            f" namespace {namespace} has not. {_remedy(selector, namespace)}"
        )

    def permits(self, identity: IdentityResource) -> str:
        """Tell which label or annotation of the published Secret the installation does not allow."""
        target = identity.spec.target
        for name, given, allowed in (
            ("labels", target.labels, self._targets.labels),
            ("annotations", target.annotations, self._targets.annotations),
        ):
            for key in given:
                if not _is_allowed(key, allowed):
                    listed = f"it allows {', '.join(allowed)}" if allowed else "it allows none"
                    return (
                        f"spec.target.{name}: this installation does not allow the key {key} ({listed}). Leave it out,"
                        f" or have the administrator add it to the chart value targets.{name}."
                    )
        return ""


def _remedy(selector: NamespaceSelector, namespace: str) -> str:
    who = "An administrator"
    if selector.match_expressions:
        return f"{who} can give the namespace fitting labels, or change the provider's namespaceSelector."
    wanted = " ".join(f"{key}={value}" for key, value in selector.match_labels.items())
    return f"{who} can offer it: kubectl label namespace {namespace} {wanted}"


def _is_allowed(key: str, allowed: Iterable[str]) -> bool:
    domain = key.rpartition("/")[0]
    return any(each in (ANY, key) or (each.endswith("/*") and each[:-2] == domain) for each in allowed)
