"""Which hosts are open to which provider, and which go through the proxy.

A TokenProvider is written by whoever may write in a namespace, a ClusterTokenProvider by an administrator. So private
addresses are open, over TLS, to the latter alone; the installation opens others host by host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.engine.provider import front_hosts
from keyferry.io.addresses import AddressPolicy, HostRule
from keyferry.spec.identity import ProviderKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyferry.secret import SecretValue
    from keyferry.spec.resources import ProviderResource
    from keyferry_operator.installation import Installation

DEFAULT_PORTS: Final = (443, 80)
"""Of a host that is named without one; the scheme is not known then."""
_ENTRY: Final = 'an entry {host: "{name}", port: {port}%s} in the installation\'s providers.allowedHosts would allow it'
ADVICE: Final = _ENTRY % ""
NAMESPACED_ADVICE: Final = f"{ADVICE}; private addresses over TLS are open to ClusterTokenProviders without one"
HTTP_ADVICE: Final = _ENTRY % ", plainHTTP: true"
DENIAL: Final = "the installation closes this network (providers.deniedCIDRs)"


class Addresses:
    """Answers for every provider; connections are shared by those for whom the answer is the same."""

    def __init__(
        self, installation: Installation, *, allowed: Iterable[HostRule] = (), proxy: SecretValue | None = None
    ) -> None:
        """Take in the installation's settings, and ``allowed``, which is open to every provider."""
        hosts, self._denied = installation.providers.allowed_hosts, installation.providers.denied_cidrs
        self._hosts = tuple((rule, frozenset[str]()) for rule in allowed)
        self._hosts += tuple((host.rule(), frozenset(host.namespaces)) for host in hosts)
        self._proxy = proxy
        self._direct = installation.proxy.rules()
        self._named = frozenset(namespace for _, namespaces in self._hosts for namespace in namespaces)
        self._policies: dict[str | None, AddressPolicy] = {}

    def policy(self, resource: ProviderResource) -> AddressPolicy:
        """Return what is open to a provider. An administrator's may use every entry."""
        cluster = resource.kind is ProviderKind.CLUSTER_TOKEN_PROVIDER
        namespace = resource.key.namespace
        place = None if cluster else (namespace if namespace in self._named else "")
        policy = self._policies.get(place)
        if policy is None:
            open_here = [rule for rule, namespaces in self._hosts if cluster or not namespaces or place in namespaces]
            policy = AddressPolicy(
                allowed=tuple(dict.fromkeys(open_here)),
                private=cluster,
                denied=self._denied,
                advice=ADVICE if cluster else NAMESPACED_ADVICE,
                http_advice=HTTP_ADVICE,
                denial=DENIAL,
            )
            self._policies[place] = policy
        return policy

    def proxy(self, resource: ProviderResource) -> SecretValue | None:
        """Return the proxy's URL for a provider; None where it is asked directly."""
        if self._proxy is None or any(self._goes_direct(host) for host in front_hosts(resource.spec)):
            return None
        return self._proxy

    def _goes_direct(self, text: str) -> bool:
        host = HostRule.parse(text)
        ports = DEFAULT_PORTS if host.port is None else (host.port,)
        return any(rule.covers(host.host, port) for rule in self._direct for port in ports)
