"""Files of resources to validated resources and problems: all mistakes of a file at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyferry.spec.core import CONFIG_MAP_KIND, SECRET_KIND, ConfigMapResource, SecretResource
from keyferry.spec.documents import MAXIMUM_DEPTH, Document, read_documents
from keyferry.spec.loaded import (
    API_VERSION,
    CLUSTER_NAMESPACE,
    DEFAULT_NAMESPACE,
    IDENTITY_KIND,
    Identified,
    IdentityResource,
    Loaded,
    ProviderResource,
    provider_key,
)
from keyferry.spec.loader import Loader
from keyferry.spec.problem import Problem
from keyferry.spec.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyferry.model import ObjectKey

__all__ = [
    "API_VERSION",
    "CLUSTER_NAMESPACE",
    "CONFIG_MAP_KIND",
    "DEFAULT_NAMESPACE",
    "IDENTITY_KIND",
    "SECRET_KIND",
    "ConfigMapResource",
    "Identified",
    "IdentityResource",
    "Loaded",
    "ProviderResource",
    "SecretResource",
    "Sharing",
    "load_documents",
    "load_object",
    "merge_loaded",
    "provider_key",
]


def load_documents(
    text: bytes,
    source: str,
    *,
    default_namespace: str = DEFAULT_NAMESPACE,
    cluster_namespace: str = CLUSTER_NAMESPACE,
    sharing: Sharing | None = None,
) -> Loaded:
    """Read all resources of one YAML or JSON file; nothing is raised, every mistake becomes a Problem.

    Args:
        text: The content of the file, untrusted.
        source: The name of the file, as problems show it.
        default_namespace: The namespace of resources that name none.
        cluster_namespace: The namespace in which a cluster provider's references resolve.
        sharing: Passed to several calls, it lets their resources share equal parts.

    """
    loader = Loader(source, default_namespace, cluster_namespace, sharing)
    for document in read_documents(text, source):
        if isinstance(document, Problem):
            loader.problems.append(document)
            loader.complete = False
        else:
            loader.add(document)
    return loader.loaded()


def load_object(
    value: object,
    *,
    source: str = "",
    default_namespace: str = DEFAULT_NAMESPACE,
    cluster_namespace: str = CLUSTER_NAMESPACE,
    sharing: Sharing | None = None,
) -> Loaded:
    """Read one resource that is parsed already, such as the API server's; otherwise as :func:`load_documents`."""
    loader = Loader(source, default_namespace, cluster_namespace, sharing)
    try:
        plain = _without_nulls(value, 1)
    except RecursionError:
        loader.problems.append(Problem("", f"the resource is nested more than {MAXIMUM_DEPTH} levels deep"))
        loader.complete = False
    else:
        loader.add(Document(plain, None, (), lambda: None))
    return loader.loaded()


def merge_loaded(parts: Iterable[Loaded]) -> Loaded:
    """Put the files of a directory together; a resource that two files define is a problem, and the first counts."""
    whole = list(parts)
    problems = [problem for part in whole for problem in part.problems]
    seen: dict[Identified, str] = {}

    def first(kind: str, key: ObjectKey, source: str, line: int | None) -> bool:
        other = seen.setdefault((kind, key), source)
        if other != source:
            problems.append(
                Problem(
                    "metadata.name", f"is already used in {other}", source=source, line=line, resource=f"{kind} {key}"
                )
            )
        return other == source

    return Loaded(
        providers=tuple(p for part in whole for p in part.providers if first(p.kind, p.key, p.source, p.line)),
        identities=tuple(i for part in whole for i in part.identities if first(IDENTITY_KIND, i.key, i.source, i.line)),
        secrets=tuple(s for part in whole for s in part.secrets if first(SECRET_KIND, s.key, s.source, s.line)),
        config_maps=tuple(
            c for part in whole for c in part.config_maps if first(CONFIG_MAP_KIND, c.key, c.source, c.line)
        ),
        problems=tuple(problems),
        invalid=frozenset(identified for part in whole for identified in part.invalid),
        complete=all(part.complete for part in whole),
    )


def _without_nulls(value: Any, depth: int) -> Any:
    """Return plain values without the null fields of mappings; raises RecursionError beyond the bound."""
    if depth > MAXIMUM_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        return {key: _without_nulls(item, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item, depth + 1) for item in value]
    return value
