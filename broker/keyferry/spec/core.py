"""Secret and ConfigMap documents (v1), which `keyferry run` reads beside its own resources."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyferry.secret import REDACTED
from keyferry.spec.common import KEY_PATTERN, PATTERN_WORDS, Mistake
from keyferry.spec.explain import closest
from keyferry.spec.frozen import EMPTY

if TYPE_CHECKING:
    from keyferry.model import ObjectKey

SECRET_KIND: Final = "Secret"  # noqa: S105 - a kind, not a secret
CONFIG_MAP_KIND: Final = "ConfigMap"

_KEY: Final = re.compile(KEY_PATTERN.replace("$", r"\Z"))
_LONGEST_KEY: Final = 253
_SECRET_FIELDS: Final = ("apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable")
_CONFIG_MAP_FIELDS: Final = ("apiVersion", "kind", "metadata", "data", "binaryData", "immutable")
_BASE64_SPACE: Final = re.compile(r"[ \t\r\n]+")


class SecretData(Mapping[str, bytes]):
    """The keys and values of a Secret; printed, it shows the keys only."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, bytes]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> bytes:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"SecretData({dict.fromkeys(self._values, REDACTED)!r})"

    def __reduce__(self) -> str:
        raise TypeError("SecretData cannot be pickled")


@dataclass(frozen=True, slots=True)
class SecretResource:
    """A Secret document."""

    key: ObjectKey
    data: SecretData
    source: str = ""
    line: int | None = None
    labels: Mapping[str, str] = EMPTY
    """Only those of keyferry.dev."""
    annotations: Mapping[str, str] = EMPTY
    """Only those of keyferry.dev."""


@dataclass(frozen=True, slots=True)
class ConfigMapResource:
    """A ConfigMap document."""

    key: ObjectKey
    data: Mapping[str, bytes]
    source: str = ""
    line: int | None = None


def read_secret(value: Mapping[str, Any]) -> tuple[SecretData, list[Mistake]]:
    """Return the values of a Secret (``stringData`` over ``data``), and what is wrong; no message holds a value."""
    mistakes: list[Mistake] = []
    _check_fields(value, _SECRET_FIELDS, mistakes)
    found = {key: _from_base64(text, ("data", key), mistakes) for key, text in _texts(value, "data", mistakes)}
    found |= {key: _encode(text, ("stringData", key), mistakes) for key, text in _texts(value, "stringData", mistakes)}
    return SecretData(found), mistakes


def read_config_map(value: Mapping[str, Any]) -> tuple[Mapping[str, bytes], list[Mistake]]:
    """Return the values of a ConfigMap, and what is wrong with it."""
    mistakes: list[Mistake] = []
    _check_fields(value, _CONFIG_MAP_FIELDS, mistakes)
    found = {key: _encode(text, ("data", key), mistakes) for key, text in _texts(value, "data", mistakes)}
    binary = _texts(value, "binaryData", mistakes)
    found |= {key: _from_base64(text, ("binaryData", key), mistakes) for key, text in binary}
    return found, mistakes


def _check_fields(value: Mapping[str, Any], known: tuple[str, ...], mistakes: list[Mistake]) -> None:
    for name in value:
        if name not in known:
            meant = closest(str(name), known)
            hint = f"; did you mean {meant}?" if meant is not None else ""
            mistakes.append(Mistake((str(name),), f"is not a known field{hint}"))


def _texts(value: Mapping[str, Any], member: str, mistakes: list[Mistake]) -> Iterator[tuple[str, str]]:
    values = value.get(member, {})
    if not isinstance(values, dict):
        mistakes.append(Mistake((member,), "must be a mapping of keys to text"))
        return
    for key, text in values.items():
        if not isinstance(key, str) or len(key) > _LONGEST_KEY or not _KEY.match(key):
            mistakes.append(Mistake((member,), f"has a key that is not valid: it {PATTERN_WORDS[KEY_PATTERN]}"))
        elif not isinstance(text, str):
            mistakes.append(Mistake((member, key), "must be text: put it in quotes"))
        else:
            yield key, text


def _from_base64(text: str, path: tuple[str, str], mistakes: list[Mistake]) -> bytes:
    try:
        return base64.b64decode(_BASE64_SPACE.sub("", text), validate=True)
    except (binascii.Error, ValueError):
        plain = "stringData" if path[0] == "data" else "data"
        mistakes.append(Mistake(path, f"is not Base64; plain text belongs in {plain}"))
        return b""


def _encode(text: str, path: tuple[str, str], mistakes: list[Mistake]) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        mistakes.append(Mistake(path, "must be valid Unicode text"))
        return b""
