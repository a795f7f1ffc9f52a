"""Gives equal parts of many resources one object: 10,000 identities mostly have the same grant, target and renewal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from keyferry.spec.common import Model
from keyferry.spec.grant import Grant
from keyferry.spec.identity import ApiKey, Consumer, ExpectedSubject, ProviderRef, Renewal
from keyferry.spec.provider import Client
from keyferry.spec.target import Target, TargetFile

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST: Final = 4096
_ENTRIES: Final = 8192
_Part = type[Model] | TypeAdapter[Any]

_PARTS: Final[Mapping[str, _Part]] = {
    "providerRef": ProviderRef,
    "grant": Grant,
    "client": Client,
    "expectedSubject": ExpectedSubject,
    "apiKey": ApiKey,
    "renewal": Renewal,
    "target": Target,
    "consumers": TypeAdapter(tuple[Consumer, ...]),
}
_FILES: Final = TypeAdapter(tuple[TargetFile, ...])


class Sharing:
    """Remembers validated parts by what they were made of. Bounded, so that it may live as long as the process."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, str], Any] = {}

    def prepare(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return an identity's unvalidated spec with its known parts replaced by validated ones that are shared.

        A part that is not valid stays as it was, so that the validation of the whole names its mistakes.
        """
        result = dict(spec)
        for name, part in _PARTS.items():
            raw = spec.get(name)
            if type(raw) is dict or type(raw) is list:
                result[name] = self._shared(name, part, raw)
        return result

    def _shared(self, name: str, part: _Part, raw: Any) -> Any:
        # The notation of plain values tells different values apart, and costs less than validating them again.
        key = (name, repr(raw))
        known = self._parts.get(key)
        if known is None and len(key[1]) <= _LARGEST:
            if name == "target" and type(raw) is dict and type(raw.get("files")) is list:
                raw = {**raw, "files": self._shared("files", _FILES, raw["files"])}
            known = self._validate(part, raw)
            if known is not None:
                if len(self._parts) >= _ENTRIES:
                    self._parts.clear()
                self._parts[key] = known
        return raw if known is None else known

    @staticmethod
    def _validate(part: _Part, raw: object) -> Any:
        try:
            if isinstance(part, TypeAdapter):
                return part.validate_python(raw, by_alias=True, by_name=False)
            return part.model_validate(raw, by_alias=True, by_name=False)
        except ValidationError:
            return None
