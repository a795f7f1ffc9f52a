"""The CRDs as texts: they are what the models say, structural, bounded, and described to the last field."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BeforeValidator

from keyferry.spec.common import CheckedModel, Model
from keyferry.spec.frozen import FrozenMap
from keyferry.spec.grant import Grant
from keyferry.spec.provider import Client
from keyferry.spec.target import Target, TemplateText
from keyferry.spec.template import PLACEHOLDERS, TemplateError, parse_template
from keyferry_operator.crd_rules import MODEL_RULES, VALUE_RULES, Why, is_set, or_default, quoted
from keyferry_operator.crd_schema import TEMPLATE_PATTERN
from keyferry_operator.crds import KINDS, differing, main, manifests, templates

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = Path(__file__).parents[2] / "charts" / "keyferry" / "templates" / "crds"
# What a structural schema may hold (apiextensions.k8s.io/v1), as far as these use it.
KEYWORDS = {
    "additionalProperties",
    "description",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
}
BY_KIND = {str(kind.name): manifest for kind, manifest in zip(KINDS, manifests(), strict=True)}


def root(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = BY_KIND[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def below(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All schemas below one, with their paths."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from below(field, f"{path}.{name}")
    for keyword, sign in (("items", "[]"), ("additionalProperties", "[*]")):
        if keyword in schema:
            yield f"{path}{sign}", schema[keyword]
            yield from below(schema[keyword], f"{path}{sign}")


def fields(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((path, schema) for path, schema in below(root(kind)) if path != ".metadata")


def at(kind: str, path: str) -> dict[str, Any]:
    return dict(below(root(kind)))[path]


# --- the chart -------------------------------------------------------------------------------------------------------


def test_the_charts_templates_are_what_the_models_say() -> None:
    assert differing(CHART) == [], "run: make crds"
    assert main(["--check", str(CHART)]) == 0


def test_drift_is_told_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write", str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""
    changed, missing, extra = (tmp_path / f"{name}.yaml" for name in ("serviceidentities", "tokenproviders", "old"))
    changed.write_text(changed.read_text("utf-8").replace("maxLength: 63", "maxLength: 64"), "utf-8")
    missing.unlink()
    extra.write_text("", "utf-8")
    assert main(["--check", str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == sorted(map(str, (changed, missing, extra)))
    assert all("make crds" in line for line in told)
    assert main(["--write", str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0


def test_without_options_plain_manifests_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == manifests()


@pytest.mark.parametrize(("name", "text"), templates().items())
def test_nothing_but_the_conditions_looks_like_an_action_of_helm(name: str, text: str) -> None:
    actions = re.findall(r"\{\{.*?\}\}", text)
    conditions = [action for action in actions if action != '{{ "{{" }}']
    assert [action.split()[1] for action in conditions] == ["/*", "if", "if", "end", "end"], name
    assert yaml.safe_load(re.sub(r"(?m)^ *\{\{-.*\}\}\n", "", text)) in [
        manifest | {"metadata": {"annotations": {"helm.sh/resource-policy": "keep"}, **manifest["metadata"]}}
        for manifest in manifests()
    ]


# --- names and columns -----------------------------------------------------------------------------------------------


def test_names_and_scopes_are_those_of_the_contract() -> None:
    specs = {kind: manifest["spec"] for kind, manifest in BY_KIND.items()}
    assert {kind: spec["names"]["plural"] for kind, spec in specs.items()} == {
        "ServiceIdentity": "serviceidentities",
        "TokenProvider": "tokenproviders",
        "ClusterTokenProvider": "clustertokenproviders",
    }
    assert {kind: spec["scope"] for kind, spec in specs.items()} == {
        "ServiceIdentity": "Namespaced",
        "TokenProvider": "Namespaced",
        "ClusterTokenProvider": "Cluster",
    }
    assert specs["ServiceIdentity"]["names"]["shortNames"] == ["si"]
    for spec in specs.values():
        assert spec["group"] == "keyferry.dev"
        assert spec["names"]["categories"] == ["keyferry"]
        assert [version["name"] for version in spec["versions"]] == ["v1alpha1"]
        assert spec["versions"][0]["subresources"] == {"status": {}}


@pytest.mark.parametrize("kind", BY_KIND)
def test_columns_show_fields_that_there_are(kind: str) -> None:
    paths = dict(below(root(kind)))
    for column in BY_KIND[kind]["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(.*?\)\]", "[]", column["jsonPath"])
        if column["name"] == "Age":
            assert (path, column["type"]) == (".metadata.creationTimestamp", "date")
        else:
            assert paths[path]["type"] == column["type"]


def test_the_columns_of_an_identity_are_those_of_the_contract() -> None:
    columns = BY_KIND["ServiceIdentity"]["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = [column["name"] for column in columns if "priority" not in column]
    assert shown == ["Ready", "Reason", "Grant", "Expires", "Renews", "Secret", "Age"]
    assert [column["name"] for column in columns if column.get("priority")] == ["Provider", "Failures", "Message"]


def test_a_status_has_all_fields_of_the_contract() -> None:
    status = at("ServiceIdentity", ".status")["properties"]
    ours = {"asked", "consumers", "failure"}  # what Keyferry notes for itself; the contract may gain fields
    assert set(status) - ours == {
        "observedGeneration",
        "revision",
        "issueTime",
        "expirationTime",
        "renewalTime",
        "nextAttemptTime",
        "reauthorizeByTime",
        "failureCount",
        "lastError",
        "lastHandledRenew",
        "lastHandledLogin",
        "authorizedAs",
        "binding",
        "approval",
        "conditions",
    }
    for name in [name for name in status if name.endswith("Time")]:
        assert (status[name]["type"], status[name]["format"]) == ("string", "date-time")
    for kind in BY_KIND:
        conditions = at(kind, ".status.conditions")
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


# --- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BY_KIND)
def test_schemas_are_structural_and_described(kind: str) -> None:
    for path, schema in fields(kind):
        assert not schema.keys() - KEYWORDS, path
        assert isinstance(schema["type"], str), path
        assert ("properties" in schema) + ("additionalProperties" in schema) == (schema["type"] == "object"), path
        assert ("items" in schema) == (schema["type"] == "array"), path
        assert set(schema.get("required", ())) <= schema.get("properties", {}).keys(), path
        if not path.endswith("]"):
            assert schema["description"].endswith("."), path


@pytest.mark.parametrize("kind", BY_KIND)
def test_everything_in_a_spec_is_bounded(kind: str) -> None:
    for path, schema in fields(kind):
        if not path.startswith(".spec"):
            continue
        if schema["type"] == "string":
            assert "maxLength" in schema or "enum" in schema, path
        elif schema["type"] == "array":
            assert "maxItems" in schema, path
        elif "additionalProperties" in schema:
            assert "maxProperties" in schema, path


@pytest.mark.parametrize("kind", BY_KIND)
def test_rules_have_clear_messages_and_name_a_field_that_there_is(kind: str) -> None:
    paths = dict(below(root(kind)))
    rules = [
        (path, rule)
        for path, schema in [("", root(kind)), *paths.items()]
        for rule in schema.get("x-kubernetes-validations", ())
    ]
    assert rules
    for path, rule in rules:
        assert rule["message"], path
        assert "\n" not in rule["message"]
        assert rule["reason"] in {"FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"}
        if "fieldPath" in rule:
            assert path + rule["fieldPath"] in paths


def test_defaults_are_told_and_never_written_into_objects() -> None:
    assert at("ServiceIdentity", ".spec.deletionPolicy")["description"].endswith("Default: Revoke.")
    assert at("ServiceIdentity", ".spec.suspend")["description"].endswith("Default: false.")
    assert at("ServiceIdentity", ".spec.target.files")["description"].endswith(
        "Default: [{format: Token, name: token}, {format: Json, name: token.json}]."
    )
    assert at("TokenProvider", ".spec.limits.timeout")["description"].endswith("Default: 10s.")
    assert at("TokenProvider", ".spec.limits.requestsPerSecond")["description"].endswith("Default: 10.")


def test_bounds_are_written_as_openapi_does() -> None:
    rate = at("TokenProvider", ".spec.limits.requestsPerSecond")
    assert (rate["type"], rate["minimum"], rate["exclusiveMinimum"], rate["maximum"]) == ("number", 0, True, 10000)


# --- the models' own checks all have their rules ---------------------------------------------------------------------


def hints(model: type[Model]) -> Iterator[Any]:
    """The annotations of a model's fields and of all that is in them."""
    waiting = list(typing.get_type_hints(model, include_extras=True).values())
    while waiting:
        hint = waiting.pop()
        yield hint
        if isinstance(hint, type) and issubclass(hint, Model):
            waiting.extend(typing.get_type_hints(hint, include_extras=True).values())
        waiting.extend(get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint))


ALL_HINTS = [hint for kind in KINDS for hint in hints(kind.model)]
MODELS = {kind.model for kind in KINDS} | {
    hint for hint in ALL_HINTS if isinstance(hint, type) and issubclass(hint, Model)
}


def test_every_model_that_checks_itself_has_rules() -> None:
    checked = {model for model in MODELS if issubclass(model, CheckedModel)}
    assert checked == set(MODEL_RULES)


def test_every_value_that_is_checked_by_code_has_rules() -> None:
    known = [kind for kind, _ in VALUE_RULES]
    for hint in ALL_HINTS:
        if get_origin(hint) is not Annotated or get_origin(get_args(hint)[0]) is Mapping:
            continue
        if any(isinstance(part, AfterValidator | BeforeValidator) for part in get_args(hint)[1:]):
            assert hint in known or hint == TemplateText, hint


def test_mappings_are_checked_by_nothing_but_their_keys_and_values() -> None:
    for hint in ALL_HINTS:
        if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) is Mapping:
            validators = [part for part in get_args(hint)[1:] if isinstance(part, AfterValidator | BeforeValidator)]
            assert all(validator.func is FrozenMap for validator in validators)


# --- expressions -----------------------------------------------------------------------------------------------------


def test_set_means_other_than_the_default() -> None:
    assert is_set(Client, "id") == "has(self.id)"
    assert is_set(Client, "secrets_from") == "(has(self.secretsFrom) && size(self.secretsFrom) > 0)"
    assert is_set(Client, "algorithm", "x") == "(has(x.algorithm) && x.algorithm != 'RS256')"
    assert is_set(Target, "touch_pods") == "(has(self.touchPods) && self.touchPods != false)"
    assert is_set(Target, "labels") == "(has(self.labels) && size(self.labels) > 0)"
    with pytest.raises(TypeError, match="files"):
        is_set(Target, "files")
    assert or_default(Target, "type") == "(has(self.type) ? self.type : 'Secret')"


def test_texts_are_quoted_for_cel() -> None:
    assert quoted("a") == "'a'"
    assert quoted(r"\.") == r"r'\.'"
    for text in ("it's", "a\nb"):
        with pytest.raises(ValueError, match="raw CEL"):
            quoted(text)


def test_unions_say_who_needs_and_who_owns_a_member() -> None:
    rules = {rule.rule: rule for rule in MODEL_RULES[Grant]}
    missing = rules["!(self.type == 'Password') || has(self.password)"]
    assert (missing.field, missing.why) == ("password", Why.REQUIRED)
    assert missing.message.startswith("is missing; type: Password needs it: The user name")
    foreign = rules["self.type == 'Password' || !has(self.password)"]
    assert (foreign.field, foreign.why, foreign.message) == (
        "password",
        Why.FORBIDDEN,
        "belongs to type: Password only",
    )


pieces = st.sampled_from(["$", "{", "}", "a", "\n", "ä", "${", "$${", "${scope}", "${nope}", *PLACEHOLDERS])


@given(st.lists(pieces, max_size=12).map("".join))
@settings(max_examples=400)
def test_the_pattern_of_templates_is_what_the_parser_accepts(text: str) -> None:
    try:
        parse_template(text)
    except TemplateError:
        understood = False
    else:
        understood = True
    # RE2's `$` is the end of the text; Python's may stand before a last line break.
    assert bool(re.search(TEMPLATE_PATTERN.removesuffix("$") + r"\Z", text)) == understood
