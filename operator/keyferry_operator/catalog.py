"""What the operator has seen of the cluster: slim views, kept fresh by watches. No secret value stays in here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyferry.engine.job import REFRESHING
from keyferry.model import ObjectKey
from keyferry.spec.target import FileFormat, TargetType
from keyferry_operator.client import IDENTITIES
from keyferry_operator.names import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyferry.publication import Published
    from keyferry.record import Record
    from keyferry.spec.resources import IdentityResource
    from keyferry.spec.target import TargetFile
    from keyferry_operator.names import Request

_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


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
    _statuses: dict[ObjectKey, bytes] = field(default_factory=dict)
    """The status subresource as last seen or written, as JSON: parsed it takes four times the room."""
    _versions: dict[ObjectKey, str] = field(default_factory=dict)
    """The version of each identity of which everything was taken in."""
    handled: dict[Request, dict[ObjectKey, str]] = field(default_factory=lambda: {request: {} for request in REQUESTS})
    """The value of each annotation that was acted on last, which the next status repeats."""
    credentials: dict[ObjectKey, str] = field(default_factory=dict)
    """The version of each Secret that is labelled as a credential."""
    secrets: dict[ObjectKey, SeenSecret] = field(default_factory=dict)
    """By namespace and name of the Secret; changed by ``put`` and ``discard`` alone."""
    _places: dict[ObjectKey, tuple[ObjectKey, ...]] = field(default_factory=dict)
    """Where the Secrets of each identity are: one, and two while it moves."""

    def put(self, seen: SeenSecret) -> None:
        """Note a managed Secret as it is now."""
        before = self.secrets.get(seen.key)
        if before is not None and before.identity != seen.identity:
            self.discard(seen.key)
        self.secrets[seen.key] = seen
        if seen.identity is not None:
            places = self._places.get(seen.identity, ())
            if seen.key not in places:
                self._places[seen.identity] = (*places, seen.key)

    def discard(self, place: ObjectKey) -> SeenSecret | None:
        """Forget a managed Secret that is gone; return how it was last seen."""
        seen = self.secrets.pop(place, None)
        if seen is not None and seen.identity is not None:
            rest = tuple(other for other in self._places.get(seen.identity, ()) if other != place)
            if rest:
                self._places[seen.identity] = rest
            else:
                self._places.pop(seen.identity, None)
        return seen

    def knows_secret(self, place: ObjectKey, uid: str, version: str, *, deleted: bool, listed: bool) -> bool:
        """Tell whether word of a Secret is no news: it was seen so, or later, when it was written or read.

        A list is believed though it says less than is known: the cluster may have been restored from a backup.
        """
        seen = self.secrets.get(place)
        if seen is None or seen.uid != uid:
            return deleted and seen is not None
        return not deleted and is_known(version, seen.version, listed=listed)

    def secrets_of(self, key: ObjectKey) -> list[SeenSecret]:
        """Return the Secrets that were published for an identity."""
        return [self.secrets[place] for place in self._places.get(key, ())]

    def uid_of(self, key: ObjectKey) -> str:
        """Return the uid of a declared identity, empty where it is not declared."""
        resource = self.identities.get(key)
        return resource.uid if resource is not None else ""

    def status_of(self, key: ObjectKey) -> dict[str, Any]:
        """Return an identity's status as last seen or written."""
        found: dict[str, Any] = json.loads(self._statuses.get(key, b"{}"))
        return found

    def statuses(self) -> Iterator[tuple[ObjectKey, dict[str, Any]]]:
        """Yield the statuses of all declared identities."""
        for key in self._statuses:
            yield key, self.status_of(key)

    def see_status(self, key: ObjectKey, body: Mapping[str, Any], *, listed: bool) -> dict[str, Any]:
        """Take in an identity's status, with which all of it is known; unless it is from before what is known.

        Return the status as it is known now.
        """
        version = body["metadata"]["resourceVersion"]
        if self.knows_identity(key, version, listed=listed):
            return self.status_of(key)
        status: dict[str, Any] = body.get("status") or {}
        self._statuses[key] = _COMPACT.encode(status).encode()
        self._versions[key] = version
        return status

    def wrote_status(self, key: ObjectKey, status: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Note a status that was written just now, and the metadata that was answered.

        A change by somebody else that came just before is in that version, too: then the watch has to tell of it.
        """
        self._statuses[key] = _COMPACT.encode(status).encode()
        if self.knows_spec(key, metadata):
            self._versions[key] = metadata["resourceVersion"]

    def knows_identity(self, key: ObjectKey, version: str, *, listed: bool) -> bool:
        """Tell whether word of an identity is no news, as ``knows_secret`` does."""
        known = self._versions.get(key)
        return known is not None and is_known(version, known, listed=listed)

    def forget_status(self, key: ObjectKey) -> None:
        """Forget an identity that is gone."""
        self._statuses.pop(key, None)
        self._versions.pop(key, None)

    def knows_spec(self, key: ObjectKey, metadata: Mapping[str, Any]) -> bool:
        """Tell whether an identity is declared as it stands: its generation grows with each change of its spec."""
        resource = self.identities.get(key)
        if resource is None or (resource.uid, resource.generation) != (metadata["uid"], metadata.get("generation")):
            return False
        annotations = metadata.get("annotations") or {}
        ours = {name: value for name, value in annotations.items() if name.startswith(f"{IDENTITIES.group}/")}
        return ours == dict(resource.annotations)

    def secret_key(self, key: ObjectKey) -> ObjectKey:
        """Return where an identity's Secret is, or would be."""
        resource = self.identities.get(key)
        name = resource.spec.target.secret_name if resource is not None else None
        return ObjectKey(key.namespace, name or key.name)

    def keeps_private(self, key: ObjectKey) -> bool:
        """Tell whether there is private state of an identity from the first on.

        There will be refresh tokens, and what becomes of the first must not be forgotten; or the token must be kept
        there. For nothing is published; or other identities present it, or pods fetch it, and no published file shows
        what they need: the replica that is asked for it may be another one, and has it from nowhere else.
        """
        resource = self.identities.get(key)
        if resource is None:
            return False
        target = resource.spec.target
        shown = any(file.format in (FileFormat.TOKEN, FileFormat.JSON) for file in target.files)
        chained = any(consumer.identity_name for consumer in resource.spec.consumers)
        fetched = any(consumer.service_account_name for consumer in resource.spec.consumers)
        unseen = (chained and not shown) or (fetched and not (shown and not any(map(_shows_id_token, target.files))))
        return resource.spec.grant.type in REFRESHING or target.type is TargetType.NONE or unseen

    def published_record(self, key: ObjectKey, uid: str) -> Record | None:
        """Return the record that the managed Secret of a declared identity carries."""
        seen = self.secrets.get(self.secret_key(key))
        return seen.record if seen is not None and self.uid_of(key) == uid and _shows(seen, uid) else None

    def published_records(self) -> Iterator[Record]:
        """Yield the records that managed Secrets of declared identities carry."""
        for seen in self.secrets.values():
            if seen.record is not None and _shows(seen, self.uid_of(seen.record.key)):
                yield seen.record


def _shows_id_token(file: TargetFile) -> bool:
    """Tell whether a file is made of an ID token, which no record on a Secret has."""
    return any("${id_token}" in text for text in (file.template or "", *file.variables.values()))


def _shows(seen: SeenSecret, uid: str) -> bool:
    """Tell whether a Secret is the one of the identity with this uid; with ``Retain`` it has no owner."""
    return seen.record is not None and seen.record.uid == uid and seen.owner in ("", uid)


def is_known(version: str, known: str, *, listed: bool) -> bool:
    """Tell whether one resourceVersion of an object is the one known or, where it was not ``listed``, before it.

    Versions of one object grow as integers (Kubernetes API concepts, "Resource versions").
    """
    if version == known:
        return True
    return not listed and version.isdigit() and known.isdigit() and int(version) < int(known)
