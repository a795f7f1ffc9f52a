"""Turns references into finished inputs: reads secrets afresh, checks them, and remembers which were used."""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import BaseModel

from keyferry.errors import CredentialError, Reason
from keyferry.secret import SecretValue
from keyferry.spec.common import ServiceAccountToken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.engine.ports import CredentialSource

PEM_MARK: Final = "-----BEGIN "
LONGEST: Final = 64 * 1024
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Referent(enum.StrEnum):
    """What a reference leads to."""

    SECRET = "Secret"  # noqa: S105 - a kind, not a secret
    CONFIG_MAP = "ConfigMap"
    SERVICE_ACCOUNT = "ServiceAccount"


_POINTERS: Final = {
    "secret_key_ref": Referent.SECRET,
    "secret_ref": Referent.SECRET,
    "config_map_key_ref": Referent.CONFIG_MAP,
    "service_account_token": Referent.SERVICE_ACCOUNT,
}


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """A Secret, ConfigMap or ServiceAccount that a resource points to."""

    namespace: str
    name: str
    kind: Referent = Referent.SECRET


def references(model: BaseModel, namespace: str) -> frozenset[Reference]:
    """Return everything that a spec points to, so that a change of it wakes those that use it."""
    return frozenset(Reference(namespace, name, _POINTERS[kind]) for kind, name, _ in _pointers(model))


def named_keys(model: BaseModel) -> frozenset[tuple[str, str]]:
    """Return every (Secret, key) that a spec points to, a TLS Secret by its usual two keys."""
    found: set[tuple[str, str]] = set()
    for kind, name, key in _pointers(model):
        if kind == "secret_key_ref":
            found.add((name, key))
        elif kind == "secret_ref":
            found.update({(name, "tls.crt"), (name, "tls.key")})
    return frozenset(found)


def named_configs(model: BaseModel) -> frozenset[tuple[str, str]]:
    """Return every (ConfigMap, key) that a spec points to."""
    return frozenset((name, key) for kind, name, key in _pointers(model) if kind == "config_map_key_ref")


def service_accounts(model: BaseModel) -> Iterator[ServiceAccountToken]:
    """Yield every token of a ServiceAccount that a spec asks for."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, ServiceAccountToken):
                yield item
            elif isinstance(item, BaseModel):
                yield from service_accounts(item)


def _pointers(model: BaseModel) -> Iterator[tuple[str, str, str]]:
    """Walk a spec and yield (kind of reference, name, key). Dumping it first would cost ten times as much."""
    values: dict[str, Any] = model.__dict__
    for field_name in _ways(type(model)):
        value = values[field_name]
        for item in value if isinstance(value, tuple) else (value,):
            if item is None:
                continue
            if field_name in _POINTERS:
                yield field_name, item.__dict__["name"], item.__dict__.get("key", "")
            else:
                yield from _pointers(item)


@functools.cache
def _ways(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the fields of a model in which, or below which, references may be; most have none."""
    return tuple(
        name
        for name, field in model.model_fields.items()
        if name in _POINTERS or any(_ways(below) for below in _models(field.annotation))
    )


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


@dataclass(frozen=True, slots=True)
class CredentialReader:
    """Reads the credentials of one namespace for requests to some hosts."""

    source: CredentialSource
    namespace: str
    hosts: frozenset[str]
    """Where what is read will be sent, each as ``host[:port]``."""

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
        if _CONTROL.search(text) is not None:
            raise self._bad(name, key, "has control characters in it (a line break in the middle, perhaps)")
        return SecretValue(text)

    async def pem(self, name: str, key: str) -> bytes:
        """Return PEM from a Secret, untouched."""
        return await self._secret(name, key)

    async def config(self, name: str, key: str) -> bytes:
        """Return one key of a ConfigMap, untouched."""
        return await self.source.config(self.namespace, name, key)

    async def service_account_token(self, name: str, audience: str, expiration: float) -> SecretValue:
        """Return a service account's token, fresh each time."""
        return await self.source.service_account_token(self.namespace, name, audience, expiration, self.hosts)

    async def _secret(self, name: str, key: str) -> bytes:
        data = await self.source.secret(self.namespace, name, key, self.hosts)
        if not data:
            raise self._bad(name, key, "is empty")
        if len(data) > LONGEST:
            raise self._bad(name, key, f"is longer than {LONGEST // 1024} KiB")
        return data

    def _bad(self, name: str, key: str, problem: str) -> CredentialError:
        return CredentialError(
            f"Key {key!r} of Secret {self.namespace}/{name} {problem}. Nothing was sent; put the right value there, and"
            " Keyferry goes on by itself.",
            reason=Reason.SECRET_NOT_FOUND,
        )
