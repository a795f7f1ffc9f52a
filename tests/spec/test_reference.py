from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.spec.explain import aliases
from keyferry.spec.reference import ROOTS, reference
from keyferry.spec.schema import json_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text() == reference(), "run: python -m keyferry.spec.reference > docs/reference.md"


def objects(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "spec", schema
    yield from ((name, part) for name, part in schema.get("$defs", {}).items() if "properties" in part)


@pytest.mark.parametrize("kind", ROOTS)
def test_every_field_is_described_for_the_crds(kind: str) -> None:
    schema = json_schema(ROOTS[kind])
    json.dumps(schema)
    for name, part in objects(schema):
        assert part["additionalProperties"] is False
        for alias, field in part["properties"].items():
            described = field.get("description") or schema["$defs"][field["$ref"].rpartition("/")[2]]["description"]
            assert described.endswith("."), f"{name}.{alias}"


def test_schemas_show_values_as_they_are_written() -> None:
    schema = json_schema(ROOTS["TokenProvider"])
    timeout = schema["$defs"]["Limits"]["properties"]["timeout"]
    assert timeout["default"] == "10s"
    assert timeout["pattern"].startswith("^([0-9]{1,9}d)?")
    assert schema["required"] == ["type"]
    assert set(schema["properties"]) == set(aliases(ROOTS["TokenProvider"]))
