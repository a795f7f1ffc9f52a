"""Any pod: the patch applies, nothing else of the pod changes, and a second look changes nothing."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry_operator.injection import MalformedPod, Refused, read_pod
from tests.operator.injection.samples import Json, injected, injection, patched, pod, spec

NAMES = st.sampled_from(["app", "web", "migrate", "logs", "mesh", "istio-init", "istio-proxy", "keyferry", "late"])
KNOWN = {
    "plain": spec("Token", "Json"),
    "tiled": spec("Token", "Tiled"),
    "key": spec("Tiled", key=True),
    "aiod": spec("AIoD", "Token"),
    "lab": spec("LabArchives", "Json"),
    "private": spec("Token", type="None"),
}
IDENTITIES = st.sampled_from([*KNOWN, "missing"])
VARIABLES = st.sampled_from(["HOME", "API_URL", "KEYFERRY_DIR", "BEARER_TOKEN_FILE", "OTHER", "TILED_CACHE_DIR"])
PATHS = st.sampled_from(["/data", "/var/run/secrets", "/var/run/keyferry", "/home/app/.aiod", "/tmp"])  # noqa: S108


def unique(items: st.SearchStrategy[Any], key: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, max_size=4, unique_by=lambda each: str(each[key]))


CONTAINERS = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "image": st.just("app:1"),
        "restartPolicy": st.just("Always"),
        "env": unique(st.fixed_dictionaries({"name": VARIABLES, "value": st.just("own")}), "name"),
        "volumeMounts": unique(
            st.fixed_dictionaries({"name": st.sampled_from(["data", "tmp"]), "mountPath": PATHS}), "mountPath"
        ),
        "ports": st.just([{"containerPort": 8080, "protocol": "TCP"}]),
        "securityContext": st.just({"runAsUser": 7}),
    },
)
ANNOTATIONS = st.fixed_dictionaries(
    {"keyferry.dev/inject": st.lists(IDENTITIES, min_size=1, max_size=3, unique=True).map(",".join)},
    optional={
        "keyferry.dev/mode": st.sampled_from(["Sidecar", "Secret"]),
        "keyferry.dev/minimum-remaining": st.sampled_from(["5m", "1h30m"]),
        "keyferry.dev/containers": st.lists(NAMES, min_size=1, max_size=2, unique=True).map(",".join),
        "keyferry.dev/clients": st.lists(
            st.sampled_from(["bearer", "tiled", "aiod", "labarchives"]), min_size=1, max_size=3, unique=True
        ).map(",".join),
        "keyferry.dev/home": st.just("/home/app"),
        "keyferry.dev/port": st.just("7600"),
        "keyferry.dev/fallback": st.lists(IDENTITIES, min_size=1, max_size=2, unique=True).map(",".join),
        "example.org/other": st.just("stays"),
    },
)  # fmt: skip


@st.composite
def pods(draw: st.DrawFn) -> Json:
    everyone = draw(st.lists(CONTAINERS, min_size=1, max_size=6, unique_by=lambda each: str(each["name"])))
    first = draw(st.integers(0, len(everyone) - 1))
    more: Json = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "volumes": unique(st.fixed_dictionaries({"name": st.sampled_from(["data", "tmp"])}), "name"),
                "securityContext": st.fixed_dictionaries({}, optional={"runAsUser": st.integers(0, 2000)}),
                "priority": st.integers(),
                "unknownField": st.just({"kept": [1, {"deep": None}]}),
                "hostNetwork": st.booleans(),
            },
        )
    )
    body = pod(draw(ANNOTATIONS), **more)
    body["spec"]["containers"] = everyone[first:]
    if first or draw(st.booleans()):
        body["spec"]["initContainers"] = everyone[:first]
    return body


def without_ours(body: Json) -> Json:
    """The pod as it would be without the injection."""
    rest = copy.deepcopy(body)
    rest["metadata"]["annotations"].pop("keyferry.dev/injected", None)
    spec_ = rest["spec"]
    _drop(spec_, "volumes", lambda each: each["name"].startswith("keyferry-"))
    _drop(spec_, "initContainers", lambda each: each["name"] == "keyferry")
    for container in (*spec_.get("initContainers", ()), *spec_["containers"]):
        _drop(container, "volumeMounts", lambda each: each["name"].startswith("keyferry-"))
        _drop(container, "env", lambda each: each.get("value") != "own")
    return rest


def _drop(body: Json, name: str, ours: Any) -> None:
    left = [each for each in body.get(name, ()) if not ours(each)]
    if left:
        body[name] = left
    else:
        body.pop(name, None)


@given(pods())
@settings(max_examples=150, deadline=None)
def test_nothing_else_changes_and_a_second_look_changes_nothing(body: Json) -> None:
    before = copy.deepcopy(body)
    try:
        found = injection(body, **KNOWN)
    except Refused as refused:
        said = str(refused)
        assert "keyferry.dev/" in said
        assert "\n" not in said
        return
    assert body == before
    assert found.operations
    after = patched(body, found.operations)
    assert without_ours(after) == without_ours(before)
    assert injection(after, **KNOWN).operations == ()
    names = [each["name"] for each in after["spec"].get("initContainers", ())]
    assert names.count("keyferry") == (body["metadata"]["annotations"].get("keyferry.dev/mode") != "Secret")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "annotations", "spec", "containers", "name", "env", "keyferry.dev/inject"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON, JSON, JSON)
@settings(max_examples=150, deadline=None)
def test_what_is_no_pod_is_told_from_one_and_never_crashes(whole: Any, spec_: Any, container: Any) -> None:
    for body in (whole, {**pod(), "spec": spec_}, pod(containers=[container]), pod(initContainers=[container])):
        try:
            injected(body)
        except (MalformedPod, Refused):
            continue
        assert isinstance(read_pod(body).annotations, dict)
