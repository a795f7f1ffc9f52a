"""What a workload presents instead of a credential, and how it is compared."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from keyferry.model import ObjectKey
from keyferry.secret import SecretValue

BYTES: Final = 32
ACCESS_KEY_ID: Final = "keyferry"
"""The access key id of every LabArchives placeholder; its password is the placeholder itself."""


def new_placeholder() -> SecretValue:
    """Return 256 random bits as URL-safe text."""
    return SecretValue(secrets.token_urlsafe(BYTES))


def lasting_placeholder(key: bytes, identity: ObjectKey) -> SecretValue:
    """Return the same placeholder for an identity each time; ``key`` is secret and of 256 random bits."""
    return SecretValue(hmac.new(key, f"keyferry loopback\0{identity}".encode(), hashlib.sha256).hexdigest())


def part_of(identity: ObjectKey, default_namespace: str) -> str:
    """Return an identity's part of the URLs: its name, with its namespace before it where that is not the default."""
    # No name holds a colon, so that no two identities share one.
    return identity.name if identity.namespace == default_namespace else f"{identity.namespace}:{identity.name}"


def key_of(part: str, default_namespace: str) -> ObjectKey:
    """Return the identity that a part of a URL is of; whether there is one is another question."""
    namespace, colon, name = part.partition(":")
    return ObjectKey(namespace, name) if colon else ObjectKey(default_namespace, part)


def is_same(expected: SecretValue, presented: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(expected.reveal().encode(), presented.encode("utf-8", "surrogatepass"))


def placeholder_uid(placeholder: SecretValue) -> str:
    """Return what a workload gets as the LabArchives user id: of no use to anybody but this endpoint."""
    return f"keyferry-{placeholder.fingerprint(b'keyferry uid')[:32]}"
