"""Pods and identities for the tests of injection, and what the API server would do with a patch."""

from __future__ import annotations

import copy
from typing import Any

from keyferry.spec.resources import load_object
from keyferry_operator.injection import Injection, InjectionSettings, inject, read_pod

Json = dict[str, Any]
SETTINGS = InjectionSettings(
    image="keyferry/keyferry:1",
    broker_url="https://kf-keyferry-broker.keyferry.svc:8443",
    kubernetes=(1, 36),
    resources={"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
)


def spec(*formats: str, key: bool = False, consumers: tuple[str, ...] = ("default",), **target: Any) -> Any:
    """The spec of an identity with files of some formats."""
    names = {"Token": "token", "Json": "token.json"}
    files: list[Json] = [{"format": each} | ({"name": names[each]} if each in names else {}) for each in formats]
    target = {"files": files or [{"format": "Token", "name": "token"}], **target}
    body = {
        "apiVersion": "keyferry.dev/v1alpha1",
        "kind": "ServiceIdentity",
        "metadata": {"name": "one", "namespace": "batch"},
        "spec": {
            "providerRef": {"name": "a"},
            "grant": {"type": "ClientCredentials"},
            "target": target,
            "consumers": [{"serviceAccountName": name} for name in consumers],
            **({"apiKey": {}} if key else {}),
        },
    }
    loaded = load_object(body)
    assert not loaded.problems, loaded.problems
    return loaded.identities[0].spec


def pod(annotations: dict[str, str] | None = None, **more: Any) -> Json:
    """A pod as the API server sends it."""
    found = {"keyferry.dev/inject": "nightly"} if annotations is None else annotations
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "app-", "annotations": found},
        "spec": {
            "serviceAccountName": "default",
            "containers": [{"name": "app", "image": "app:1"}],
            **more,
        },
    }


def asking(**annotations: str) -> dict[str, str]:
    """Annotations, written with underscores for dashes; the identity is ``nightly`` unless said otherwise."""
    named = {"inject": "nightly", **annotations}
    return {f"keyferry.dev/{name.replace('_', '-')}": value for name, value in named.items()}


def injection(body: Json, settings: InjectionSettings = SETTINGS, **known: Any) -> Injection:
    """Decide on a pod; ``known`` are the identities, by name, that there are."""
    return inject(read_pod(body), "batch", known.get, settings)


def injected(body: Json, settings: InjectionSettings = SETTINGS, **known: Any) -> Json:
    """The pod as it is after the patch."""
    return patched(body, injection(body, settings, **known).operations)


def patched(body: Json, operations: Any) -> Json:
    """Apply a JSON Patch (RFC 6902): additions and replacements, in order."""
    result: Any = copy.deepcopy(body)
    for operation in operations:
        *way, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
        here = result
        for step in way:
            here = here[int(step)] if isinstance(here, list) else here[step]
        value = copy.deepcopy(operation["value"])
        if isinstance(here, list):
            assert operation["op"] == "add"
            assert int(last) <= len(here)
            here.insert(int(last), value)
        else:
            assert operation["op"] == "add" or last in here
            here[last] = value
    return dict(result)


def container(body: Json, name: str = "app") -> Json:
    """A container of a pod, by its name."""
    found = [*body["spec"].get("initContainers", ()), *body["spec"]["containers"]]
    (one,) = [each for each in found if each["name"] == name]
    return dict(one)


def variables(body: Json, name: str = "app") -> Json:
    """The variables of a container: values, or where they come from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container(body, name).get("env", ())}


def mounts(body: Json, name: str = "app") -> dict[str, Json]:
    """The mounts of a container by their places."""
    return {each["mountPath"]: each for each in container(body, name).get("volumeMounts", ())}


def volumes(body: Json) -> dict[str, Json]:
    """The volumes of a pod by their names."""
    return {each["name"]: each for each in body["spec"].get("volumes", ())}
