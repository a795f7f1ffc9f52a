"""Labels, annotations and names that the operator uses (the contract)."""

from __future__ import annotations

import enum
from typing import Final

MANAGER: Final = "keyferry"
"""The one field manager of everything that the operator applies."""

CREDENTIAL_LABEL: Final = "keyferry.dev/credential"
MANAGED_LABEL: Final = "keyferry.dev/managed"
STATE_LABEL: Final = "keyferry.dev/state"
"""``private`` for a private state Secret, ``gone`` for an order to revoke, ``seed`` for a tombstone."""
HOSTS_ANNOTATION: Final = "keyferry.dev/hosts"
RECORD_ANNOTATION: Final = "keyferry.dev/record"
TOUCHED_ANNOTATION: Final = "keyferry.dev/touched"
"""On a pod: the Secrets, with their versions, that were written when it was touched last."""
RELOADER_ANNOTATION: Final = "reloader.stakater.com/ignore"

KEYS_SECRET: Final = "keyferry-keys"  # noqa: S105 - a name
"""Holds the key of fingerprints and record signatures, in the operator's namespace."""

SERVING_SECRET: Final = "keyferry-serving"  # noqa: S105 - a name
"""Holds the certificate of the broker API, and the authorities behind it, where the operator makes them itself."""
CA_CONFIG_MAP: Final = "keyferry-ca"
"""Holds the authorities by which sidecars know the broker API, in each namespace that has consumers."""
SERVICE: Final = "keyferry-broker"
"""The Service of the broker API."""

LEASE: Final = "keyferry-operator"
"""The Lease of all the work, where there is one shard: its holder leads."""
SHARD: Final = "keyferry-shard-"
"""How the Lease of one of several shards is named, before its number."""
REPLICA: Final = "keyferry-replica-"
"""How the Lease is named by which a replica says that it is there."""


class Request(enum.StrEnum):
    """What may be asked for with a new value of an annotation of an identity: renewal, and another login."""

    RENEW = "renew"
    LOGIN = "login"

    @property
    def annotation(self) -> str:
        """The annotation."""
        return f"keyferry.dev/{self.value}"

    @property
    def field(self) -> str:
        """Where the status repeats the value that was acted on last."""
        return f"lastHandled{self.value.capitalize()}"


REQUESTS: Final = tuple(Request)


def state_name(uid: str) -> str:
    """Return the name of an identity's private state Secret."""
    return f"kf-{uid}"


def seed_name(digest: str) -> str:
    """Return the name of a seed's tombstone."""
    return f"kf-seed-{digest[:52]}"
