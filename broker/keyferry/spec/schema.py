"""JSON schemas of the resources, from which the reference is written and the CRDs will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema

if TYPE_CHECKING:
    from pydantic_core import core_schema

    from keyferry.spec.common import Model


class _Generator(GenerateJsonSchema):
    """Shows defaults as they are written (``10m``), which pydantic does only for output, and what input requires."""

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,  # noqa: ARG002, FBT001 - the signature is pydantic's
    ) -> bool:
        return bool(field["schema"]["type"] != "default")


def json_schema(model: type[Model]) -> dict[str, Any]:
    """Return the JSON schema (2020-12, parts under ``$defs``) of a model as people write it in YAML."""
    return model.model_json_schema(by_alias=True, schema_generator=_Generator, mode="serialization")
