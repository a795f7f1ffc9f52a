"""The record beside published token files: which files they are, of which identity and revision, and our signature."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from keyferry.model import ObjectKey
    from keyferry.publication import Publication

RECORD_NAME: Final = ".keyferry.json"
"""The record's file name in an identity's directory."""

_VERSION: Final = 1
_BEFORE: Final = b'{"record":'
_BEHIND: Final = b',"signature":'
_COMPACT: Final = json.JSONEncoder(separators=(",", ":"))


class FileEntry(NamedTuple):
    """One file as it was written: by the first three it is known unchanged at a glance, by the digest for certain."""

    size: int
    mtime_ns: int
    inode: int
    digest: str


class About(NamedTuple):
    """What a record says of the publication as a whole."""

    uid: str
    revision: int
    generation: int
    issued_at: float
    expires_at: float
    spec_hash: str
    files_hash: str

    @classmethod
    def of(cls, publication: Publication) -> About:
        """Return what a record is to say."""
        return cls(
            publication.uid,
            publication.revision,
            publication.generation,
            publication.issued_at,
            publication.expires_at,
            publication.spec_hash,
            publication.files_hash,
        )


class PublicationRecord(NamedTuple):
    """The record as read."""

    about: About | None
    """None where the file is not a record at all."""
    files: dict[str, FileEntry | None]
    """None stands at a file that a publication had yet to write."""
    genuine: bool
    """Signed by us, for this very place."""


@final
class Seal:
    """Writes and reads records with a key of the private state."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def entry(self, status: os.stat_result, data: bytes) -> FileEntry:
        """Return the entry of a file that was written just now."""
        return FileEntry(status.st_size, status.st_mtime_ns, status.st_ino, self._digest(b"file", data))

    def matches(self, entry: FileEntry, data: bytes) -> bool:
        """Tell whether ``data`` is what was written."""
        return hmac.compare_digest(entry.digest, self._digest(b"file", data))

    def write(self, key: ObjectKey, about: About, files: Mapping[str, FileEntry | None]) -> bytes:
        """Return a signed record for the directory of ``key``."""
        body = {
            "version": _VERSION,
            "namespace": key.namespace,
            "name": key.name,
            **about._asdict(),
            "files": {name: entry and entry._asdict() for name, entry in files.items()},
        }
        signed = _COMPACT.encode(body).encode()
        return b'%b%b%b"%b"}\n' % (_BEFORE, signed, _BEHIND, self._digest(b"record", signed).encode())

    def read(self, key: ObjectKey, data: bytes) -> PublicationRecord:
        """Return what a record says that lies in the directory of ``key``."""
        try:
            body = json.loads(data)["record"]
            about = About(
                str(body["uid"]),
                int(body["revision"]),
                int(body["generation"]),
                float(body["issued_at"]),
                float(body["expires_at"]),
                str(body["spec_hash"]),
                str(body["files_hash"]),
            )
            files = {str(name): _entry(entry) for name, entry in body["files"].items()}
            here = (body["version"], body["namespace"], body["name"]) == (_VERSION, key.namespace, key.name)
            genuine = here and self._is_signed(data)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return PublicationRecord(None, {}, genuine=False)
        return PublicationRecord(about, files, genuine)

    def _is_signed(self, data: bytes) -> bool:
        """Check the signature of the very bytes, which is faster than writing what they say once more."""
        begins, signed, signature = data[: len(_BEFORE)], *data[len(_BEFORE) :].rpartition(_BEHIND)[::2]
        expected = b'"%b"}\n' % self._digest(b"record", signed).encode()
        return begins == _BEFORE and hmac.compare_digest(expected, signature)

    def _digest(self, purpose: bytes, data: bytes) -> str:
        return hmac.digest(self._key, b"keyferry %b\0%b" % (purpose, data), "sha256").hex()


def _entry(fields: dict[str, Any] | None) -> FileEntry | None:
    if fields is None:
        return None
    return FileEntry(int(fields["size"]), int(fields["mtime_ns"]), int(fields["inode"]), str(fields["digest"]))
