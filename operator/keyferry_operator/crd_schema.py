"""Structural OpenAPI schemas, as CustomResourceDefinitions want them, made from the models of the resources.

A field that may be absent is one that ``required`` does not list: no null, no ``anyOf``, no ``$ref``. Unknown fields
are pruned (refused under strict field validation), which is the API server's own doing.

The schemas set no ``default``. Whether a field "is set" is decided by the models, where it differs from its default:
an API server that wrote defaults into stored objects would freeze them there, so that a later version could not change
one, and it would show GitOps tools fields that nobody wrote. The defaults stand in the descriptions.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin

import yaml

from keyferry.spec.common import (
    ISSUER_PATTERN,
    PATTERN_WORDS,
    URL_PATTERN,
    ConfigMapKeyRef,
    IdentityRef,
    Model,
    SecretKeyRef,
    SecretRef,
    ServiceAccountToken,
)
from keyferry.spec.durations import DURATION_PATTERN
from keyferry.spec.identity import ProviderRef
from keyferry.spec.schema import json_schema
from keyferry.spec.target import TemplateText
from keyferry.spec.template import PLACEHOLDERS
from keyferry_operator.crd_rules import MODEL_RULES, VALUE_RULES, Rule, key_rules

Schema = dict[str, Any]

TEMPLATE_PATTERN: Final = rf"^([^$]|\$+[^${{]|\$\$+\{{|\$\{{({'|'.join(PLACEHOLDERS)})\}})*\$*$"
"""What :func:`keyferry.spec.template.parse_template` accepts: known names in ``${}``; ``$${`` is a plain ``${``."""
_ANY_HOST: Final = r"[A-Za-z0-9.:_\[\]-]+"
_HOST_AND_PORT: Final = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?"
"""What the models' code makes of a URL's host beyond their pattern: a name or an IPv6 address, and a port."""
_PATTERNS: Final[Mapping[str, str]] = {
    pattern: pattern.replace(_ANY_HOST, _HOST_AND_PORT) for pattern in (URL_PATTERN, ISSUER_PATTERN)
}
_LONGEST_DURATION_TEXT: Final = 40
"""Characters: four units of nine digits; the pattern says so too, but the API server reckons costs by ``maxLength``."""
_WHOLE: Final = (ConfigMapKeyRef, IdentityRef, ProviderRef, SecretKeyRef, SecretRef, ServiceAccountToken)
"""References, which server-side apply replaces as a whole: half of one and half of another names a third thing."""
_KEPT: Final = (
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "minimum",
    "maximum",
)


def spec_schema(model: type[Model]) -> Schema:
    """Return the structural schema of a resource's ``spec``."""
    source = json_schema(model)
    return _Converter(source.pop("$defs", {})).of_model(source, model)


class _Converter:
    """Goes through a JSON schema and the annotations that it was made from side by side."""

    def __init__(self, parts: Mapping[str, Schema]) -> None:
        self._parts = parts

    def of_model(self, source: Schema, model: type[Model]) -> Schema:
        """Return the schema of an object with fields."""
        hints = typing.get_type_hints(model, include_extras=True)
        schema: Schema = {
            "type": "object",
            "description": _sentence(source.get("description")),
            "properties": {
                model.alias_of(name): self._field(source["properties"][model.alias_of(name)], hints[name])
                for name in model.model_fields
            },
        }
        if source.get("required"):
            schema["required"] = list(source["required"])
        if model in _WHOLE:
            schema["x-kubernetes-map-type"] = "atomic"
        return _with_rules(schema, MODEL_RULES.get(model, ()))

    def _field(self, source: Schema, hint: Any) -> Schema:
        schema = self._of(source, hint)
        description = _sentence(source.get("description") or schema.get("description"))
        default = _shown(source.get("default"))
        # The description comes first, for those who read the manifest.
        return {"description": f"{description} Default: {default}." if default else description} | {
            key: value for key, value in schema.items() if key != "description"
        }

    def _of(self, source: Schema, hint: Any) -> Schema:
        """Return the schema of a value, with the rules of its kind."""
        source, hint = _without_null(source, hint)
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if "$ref" in source:
            part = self._parts[source["$ref"].rpartition("/")[2]]
            source = {**part, "description": source.get("description") or part.get("description")}
        if isinstance(plain, type) and issubclass(plain, Model):
            return self.of_model(source, plain)
        if get_origin(plain) is tuple:
            schema = _kept(source)
            schema["items"] = self._of(source["items"], get_args(plain)[0])
            return schema
        if get_origin(plain) is Mapping:
            return self._mapping(source, *get_args(plain))
        return _value(source, hint)

    def _mapping(self, source: Schema, key: Any, value: Any) -> Schema:
        ((pattern, values),) = source["patternProperties"].items()
        schema = _kept(source)
        schema["additionalProperties"] = self._of(values, value)
        return _with_rules(
            schema, key_rules(key, pattern, source["propertyNames"]["maxLength"], PATTERN_WORDS[pattern])
        )


def _value(source: Schema, hint: Any) -> Schema:
    """Return the schema of a text, number or truth value."""
    schema = _kept(source)
    pattern: str = schema.get("pattern", "")
    if pattern == DURATION_PATTERN:
        schema["maxLength"] = _LONGEST_DURATION_TEXT
    elif pattern in _PATTERNS:
        schema["pattern"] = _PATTERNS[pattern]
    elif hint == TemplateText:
        schema["pattern"] = TEMPLATE_PATTERN
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in source:
            # JSON Schema's number is OpenAPI 3.0's truth value beside the bound.
            schema[bound.lower()] = source[f"exclusive{bound}"]
            schema[f"exclusive{bound}"] = True
    return _with_rules(schema, next((rules for kind, rules in VALUE_RULES if kind == hint), ()))


def _without_null(source: Schema, hint: Any) -> tuple[Schema, Any]:
    """Return the schema and annotation of a field that may be absent without the null that says so."""
    choices = source.get("anyOf")
    if choices is None:
        return source, hint
    (chosen,) = (choice for choice in choices if choice.get("type") != "null")
    (inner,) = (argument for argument in get_args(hint) if argument is not type(None))
    return {**chosen, "description": source.get("description")}, inner


def _kept(source: Schema) -> Schema:
    return {key: source[key] for key in _KEPT if key in source}


def _with_rules(schema: Schema, rules: tuple[Rule, ...]) -> Schema:
    if rules:
        schema["x-kubernetes-validations"] = [rule.as_json() for rule in rules]
    return schema


def _sentence(text: str | None) -> str:
    """Return a docstring or description as one paragraph."""
    return re.sub(r"\s+", " ", text or "").strip()


def _shown(default: Any) -> str:
    """Write a default as people do in YAML; empty where there is nothing to say."""
    if default is None or default == [] or isinstance(default, dict):
        return ""
    if isinstance(default, list):
        plain = [_stripped(item) if isinstance(item, dict) else item for item in default]
        return yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip()
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _stripped(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value not in (None, {}, [])}
