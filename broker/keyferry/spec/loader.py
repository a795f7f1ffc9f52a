"""Puts documents through validation one by one and collects what comes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import ValidationError

from keyferry.model import ObjectKey
from keyferry.spec.common import LABEL_PATTERN, NAME_PATTERN, PATTERN_WORDS, Mistake, Model
from keyferry.spec.core import (
    CONFIG_MAP_KIND,
    SECRET_KIND,
    ConfigMapResource,
    SecretResource,
    read_config_map,
    read_secret,
)
from keyferry.spec.explain import closest, explain
from keyferry.spec.frozen import EMPTY, FrozenMap
from keyferry.spec.identity import ProviderKind, ServiceIdentitySpec
from keyferry.spec.loaded import (
    API_VERSION,
    GROUP,
    IDENTITY_KIND,
    KINDS,
    Identified,
    IdentityResource,
    Loaded,
    ProviderResource,
)
from keyferry.spec.problem import Problem, join_path
from keyferry.spec.provider import ClusterTokenProviderSpec, TokenProviderSpec
from keyferry.spec.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyferry.spec.documents import Document

Path: TypeAlias = tuple[str | int, ...]

MAXIMUM_MISTAKES: Final = 100
"""Of one resource."""
_LONGEST_NAME: Final = 253
_LONGEST_LABEL: Final = 63
_NAME: Final = re.compile(NAME_PATTERN.replace("$", r"\Z"))
_LABEL: Final = re.compile(LABEL_PATTERN.replace("$", r"\Z"))
_TOP_LEVEL: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_MODELS: Final[Mapping[str, type[Model]]] = {
    IDENTITY_KIND: ServiceIdentitySpec,
    ProviderKind.TOKEN_PROVIDER: TokenProviderSpec,
    ProviderKind.CLUSTER_TOKEN_PROVIDER: ClusterTokenProviderSpec,
}


@dataclass(frozen=True, slots=True)
class _Head:
    """What is known of a resource before its spec is read."""

    kind: str
    base: Path
    label: str
    key: ObjectKey | None
    metadata: Mapping[str, Any]


class Loader:
    """Collects the resources and problems of one file."""

    def __init__(self, source: str, default_namespace: str, cluster_namespace: str, sharing: Sharing | None) -> None:
        self.problems: list[Problem] = []
        self.complete = True
        self._source = source
        self._default_namespace = default_namespace
        self._cluster_namespace = cluster_namespace
        self._sharing = sharing if sharing is not None else Sharing()
        self._found: dict[Identified, Any] = {}
        self._lines: dict[Identified, int | None] = {}
        self._invalid: set[Identified] = set()
        self._locate: Callable[[Path], int | None] = lambda _: None
        self._faulty = False

    def loaded(self) -> Loaded:
        """Return what was collected."""
        found = [(identified, value) for identified, value in self._found.items() if identified not in self._invalid]
        return Loaded(
            providers=tuple(value for _, value in found if isinstance(value, ProviderResource)),
            identities=tuple(value for _, value in found if isinstance(value, IdentityResource)),
            secrets=tuple(value for _, value in found if isinstance(value, SecretResource)),
            config_maps=tuple(value for _, value in found if isinstance(value, ConfigMapResource)),
            problems=tuple(self.problems),
            invalid=frozenset(self._invalid),
            complete=self.complete,
        )

    def add(self, document: Document) -> None:
        """Take one document in."""
        self._locate = document.locate
        self._faulty = bool(document.faults) and not _is_foreign(document.value)
        if self._faulty:
            label = _label(document.value)
            for fault in document.faults:
                self.problems.append(Problem("", fault.message, source=self._source, line=fault.line, resource=label))
        if document.value is not None or not document.faults:
            self._add_object(document.value, ())

    def _problem(self, path: Path, message: str, label: str, base: Path = ()) -> None:
        line = self._locate((*base, *path))
        self.problems.append(Problem(join_path(path), message, source=self._source, line=line, resource=label))

    def _add_object(self, value: Any, base: Path) -> None:
        if not isinstance(value, dict):
            self._problem((), "is not a resource: apiVersion, kind, metadata and spec are expected", "", base)
            return
        version, kind = value.get("apiVersion"), value.get("kind")
        if not isinstance(version, str) or not isinstance(kind, str):
            self._without_kind(value, base)
        elif _is_list(version, kind):
            items = value.get("items", [])
            if not isinstance(items, list):
                self._problem(("items",), "must be a list of resources", kind, base)
                return
            for index, item in enumerate(items):
                self._add_object(item, (*base, "items", index))
        elif version == "v1":
            if kind == SECRET_KIND:
                self._add_secret(self._head(kind, value, base), value)
            elif kind == CONFIG_MAP_KIND:
                self._add_config_map(self._head(kind, value, base), value)
        elif version == API_VERSION and kind in KINDS:
            self._add_resource(self._head(kind, value, base), value)
        else:
            self._unknown(version, kind, value, base)

    def _without_kind(self, value: dict[str, Any], base: Path) -> None:
        label = _label(value)
        for name in ("apiVersion", "kind"):
            if not isinstance(value.get(name), str):
                example = API_VERSION if name == "apiVersion" else f"one of {', '.join(KINDS)}"
                wrong = "is missing" if name not in value else "must be text"
                self._problem((name,), f"{wrong}; a resource of Keyferry's has {example}", label, base)

    def _unknown(self, version: str, kind: str, value: dict[str, Any], base: Path) -> None:
        """Tell a misspelt resource of ours from somebody else's, which is left alone."""
        group = version.rpartition("/")[0]
        ours = group == GROUP or (closest(group, (GROUP,)) is not None and closest(kind, KINDS) is not None)
        if not ours:
            return
        label = _label(value)
        if version != API_VERSION:
            self._problem(("apiVersion",), f"is not known; this version of Keyferry reads {API_VERSION}", label, base)
        if kind not in KINDS:
            meant = closest(kind, KINDS)
            hint = f"; did you mean {meant}?" if meant is not None else f"; known: {', '.join(KINDS)}"
            self._problem(("kind",), f"is not known{hint}", label, base)

    def _head(self, kind: str, value: dict[str, Any], base: Path) -> _Head:

        def wrong(path: Path, message: str) -> None:
            self._problem(path, message, _label(value), base)

        metadata = value.get("metadata", {})
        if not isinstance(metadata, dict):
            wrong(("metadata",), "must be a mapping with name and namespace")
            return _Head(kind, base, _label(value), None, {})
        longest = _LONGEST_LABEL if kind == IDENTITY_KIND else _LONGEST_NAME
        name = _checked_name(metadata, "name", longest, wrong)
        if kind == ProviderKind.CLUSTER_TOKEN_PROVIDER:
            namespace: str | None = self._cluster_namespace
        elif not metadata.get("namespace"):
            namespace = self._default_namespace
        else:
            namespace = _checked_name(metadata, "namespace", _LONGEST_LABEL, wrong)
        if name is None or namespace is None:
            return _Head(kind, base, _label(value), None, metadata)
        key = ObjectKey(namespace, name)
        shown = name if kind == ProviderKind.CLUSTER_TOKEN_PROVIDER else str(key)
        return _Head(kind, base, f"{kind} {shown}", key, metadata)

    def _add_resource(self, head: _Head, value: dict[str, Any]) -> None:
        known = self._top_level_is_known(head, value)
        spec = self._spec(head, value)
        if spec is None or not known:
            self._keep(head, None)
            return
        common: dict[str, Any] = {
            "spec": spec,
            "source": self._source,
            "line": self._locate(head.base),
            "uid": _text(head.metadata.get("uid")),
            "generation": _number(head.metadata.get("generation")),
            "annotations": _ours(head.metadata.get("annotations")),
        }
        if head.key is None:
            return
        if head.kind == IDENTITY_KIND:
            self._keep(head, IdentityResource(key=head.key, **common))
        else:
            self._keep(head, ProviderResource(key=head.key, kind=ProviderKind(head.kind), **common))

    def _top_level_is_known(self, head: _Head, value: dict[str, Any]) -> bool:
        unknown = [str(name) for name in value if name not in _TOP_LEVEL]
        mistakes: list[Mistake] = []
        for name in unknown:
            meant = closest(name, _TOP_LEVEL)
            hint = f"; did you mean {meant}?" if meant is not None else "; fields of the resource belong to spec"
            mistakes.append(Mistake((name,), f"is not a known field{hint}"))
        self._mistakes(head, mistakes)
        return not unknown

    def _mistakes(self, head: _Head, mistakes: list[Mistake]) -> None:
        """Add mistakes in the order of their lines; of very many, the first, for each costs a search for its line."""
        shown = mistakes[:MAXIMUM_MISTAKES]
        for path, message in sorted(shown, key=lambda mistake: self._locate((*head.base, *mistake.path)) or 0):
            self._problem(path, message, head.label, head.base)
        if len(mistakes) > len(shown):
            self._problem((), f"has {len(mistakes) - len(shown)} more mistakes", head.label, head.base)

    def _spec(self, head: _Head, value: dict[str, Any]) -> Any:
        raw = value.get("spec")
        model = _MODELS[head.kind]
        if not isinstance(raw, dict):
            if raw is not None or all(closest(str(name), ("spec",)) is None for name in value):
                wrong = "is missing" if raw is None else "must be a mapping"
                needed = ", ".join(field.alias or name for name, field in model.model_fields.items())
                self._problem(("spec",), f"{wrong}; its fields are {needed}", head.label, head.base)
            return None
        try:
            if head.kind == IDENTITY_KIND:
                raw = self._sharing.prepare(raw)
            return model.model_validate(raw, by_alias=True, by_name=False)
        except ValidationError as error:
            self._mistakes(head, [Mistake(("spec", *path), message) for path, message in explain(error, model)])
            return None

    def _add_secret(self, head: _Head, value: dict[str, Any]) -> None:
        data, mistakes = read_secret(value)
        if self._core_is_right(head, mistakes) and head.key is not None:
            labels, annotations = _ours(head.metadata.get("labels")), _ours(head.metadata.get("annotations"))
            line = self._locate(head.base)
            self._keep(head, SecretResource(head.key, data, self._source, line, labels, annotations))

    def _add_config_map(self, head: _Head, value: dict[str, Any]) -> None:
        data, mistakes = read_config_map(value)
        if self._core_is_right(head, mistakes) and head.key is not None:
            self._keep(head, ConfigMapResource(head.key, data, self._source, self._locate(head.base)))

    def _core_is_right(self, head: _Head, mistakes: list[Mistake]) -> bool:
        self._mistakes(head, mistakes)
        if mistakes:
            self._keep(head, None)
        return not mistakes

    def _keep(self, head: _Head, resource: Any) -> None:
        """Keep a valid resource, or remember an invalid one (None); a second one of the same name is a mistake."""
        if head.key is None:
            return
        identified = (head.kind, head.key)
        line = self._locate(head.base)
        if identified in self._lines:
            first = self._lines[identified]
            where = f" in line {first}" if first is not None else ""
            self._problem(("metadata", "name"), f"is already used{where} of this file", head.label, head.base)
            return
        self._lines[identified] = line
        if resource is None or self._faulty:
            self._invalid.add(identified)
        else:
            self._found[identified] = resource


# --- what a document says of itself, as far as it can be believed -----------------------------------------------------


def _is_list(version: str, kind: str) -> bool:
    if kind == "List":
        return version == "v1"
    return version == API_VERSION and kind.removesuffix("List") in KINDS and kind.endswith("List")


def _is_foreign(value: Any) -> bool:
    """Tell whether a document is certainly somebody else's, so that even its notation is not ours to judge."""
    if not isinstance(value, dict):
        return False
    version, kind = value.get("apiVersion"), value.get("kind")
    if not isinstance(version, str) or not isinstance(kind, str):
        return False
    if version == "v1":
        return kind not in {"List", SECRET_KIND, CONFIG_MAP_KIND}
    group = version.rpartition("/")[0]
    return group != GROUP and closest(group, (GROUP,)) is None


def _label(value: Any) -> str:
    """Name a resource as far as it can be read."""
    if not isinstance(value, dict):
        return ""
    kind, metadata = value.get("kind"), value.get("metadata")
    words = [kind] if isinstance(kind, str) and kind in {*KINDS, SECRET_KIND, CONFIG_MAP_KIND} else []
    if isinstance(metadata, dict):
        parts = (metadata.get("namespace"), metadata.get("name"))
        shown = [part for part in parts if isinstance(part, str) and len(part) <= _LONGEST_NAME and _NAME.match(part)]
        words += ["/".join(shown)] if shown else []
    return " ".join(words)


def _checked_name(metadata: dict[str, Any], name: str, longest: int, wrong: Callable[[Path, str], None]) -> str | None:
    """Return ``metadata.name`` or ``metadata.namespace``, or tell what is wrong with it and return None."""
    pattern, words = (_NAME, NAME_PATTERN) if name == "name" else (_LABEL, LABEL_PATTERN)
    text = metadata.get(name)
    if text is None:
        wrong(("metadata", name), "is missing: every resource has a name")
    elif not isinstance(text, str):
        wrong(("metadata", name), "must be text: put it in quotes")
    elif len(text) > longest:
        wrong(("metadata", name), f"must have at most {longest} characters")
    elif not pattern.match(text):
        wrong(("metadata", name), PATTERN_WORDS[words])
    else:
        return text
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _ours(values: object) -> Mapping[str, str]:
    """Return only the labels or annotations of keyferry.dev: others can be large, and are nobody's business here."""
    if not isinstance(values, dict):
        return EMPTY
    found = {
        key: value
        for key, value in values.items()
        if isinstance(key, str) and key.startswith(f"{GROUP}/") and isinstance(value, str)
    }
    return FrozenMap(found) if found else EMPTY
