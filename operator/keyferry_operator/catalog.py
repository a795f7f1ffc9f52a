"""What the operator has seen of the cluster: slim views, kept fresh by watches. No secret value stays in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyferry.engine.job import REFRESHING
from keyferry.model import ObjectKey
from keyferry.spec.target import FileFormat, TargetType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.publication import Published
    from keyferry.record import Record
    from keyferry.spec.resources import IdentityResource


@dataclass(frozen=True, slots=True)
class SeenSecret:
    """A managed Secret as it was last seen."""

    key: ObjectKey
    uid: str
    version: str
    owner: str
    """Uid of its controller; empty where it has none."""
    identity: ObjectKey | None
    published: Published | None
    """Its signed record; None where there is none that is ours."""
    record: Record | None
    """Enough of the private record to go on from, where the identity keeps nothing private."""


@dataclass(slots=True)
class Catalog:
    """The declared identities, and the managed Secrets."""

    identities: dict[ObjectKey, IdentityResource] = field(default_factory=dict)
    status: dict[ObjectKey, dict[str, object]] = field(default_factory=dict)
    """The status subresource as last seen or written."""
    handled_renewals: dict[ObjectKey, str] = field(default_factory=dict)
    """The value of the renew annotation that was acted on last; ``lastHandledRenew`` of the next status."""
    secrets: dict[ObjectKey, SeenSecret] = field(default_factory=dict)
    """By namespace and name of the Secret."""

    def uid_of(self, key: ObjectKey) -> str:
        """Return the uid of a declared identity, empty where it is not declared."""
        resource = self.identities.get(key)
        return resource.uid if resource is not None else ""

    def secret_key(self, key: ObjectKey) -> ObjectKey:
        """Return where an identity's Secret is, or would be."""
        resource = self.identities.get(key)
        name = resource.spec.target.secret_name if resource is not None else None
        return ObjectKey(key.namespace, name or key.name)

    def keeps_private(self, key: ObjectKey) -> bool:
        """Tell whether there is private state of an identity from the first on.

        There will be refresh tokens, and what becomes of the first must not be forgotten; or the token must be kept
        there. For nothing is published; or other identities present it, and no published file shows it: the replica
        that renews those may be another one, and has it from nowhere else.
        """
        resource = self.identities.get(key)
        if resource is None:
            return False
        target = resource.spec.target
        shown = any(file.format in (FileFormat.TOKEN, FileFormat.JSON) for file in target.files)
        chained = any(consumer.identity_name for consumer in resource.spec.consumers)
        refreshes = resource.spec.grant.type in REFRESHING
        return refreshes or target.type is TargetType.NONE or (chained and not shown)

    def published_record(self, key: ObjectKey, uid: str) -> Record | None:
        """Return the record that the managed Secret of a declared identity carries."""
        seen = self.secrets.get(self.secret_key(key))
        return seen.record if seen is not None and self.uid_of(key) == uid and _shows(seen, uid) else None

    def published_records(self) -> Iterator[Record]:
        """Yield the records that managed Secrets of declared identities carry."""
        for seen in self.secrets.values():
            if seen.record is not None and _shows(seen, self.uid_of(seen.record.key)):
                yield seen.record


def _shows(seen: SeenSecret, uid: str) -> bool:
    """Tell whether a Secret is the one of the identity with this uid; with ``Retain`` it has no owner."""
    return seen.record is not None and seen.record.uid == uid and seen.owner in ("", uid)
