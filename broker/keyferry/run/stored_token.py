"""The token of an identity as it lies in the state directory, for processes of the same user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.errors import PublishError, StoreError
from keyferry.io.files import read_file
from keyferry.record_json import loads

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.model import ObjectKey
    from keyferry.record import Record

RECORDS: Final = "records"


def read_record(state: Path, key: ObjectKey) -> Record | None:
    """Return the record as it is now, None where there is none that can be read. Blocks."""
    try:
        data = read_file(state / RECORDS / key.namespace / f"{key.name}.json")
        record = loads(data)[0] if data is not None else None
    except (StoreError, PublishError):
        return None
    return record if record is not None and record.key == key else None
