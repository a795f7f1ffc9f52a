"""What a published Secret says of itself (Service Binding for Kubernetes 1.0, "Well-known Secret Entries").

``type`` names the kind of service and ``provider`` who provides it; both become files of the binding. There is no
registry of types. ``oauth2`` is avoided: what Spring Cloud Bindings expects of one is a client's registration, not a
token. The Secret's own type stays Opaque, though ``servicebinding.io/<type>`` is recommended: nobody can change it once
the Secret is there, and an identity may change its provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.spec.provider import ProviderType

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPES: Final[Mapping[ProviderType, str]] = {
    ProviderType.OAUTH: "oauth2-token",
    ProviderType.TILED: "tiled",
    ProviderType.LABARCHIVES: "labarchives",
}
PROVIDER: Final = "keyferry"


def binding_entries(provider_type: ProviderType) -> dict[str, bytes]:
    """Return the entries by key; a file of ``spec.target.files`` of the same name is what counts instead."""
    return {"type": TYPES[provider_type].encode(), "provider": PROVIDER.encode()}
