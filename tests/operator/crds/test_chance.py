"""Anything at all: whatever the API server accepts, the operator understands."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.spec.resources import load_object
from tests.operator.crds.verdicts import Judge, Resource, understood
from tests.spec import samples, test_properties
from tests.spec.samples import REF, client, resource
from tests.spec.test_mistakes import files, grant

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

SLOW = settings(max_examples=60)


@given(spec=test_properties.identities)
@SLOW
def test_any_valid_identity_is_accepted_and_understood(judge: Judge, spec: Any) -> None:
    value = resource("ServiceIdentity", spec)
    assert judge(value).accepted
    judge.assert_agreed(value)


@given(spec=test_properties.providers)
@SLOW
def test_any_valid_provider_is_accepted_and_understood(judge: Judge, spec: Any) -> None:
    for kind in ("TokenProvider", "ClusterTokenProvider"):
        value = resource(kind, spec)
        assert judge(value).accepted
        judge.assert_agreed(value)


@given(
    case=st.sampled_from(sorted(test_properties.KINDS)).flatmap(
        lambda kind: st.tuples(st.just(kind), test_properties.nearly(test_properties.KINDS[kind]))
    )
)
@SLOW
def test_whatever_is_accepted_is_understood(judge: Judge, case: tuple[str, Any]) -> None:
    kind, spec = case
    try:
        text = json.dumps(spec, allow_nan=False)
    except (TypeError, ValueError):
        return  # not something that could be sent
    value = resource(kind, json.loads(text))
    for strict in (True, False):
        stored = judge(value, strict=strict).stored
        assert stored is None or understood(stored), load_object(stored).problems


SEEDS = [
    *(document for document in yaml.safe_load_all(samples.CONTRACT)),
    client(authentication="PrivateKeyJwt", privateKeyFrom=REF, keyId="k", algorithm="ES256"),
    grant("Password", password={"usernameFrom": REF, "passwordFrom": REF}),
    files({"format": "Tiled"}, {"format": "AIoD", "apiServer": "https://a"}, {"format": "Token", "name": "t"}),
    resource(
        "TokenProvider",
        {
            "type": "LabArchives",
            "labarchives": {
                "url": "https://a",
                "accessKeyIdFrom": REF,
                "accessPasswordFrom": REF,
                "methods": ["entry_attachment"],
            },
        },
    ),
]
# Values on either side of some boundary, put where they may or may not belong.
EDGES: list[Any] = [
    *("", "a", "A", "-", ".", "..", "a.b", "a..b", "a b", "ä", "\x7f", "\u2028", "a\n", "token", "tiled.env", ".tiled"),
    *("0s", "1s", "9m59s", "10m", "1h", "36500d", "36500d1s", "10", "1x", "٣s", "-1s", "1.5h"),
    *("https://a", "https://a/?b", "https://a#b", "http://[::1]:1", "https://[::1", "https://a:65536", "HTTPS://a"),
    *("urn:a:b", "a:b", ":b", "${scope}", "${", "$${", "scope", "None", "Secret", "Tiled", "Password", "Token"),
    *(True, False, 0, 1, 1.0, 1.5, -1, 10**6, 10**20, None, [], {}, ["a"], [None], {"a": "b"}, REF),
    *("a" * length for length in (63, 64, 253, 254, 1024, 1025, 4097)),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


@st.composite
def mutants(draw: st.DrawFn) -> Resource:
    """A valid resource in which one or two things were left out, renamed, doubled or replaced."""
    value: Resource = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    value["metadata"] = {"name": "x"}
    value.pop("status", None)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(value["spec"]))
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        parent = value["spec"]
        for part in above:
            parent = parent[part]
        action = draw(st.sampled_from(["replace", "replace", "remove", "double", "rename"]))
        if action == "remove":
            del parent[last]
        elif action == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        elif action == "rename" and isinstance(parent, dict):
            parent[str(draw(st.sampled_from(EDGES[:60])))] = parent.pop(last)
        else:
            parent[last] = copy.deepcopy(draw(st.sampled_from(EDGES)))
    return value


@given(value=mutants())
@settings(SLOW, max_examples=300)
def test_both_agree_on_what_was_changed_by_chance(judge: Judge, value: Resource) -> None:
    judge.assert_agreed(value)
