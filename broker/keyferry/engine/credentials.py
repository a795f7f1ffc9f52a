"""Turns references into finished inputs: reads secrets afresh, checks them, and remembers which were used."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyferry.errors import CredentialError, Reason
from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from keyferry.engine.ports import CredentialSource

PEM_MARK: Final = "-----BEGIN "
LONGEST: Final = 64 * 1024
_POINTERS: Final = frozenset({"secretKeyRef", "configMapKeyRef", "secretRef"})


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A Secret or ConfigMap that a resource points to."""

    namespace: str
    name: str


def references(model: BaseModel, namespace: str) -> frozenset[Reference]:
    """Return every Secret and ConfigMap that a spec points to, so that a change of one wakes those that use it."""
    return frozenset(Reference(namespace, name) for _, name, _ in _pointers(model.model_dump(by_alias=True)))


def named_keys(model: BaseModel) -> frozenset[tuple[str, str]]:
    """Return every (Secret, key) that a spec points to, a TLS Secret by its usual two keys."""
    found: set[tuple[str, str]] = set()
    for kind, name, key in _pointers(model.model_dump(by_alias=True)):
        if kind == "secretKeyRef":
            found.add((name, key))
        elif kind == "secretRef":
            found.update({(name, "tls.crt"), (name, "tls.key")})
    return frozenset(found)


def _pointers(node: Any) -> Iterator[tuple[str, str, str]]:
    """Walk a dumped spec and yield (kind of reference, name, key)."""
    if isinstance(node, dict):
        for field_name, value in node.items():
            if field_name in _POINTERS and isinstance(value, dict):
                yield field_name, value["name"], value.get("key", "")
            else:
                yield from _pointers(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _pointers(value)


@dataclass(slots=True)
class CredentialReader:
    """Reads for one exchange, in one namespace; ``fingerprint`` then tells whether any value changed."""

    source: CredentialSource
    namespace: str
    digest_key: bytes
    _seen: dict[str, bytes] = field(default_factory=dict, repr=False)

    async def text(self, name: str, key: str) -> SecretValue:
        """Return a single-line credential: one trailing line end stripped, other control characters refused."""
        raw = await self._secret(name, key)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._bad(name, key, "is not text (UTF-8)") from None
        if PEM_MARK in text:
            return SecretValue(text)
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise self._bad(name, key, "is empty")
        if any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):  # noqa: PLR2004 - the ASCII control characters
            raise self._bad(name, key, "has control characters in it (a line break in the middle, perhaps)")
        return SecretValue(text)

    async def pem(self, name: str, key: str) -> bytes:
        """Return PEM from a Secret, untouched."""
        return await self._secret(name, key)

    async def config(self, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap, untouched."""
        data = await self.source.config(self.namespace, name, key)
        self._note(f"config/{name}/{key}", data)
        return data

    async def service_account_token(self, name: str, audience: str, expiration: float) -> SecretValue:
        """Return a service account's token. It is fresh each time, so it is no part of the fingerprint."""
        return await self.source.service_account_token(self.namespace, name, audience, expiration)

    def fingerprint(self) -> str:
        """Return a keyed digest of all that was read."""
        mac = hmac.new(self.digest_key, digestmod=hashlib.sha256)
        for name in sorted(self._seen):
            mac.update(name.encode() + b"\0" + hashlib.sha256(self._seen[name]).digest())
        return mac.hexdigest()[:32]

    async def _secret(self, name: str, key: str) -> bytes:
        data = await self.source.secret(self.namespace, name, key)
        self._note(f"secret/{name}/{key}", data)
        if not data:
            raise self._bad(name, key, "is empty")
        if len(data) > LONGEST:
            raise self._bad(name, key, f"is longer than {LONGEST // 1024} KiB")
        return data

    def _note(self, name: str, data: bytes) -> None:
        self._seen[name] = data

    def _bad(self, name: str, key: str, problem: str) -> CredentialError:
        return CredentialError(
            f"Key {key!r} of Secret {self.namespace}/{name} {problem}. Nothing was sent; put the right value there, and"
            " Keyferry goes on by itself.",
            reason=Reason.SECRET_NOT_FOUND,
        )
