"""Target Secrets: created once, then applied server-side with the owner's uid; somebody else's is never touched."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, final

from keyferry.errors import PublishError, Reason, RetryClass
from keyferry.model import ObjectKey
from keyferry.render import Delivery
from keyferry.spec.hashes import files_hash
from keyferry.spec.identity import DeletionPolicy
from keyferry_operator import signature
from keyferry_operator.catalog import SeenSecret
from keyferry_operator.client import IDENTITIES, SECRETS
from keyferry_operator.errors import ApiError
from keyferry_operator.names import MANAGED_LABEL, MANAGER, RECORD_ANNOTATION, RELOADER_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from keyferry.publication import Publication, Published
    from keyferry.record import Record
    from keyferry.spec.resources import IdentityResource
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient, Object
    from keyferry_operator.touch import PodToucher


@final
class SecretPublisher:
    """Implements ``keyferry.engine.ports.Publisher`` over the API server."""

    delivery = Delivery.SECRET

    def __init__(self, client: KubeClient, catalog: Catalog, *, key: bytes, origin: str, toucher: PodToucher) -> None:
        self._client = client
        self._catalog = catalog
        self._key = key
        self._origin = origin
        self._toucher = toucher

    def endpoint(self, key: ObjectKey) -> None:
        """Return nothing: endpoints are in pods, whose sidecars write the files that name them."""

    def place(self, key: ObjectKey) -> str:
        """Return nothing: where a pod mounts a Secret is the pod's affair."""
        del key
        return ""

    async def observe(self, key: ObjectKey) -> Published | None:
        """Return what the watch last showed; what was written since is in there already."""
        resource = self._catalog.identities.get(key)
        seen = self._catalog.secrets.get(self._catalog.secret_key(key))
        if resource is None or seen is None or seen.published is None:
            return None
        return seen.published if seen.owner in ("", resource.uid) and seen.published.uid == resource.uid else None

    async def observe_many(self, keys: Iterable[ObjectKey]) -> Mapping[ObjectKey, Published | None]:
        """Return what the watch last showed of many."""
        return {key: await self.observe(key) for key in keys}

    async def publish(self, publication: Publication, record: Record) -> Published:
        """Create or apply the Secret."""
        resource = self._catalog.identities.get(publication.key)
        if resource is None or resource.uid != publication.uid:
            raise PublishError(f"ServiceIdentity {publication.key} is gone, so its Secret was not written")
        place = self._catalog.secret_key(publication.key)
        body = self._body(resource, place, publication, record)
        seen = self._catalog.secrets.get(place)
        if seen is not None and _of_a_namesake(resource, seen):
            await self._delete(place, seen)
            seen = None
        try:
            if seen is None:
                written = await self._create(resource, place, body, publication.revision)
            else:
                written = await self._apply(resource, seen, body, publication.revision)
        except ApiError as error:
            raise PublishError(
                f"Secret {place} cannot be written: {error.message}. The token is kept, and Keyferry tries again."
            ) from None
        current = self.see(written)
        if current.published is None:
            raise PublishError(f"Secret {place} was changed by somebody while it was written. Keyferry tries again.")
        if resource.spec.target.touch_pods:
            self._toucher.written(publication.key, place, current.version)
        await self._remove_old(resource, place)
        return current.published

    async def withdraw(self, key: ObjectKey, uid: str) -> None:
        """Delete the identity's Secrets; when the identity itself is gone, the garbage collector does so as well."""
        for seen in self._catalog.secrets_of(key):
            if seen.published is not None and seen.published.uid == uid:
                await self._delete(seen.key, seen)

    def see(self, body: Object) -> SeenSecret:
        """Take in a managed Secret as it is now; keep no value of it."""
        metadata = body["metadata"]
        place = ObjectKey(metadata["namespace"], metadata["name"])
        owner = next((ref["uid"] for ref in metadata.get("ownerReferences", ()) if ref.get("controller")), "")
        data = signature.decoded(body.get("data"))
        found = None
        annotation = metadata.get("annotations", {}).get(RECORD_ANNOTATION, "")
        try:
            found = signature.read(annotation, data, place, self._key)
        except (ValueError, KeyError, TypeError):
            found = None
        identity = record = published = None
        if found is not None:
            about, published = found
            record = signature.restore(about, origin=self._origin)
            identity = record.key
            resource = self._catalog.identities.get(identity)
            token = None
            # Files of an earlier spec are not read by the new one: what stands there now may be anything.
            if resource is not None and published.intact and published.files_hash == files_hash(resource.spec.target):
                token = signature.token_in(resource.spec.target.files, data)
            if token is not None and record.token is not None:
                record = replace(record, token=replace(record.token, access_token=token))
        seen = SeenSecret(
            key=place,
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            owner=owner,
            identity=identity,
            published=published,
            record=record,
        )
        self._catalog.put(seen)
        return seen

    async def _create(self, resource: IdentityResource, place: ObjectKey, body: Object, revision: int) -> Object:
        try:
            return await self._client.create(SECRETS, place.namespace, body)
        except ApiError as error:
            if not error.conflict:
                raise
        there = await self._client.get(SECRETS, place.namespace, place.name)
        if there is None:
            raise PublishError(f"Secret {place} appeared and vanished meanwhile. Keyferry tries again.")
        seen = self.see(there)
        try:
            return await self._apply(resource, seen, body, revision)
        except PublishError:
            if MANAGED_LABEL not in (there["metadata"].get("labels") or {}):
                self._catalog.discard(place)  # no watch would tell that it is gone
            raise

    async def _apply(self, resource: IdentityResource, seen: SeenSecret, body: Object, revision: int) -> Object:
        """Write over what was seen, and over nothing else; where it is another by now, look again, once."""
        current: SeenSecret | None = seen
        for tries_left in (1, 0):
            if current is None:
                break
            self._check(resource, current, revision)
            body["metadata"] |= {"uid": current.uid, "resourceVersion": current.version}
            try:
                return await self._write(current, body)
            except ApiError as error:
                if not (error.conflict or error.not_found):
                    raise
                current = await self._look_again(seen.key)
                if not tries_left:
                    raise
        raise PublishError(f"Secret {seen.key} was deleted meanwhile. Keyferry tries again.")

    def _check(self, resource: IdentityResource, seen: SeenSecret, revision: int) -> None:
        """Refuse to write over what is not ours, or newer: what was long on its way must not undo what came after."""
        ours = seen.published is not None and seen.published.uid == resource.uid
        if seen.owner not in ("", resource.uid) or not (ours or seen.owner == resource.uid):
            raise _not_owned(resource, seen.key)
        if ours and seen.published is not None and seen.published.revision > revision:
            raise PublishError(
                f"Secret {seen.key} holds revision {seen.published.revision} already, which another replica wrote, so"
                f" revision {revision} was not written over it. Keyferry looks again."
            )

    async def _write(self, seen: SeenSecret, body: Object) -> Object:
        written = await self._client.apply(SECRETS, seen.key.namespace, body, manager=MANAGER)
        gone = set(written.get("data") or {}) - set(body["data"]) if seen.published is not None else set()
        if gone:
            # What the first write created belongs to another kind of field ownership, which an apply cannot drop.
            # It goes last: a pod never finds neither the old files nor the new.
            patch: Object = {"metadata": {"uid": seen.uid}, "data": dict.fromkeys(sorted(gone))}
            written = await self._client.merge(SECRETS, seen.key.namespace, seen.key.name, patch)
        return written

    async def _look_again(self, place: ObjectKey) -> SeenSecret | None:
        """See a Secret that is not what we took it for: the watch may be late, or tell nothing."""
        there = await self._there(place)
        if there is None:
            self._catalog.discard(place)
            return None
        return self.see(there)

    def _body(self, resource: IdentityResource, place: ObjectKey, publication: Publication, record: Record) -> Object:
        target = resource.spec.target
        metadata: Object = {
            "name": place.name,
            "namespace": place.namespace,
            "labels": {**target.labels, MANAGED_LABEL: "true", "app.kubernetes.io/managed-by": MANAGER},
            "annotations": {
                **target.annotations,
                RECORD_ANNOTATION: signature.sign(publication, record, place, self._key),
                RELOADER_ANNOTATION: "true",
            },
        }
        if resource.spec.deletion_policy is not DeletionPolicy.RETAIN:
            metadata["ownerReferences"] = [
                {
                    "apiVersion": f"{IDENTITIES.group}/{IDENTITIES.version}",
                    "kind": "ServiceIdentity",
                    "name": resource.key.name,
                    "uid": resource.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ]
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "data": {name: base64.b64encode(content).decode() for name, content in publication.files.items()},
        }

    async def _remove_old(self, resource: IdentityResource, place: ObjectKey) -> None:
        """Delete the Secret of an earlier ``target.secretName``, now that the new one is there."""
        for seen in self._catalog.secrets_of(resource.key):
            if seen.key != place and seen.owner == resource.uid:
                await self._delete(seen.key, seen)

    async def _delete(self, place: ObjectKey, seen: SeenSecret) -> None:
        try:
            await self._client.delete(SECRETS, place.namespace, place.name, uid=seen.uid)
        except ApiError as error:
            # In conflict is a Secret of that name which is another one by now, or one that is being written.
            there = await self._there(place) if error.conflict else None
            if not error.conflict or (there is not None and there["metadata"]["uid"] == seen.uid):
                raise PublishError(f"Secret {place} cannot be deleted: {error.message}") from None
        self._catalog.discard(place)

    async def _there(self, place: ObjectKey) -> Object | None:
        try:
            return await self._client.get(SECRETS, place.namespace, place.name)
        except ApiError as error:
            raise PublishError(f"Secret {place} cannot be read: {error.message}") from None


def _of_a_namesake(resource: IdentityResource, seen: SeenSecret) -> bool:
    """Tell whether a Secret belonged to an identity of the same name that is gone.

    It is about to be collected as garbage. What one left with ``deletionPolicy: Retain`` has no owner, and stays.
    """
    ours = seen.identity == resource.key and seen.published is not None and seen.published.uid == seen.owner
    return ours and seen.owner not in ("", resource.uid)


def _not_owned(resource: IdentityResource, place: ObjectKey) -> PublishError:
    return PublishError(
        f"Secret {place} is not ServiceIdentity {resource.key}'s, so it was not touched. Delete or rename it"
        " (Keyferry looks again within 5 minutes), or choose another spec.target.secretName.",
        reason=Reason.SECRET_NOT_OWNED,
        retry=RetryClass.NEEDS_CONFIGURATION,
    )
