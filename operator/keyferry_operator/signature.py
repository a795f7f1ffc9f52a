"""The signed annotation on a managed Secret: what a restart needs to go on without an exchange and without a write.

It holds no token. It is signed, for this one Secret, with a key that only the operator has, so an annotation that
somebody wrote, or copied from elsewhere, is not believed; the digest in it shows whether the data beside it was edited.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import TYPE_CHECKING, Any, Final

from keyferry.model import ObjectKey, TokenSet
from keyferry.publication import Published
from keyferry.record import Binding, Record
from keyferry.secret import SecretValue
from keyferry.spec.target import FileFormat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.publication import Publication
    from keyferry.spec.target import TargetFile

_VERSION: Final = 1
_PURPOSE: Final = b"keyferry managed secret 1\0"


def digest_of(data: Mapping[str, bytes], key: bytes) -> str:
    """Return a keyed digest of a Secret's data."""
    mac = hmac.new(key, _PURPOSE + b"data\0", hashlib.sha256)
    for name in sorted(data):
        mac.update(name.encode() + b"\0" + hashlib.sha256(data[name]).digest())
    return mac.hexdigest()


def sign(publication: Publication, record: Record, place: ObjectKey, key: bytes) -> str:
    """Return the annotation for what is published with ``record`` in the Secret ``place``."""
    token = record.token
    about: dict[str, Any] = {
        "v": _VERSION,
        "uid": publication.uid,
        "identity": str(publication.key),
        "revision": publication.revision,
        "generation": publication.generation,
        "issued": publication.issued_at,
        "expires": publication.expires_at,
        "renewal": record.renewal_time,
        "minimumRemaining": record.minimum_remaining,
        "spec": publication.spec_hash,
        "files": publication.files_hash,
        "data": digest_of(publication.files, key),
        "type": token.token_type if token is not None else "",
        "scope": token.scope if token is not None else "",
        "issuer": token.issuer if token is not None else "",
        "subject": token.subject if token is not None else "",
        "hosts": list(record.binding.hosts) if record.binding is not None else [],
    }
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return f"{_mac(text, place, key)}.{text}"


def read(
    annotation: str, data: Mapping[str, bytes], place: ObjectKey, key: bytes
) -> tuple[dict[str, Any], Published] | None:
    """Return what the annotation of the Secret ``place`` says, and what is published; None where it is not ours."""
    mac, _, text = annotation.partition(".")
    if not hmac.compare_digest(mac.encode(), _mac(text, place, key).encode()):
        return None
    about: dict[str, Any] = json.loads(text)
    if about.get("v") != _VERSION:
        return None
    return about, Published(
        uid=about["uid"],
        revision=about["revision"],
        generation=about["generation"],
        issued_at=about["issued"],
        expires_at=about["expires"],
        spec_hash=about["spec"],
        files_hash=about["files"],
        names=tuple(sorted(data)),
        intact=hmac.compare_digest(about["data"], digest_of(data, key)),
    )


def restore(about: dict[str, Any], *, origin: str) -> Record:
    """Return the record of an identity that keeps nothing private, as far as its Secret shows it.

    The token's value is left out: it is needed only to publish again, and then a new one is as good.
    """
    namespace, _, name = about["identity"].partition("/")
    return Record(
        uid=about["uid"],
        key=ObjectKey(namespace, name),
        origin=origin,
        generation=about["generation"],
        revision=about["revision"],
        spec_hash=about["spec"],
        # A client id may be kept in a Secret, so none is on show here; only refresh tokens are bound to theirs.
        binding=Binding(about["issuer"], tuple(about["hosts"]), ""),
        renewal_time=about["renewal"],
        minimum_remaining=about["minimumRemaining"],
        token=TokenSet(
            access_token=SecretValue(""),
            token_type=about["type"],
            issued_at=about["issued"],
            expires_at=about["expires"],
            scope=about["scope"],
            issuer=about["issuer"],
            subject=about["subject"],
        ),
    )


def token_in(files: tuple[TargetFile, ...], data: Mapping[str, bytes]) -> SecretValue | None:
    """Find the access token in files that were published as ``files`` say, where one of them shows it plainly."""
    for file in files:
        content = data.get(file.name or "")
        if content is None:
            continue
        if file.format is FileFormat.TOKEN:
            return SecretValue(content.decode())
        if file.format is FileFormat.JSON:
            return SecretValue(str(json.loads(content)["access_token"]))
    return None


def decoded(data: Mapping[str, str] | None) -> dict[str, bytes]:
    """Return a Secret's data in bytes."""
    return {name: base64.b64decode(value) for name, value in (data or {}).items()}


def _mac(text: str, place: ObjectKey, key: bytes) -> str:
    """Sign for one Secret: the annotation of another one, copied with its data, is not believed."""
    return hmac.new(key, _PURPOSE + f"{place}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
