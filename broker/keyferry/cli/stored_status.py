"""The status of identities as the state directory tells it, where no broker runs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from keyferry.engine.entry import Entry
from keyferry.engine.status import IdentityStatus
from keyferry.errors import Reason, StoreError
from keyferry.io.file_store import RECORD_LIMIT, RECORDS
from keyferry.io.files import read_file, subfolders
from keyferry.model import ObjectKey
from keyferry.record_json import loads
from keyferry.run.failures import FailureFiles
from keyferry.run.publication_record import RECORD_NAME
from keyferry.run.resources import ResourceFiles
from keyferry.spec.target import TargetType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from keyferry.plan import Failure
    from keyferry.record import Record
    from keyferry.run.settings import RunSettings
    from keyferry.spec.identity import ProviderKind
    from keyferry.spec.resources import IdentityResource, ProviderResource


def stored_statuses(settings: RunSettings) -> dict[ObjectKey, IdentityStatus]:
    """Return the status of what is declared or stored, as far as it can be read. Raises PublishError."""
    declared: dict[ObjectKey, IdentityResource] = {}
    providers: dict[tuple[ProviderKind, str], ProviderResource] = {}
    if settings.paths:
        loaded = ResourceFiles(settings.paths, settings.default_namespace).load()
        declared = {identity.key: identity for identity in loaded.identities}
        providers = {(provider.kind, provider.key.name): provider for provider in loaded.providers}
    records = dict(_records(settings.state))
    failures = FailureFiles(settings.state).read()
    return {
        key: _status(
            key,
            declared.get(key),
            records.get(key),
            failures.get(key),
            maximum=_maximum(declared.get(key), providers),
            shown=(settings.out / key.namespace / key.name / RECORD_NAME).is_file(),
        )
        for key in sorted(declared.keys() | records.keys())
    }


def _maximum(
    resource: IdentityResource | None, providers: Mapping[tuple[ProviderKind, str], ProviderResource]
) -> float | None:
    """Return for how long (seconds) a session lasts at most, as the provider resource says."""
    if resource is None:
        return None
    ref = resource.spec.provider_ref
    provider = providers.get((ref.kind, ref.name))
    oauth = provider.spec.oauth if provider is not None else None
    return oauth.refresh_tokens.maximum if oauth is not None else None


def _records(state: Path) -> Iterator[tuple[ObjectKey, Record]]:
    top = state / RECORDS
    for namespace in subfolders(top):
        for path in sorted((top / namespace).glob("*.json")):
            data = read_file(path, limit=RECORD_LIMIT)
            if data is None:
                continue
            try:
                record, _ = loads(data)
            except StoreError:
                continue  # the identity's own turn in a broker tells about it
            yield ObjectKey(namespace, path.stem), record


def _status(
    key: ObjectKey,
    resource: IdentityResource | None,
    record: Record | None,
    failure: Failure | None,
    *,
    maximum: float | None,
    shown: bool,
) -> IdentityStatus:
    if failure is not None:
        reason, message = failure.reason, failure.message
    elif record is not None and record.token is not None:
        reason, message = Reason.ISSUED, ""
    else:
        reason, message = Reason.PENDING, "there is no token yet"
    if resource is not None:
        entry = Entry(resource, "", ("", key), "", "", failure=failure)
        entry.take(record, maximum)
        if entry.prompt is not None and time.time() >= entry.prompt.expires_at:
            entry.prompt = None  # nobody can answer it any more
        return replace(entry.status(reason, message), shown=shown or resource.spec.target.type is TargetType.NONE)
    token = record.token if record is not None else None
    return IdentityStatus(
        key=key,
        provider="-",
        grant="-",
        reason=reason,
        message=message,
        retry=failure.retry if failure is not None else None,
        revision=record.revision if record is not None else 0,
        shown=shown,
        issue_time=token.issued_at if token is not None else None,
        expiration_time=token.expires_at if token is not None else None,
        renewal_time=record.renewal_time if record is not None and token is not None else None,
        failure_count=failure.count if failure is not None else 0,
        error_code=failure.code if failure is not None else "",
    )
