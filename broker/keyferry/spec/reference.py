"""The field reference, made from the models: ``python -m keyferry.spec.reference > docs/reference.md``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from keyferry.spec.common import PATTERN_WORDS
from keyferry.spec.documents import MAXIMUM_SIZE
from keyferry.spec.identity import ServiceIdentitySpec
from keyferry.spec.loaded import API_VERSION, IDENTITY_KIND
from keyferry.spec.provider import ClusterTokenProviderSpec, TokenProviderSpec
from keyferry.spec.schema import json_schema
from keyferry.spec.target import FIXED_NAMES
from keyferry.spec.template import PLACEHOLDERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyferry.spec.common import Model

ROOTS: Final[Mapping[str, type[Model]]] = {
    IDENTITY_KIND: ServiceIdentitySpec,
    "TokenProvider": TokenProviderSpec,
    "ClusterTokenProvider": ClusterTokenProviderSpec,
}
"""The resources and the models of their ``spec``."""

_INTRODUCTION: Final = f"""# Field reference

This page is made from the models that validate the resources; edit those, not this page.

All resources have `apiVersion: {API_VERSION}`, a `kind` and `metadata.name`.
A name is a DNS-1123 name; that of a ServiceIdentity has at most 63 characters. Unknown fields are errors, `null` is the
same as leaving a field out, a duration is a text such as `90s`, `10m`, `1h30m` or `7d`, and a file has at most
{MAXIMUM_SIZE // 1024 // 1024} MiB.
"""


def reference() -> str:
    """Return the reference of all fields of all resources, as Markdown."""
    schemas: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for kind, model in ROOTS.items():
        schema = json_schema(model)
        parts |= schema.pop("$defs", {})
        schemas[kind] = schema
    sections = [_INTRODUCTION]
    sections += ["\n".join(_section(f"{kind}: `spec`", schema, parts)) for kind, schema in schemas.items()]
    sections += [
        "\n".join(_section(name, schema, parts)) for name, schema in sorted(parts.items()) if "properties" in schema
    ]
    sections.append("\n".join(_templates()))
    return "\n".join(sections)


def _section(title: str, schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{schema.get('description', '')}\n"
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        default = "**required**" if name in required else _default(field)
        meaning = " ".join(filter(None, (_meaning(field, parts), _bounds(field, parts))))
        yield f"| `{name}` | {_type(field, parts)} | {default} | {meaning} |"
    yield ""


def _meaning(field: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """Return a field's description; pydantic leaves it out where it is that of the part that the field holds."""
    part = parts.get(_resolved(field).get("$ref", "").rpartition("/")[2], {})
    return str(field.get("description") or part.get("description", ""))


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if default is None:
        return ""
    return f"`{_flow(default)}`"


def _flow(value: Any) -> str:
    """Write a value as flow YAML, without what is unset in it."""
    if isinstance(value, dict):
        shown = {key: item for key, item in value.items() if item is not None and item not in ({}, [])}
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in shown.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(_flow(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _type(field: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    schema = _resolved(field)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        choices = parts[name].get("enum")
        return " \\| ".join(f"`{choice}`" for choice in choices) if choices else f"[{name}](#{name.lower()})"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], parts)}"
    if schema.get("type") == "object":
        return "mapping of names to text"
    if schema.get("pattern", "").startswith("^([0-9]{1,9}d)"):
        return "duration"
    kind = str(schema["type"])
    return {"string": "text", "boolean": "true or false", "integer": "whole number"}.get(kind, kind)


def _resolved(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a field that may be absent without the null that says so."""
    for schema in field.get("anyOf", ()):
        if schema.get("type") != "null":
            return dict(schema)
    return field


def _bounds(field: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    schema = _resolved(field)
    words: list[str] = []
    if (pattern := PATTERN_WORDS.get(schema.get("pattern", ""))) is not None:
        words.append(f"It {pattern}.")
    for key, text in (
        ("maxLength", "At most {} characters."),
        ("minItems", "At least {}."),
        ("maxItems", "At most {}."),
        ("maxProperties", "At most {}."),
        ("exclusiveMinimum", "More than {}."),
        ("minimum", "At least {}."),
        ("maximum", "At most {}."),
    ):
        if key in schema:
            words.append(text.format(schema[key]))
    items = schema.get("items")
    if items is not None and "$ref" not in items:
        words.append(" ".join(filter(None, ("Each:", _bounds(items, parts)))))
    return " ".join(words).replace("|", "\\|")


def _templates() -> Iterator[str]:
    yield "## Templates\n"
    yield (
        "In `variables` and `template`, `${name}` stands for a value, `$${` is a plain `${`, and an unknown name is an "
        "error.\n"
    )
    yield "Names: " + ", ".join(f"`{name}`" for name in PLACEHOLDERS) + ".\n"
    yield "## Names of the formats that have no `name`\n"
    yield "| format | files and Secret keys |"
    yield "|---|---|"
    for file_format, names in FIXED_NAMES.items():
        yield f"| {file_format} | {', '.join(f'`{name}`' for name in names)} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(reference())
