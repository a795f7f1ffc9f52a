"""Which rights the operator needs, call by call. ``test_rights.py`` holds it against the sources and the chart."""

from __future__ import annotations

import ast
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from keyferry_operator import client

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Right(NamedTuple):
    group: str
    resource: str
    verb: str


class Place(Enum):
    """Where a right is needed, and who says so."""

    WATCHED = auto()
    """Wherever identities are looked after."""
    CLUSTER = auto()
    """In the whole cluster, where that is watched."""
    ORIGIN = auto()
    """On the namespace kube-system alone."""
    PRIVATE = auto()
    """In the release's own namespace."""
    HOME = auto()
    """There as well, where it is not watched: the page is told by which authorities it knows the broker."""
    PAGE = auto()
    """There as well, where it is not watched and ``page.enabled``."""
    SHARES = auto()
    """There as well, if there are several ``shards``."""
    TOKENS = auto()
    """Wherever identities are looked after, if ``serviceAccountTokens.enabled``."""
    WEBHOOK = auto()
    """On the release's own webhook configuration, where the whole cluster is watched."""
    EVERYBODY = auto()
    """None: it is asked with somebody else's token what that one may do (the role ``system:basic-user``)."""
    COUNTS = auto()
    """In the whole cluster, if ``webhook.countPods.enabled``."""
    PODS = auto()
    """Wherever identities are looked after, if ``touchPods.enabled``."""


class Call(NamedTuple):
    module: str
    function: str
    kind: str


# Every call in the operator's sources that names a kind of object, and the verbs that the API server asks for.
CALLS: dict[Call, tuple[Place, str]] = {
    Call("callers", "review", "TOKEN_REVIEWS"): (Place.CLUSTER, "create"),
    Call("certificates", "create", "SECRETS"): (Place.PRIVATE, "create"),
    Call("certificates", "get", "SECRETS"): (Place.PRIVATE, "get"),
    Call("certificates", "replace", "SECRETS"): (Place.PRIVATE, "update"),
    Call("credentials", "_get", "CONFIG_MAPS"): (Place.WATCHED, "get"),
    Call("credentials", "_get", "SECRETS"): (Place.WATCHED, "get"),
    Call("credentials", "_get", "SERVICE_ACCOUNTS"): (Place.TOKENS, "get"),
    Call("credentials", "create", "SERVICE_ACCOUNTS"): (Place.TOKENS, "create token"),
    Call("following", "_reflector", "NAMESPACES"): (Place.CLUSTER, "list watch"),
    Call("following", "_reflector", "SECRETS"): (Place.WATCHED, "list watch"),
    Call("following", "listing", "PROVIDERS"): (Place.WATCHED, "list"),
    Call("following", "pages", "IDENTITIES"): (Place.WATCHED, "list"),
    Call("holders", "get", "PODS"): (Place.WATCHED, "get"),
    Call("holders", "merge", "IDENTITIES"): (Place.WATCHED, "patch status"),
    Call("leases", "delete", "LEASES"): (Place.SHARES, "delete"),
    Call("leases", "pages", "LEASES"): (Place.PRIVATE, "list"),
    Call("leases", "replace", "LEASES"): (Place.PRIVATE, "update"),
    Call("leases", "write", "LEASES"): (Place.PRIVATE, "create update"),
    Call("operator", "create", "SECRETS"): (Place.PRIVATE, "create"),
    Call("operator", "get", "NAMESPACES"): (Place.ORIGIN, "get"),
    Call("operator", "get", "SECRETS"): (Place.PRIVATE, "get"),
    Call("page", "review", "SELF_ACCESS_REVIEWS"): (Place.EVERYBODY, "create"),
    Call("overlooked", "pages", "PODS"): (Place.COUNTS, "list"),
    Call("pods", "_read", "PODS"): (Place.WATCHED, "get"),
    Call("pods", "_read", "SERVICE_ACCOUNTS"): (Place.WATCHED, "get"),
    Call("provider_status", "merge", "CLUSTER_PROVIDERS"): (Place.CLUSTER, "patch status"),
    Call("provider_status", "merge", "PROVIDERS"): (Place.WATCHED, "patch status"),
    Call("publish", "apply", "SECRETS"): (Place.WATCHED, "create patch"),
    Call("publish", "create", "SECRETS"): (Place.WATCHED, "create"),
    Call("publish", "delete", "SECRETS"): (Place.WATCHED, "delete"),
    Call("publish", "get", "SECRETS"): (Place.WATCHED, "get"),
    Call("publish", "merge", "SECRETS"): (Place.WATCHED, "patch"),
    Call("report", "create", "EVENTS"): (Place.WATCHED, "create"),
    Call("report", "merge", "IDENTITIES"): (Place.WATCHED, "patch status"),
    Call("rereading", "get", "CONFIG_MAPS"): (Place.WATCHED, "get"),
    Call("rereading", "get", "SERVICE_ACCOUNTS"): (Place.TOKENS, "get"),
    Call("sharing", "delete", "LEASES"): (Place.SHARES, "delete"),
    Call("sharing", "pages", "LEASES"): (Place.PRIVATE, "list"),
    Call("state", "create", "SECRETS"): (Place.PRIVATE, "create"),
    Call("state", "delete", "SECRETS"): (Place.PRIVATE, "delete"),
    Call("state", "get", "SECRETS"): (Place.PRIVATE, "get"),
    Call("state", "pages", "SECRETS"): (Place.PRIVATE, "list"),
    Call("state", "replace", "SECRETS"): (Place.PRIVATE, "update"),
    Call("touch", "merge", "PODS"): (Place.PODS, "patch"),
    Call("touch", "pages", "PODS"): (Place.PODS, "list"),
    Call("trust", "apply", "CONFIG_MAPS"): (Place.WATCHED, "create patch"),
    Call("wants", "merge", "IDENTITIES"): (Place.WATCHED, "patch status"),
    Call("webhook", "apply", "MUTATING_WEBHOOKS"): (Place.WEBHOOK, "patch"),
    Call("webhook", "get", "MUTATING_WEBHOOKS"): (Place.WEBHOOK, "get"),
}
# What kopf lists and watches.
KOPF = {"IDENTITIES": Place.WATCHED, "PROVIDERS": Place.WATCHED, "CLUSTER_PROVIDERS": Place.CLUSTER}

KINDS = {name: kind for name, kind in vars(client).items() if isinstance(kind, client.Kind)}
# Functions that take a kind and ask the API server for nothing.
LOCAL = {"Change", "_where"}
SUBRESOURCES = {"token", "status"}


# Modules that ask for the same in another place, too.
ELSEWHERE = {Place.HOME: {"trust"}, Place.PAGE: {"pods"}}
# Modules that ask for something only once the broker serves, or a pod asks it.
BROKER = {"callers", "certificates", "holders", "pods", "trust", "wants"}


def needed(place: Place, *, broker: bool = True) -> set[Right]:
    """Return the rights that the operator needs in ``place``, with or without its broker."""
    watched = {right for kind, where in KOPF.items() if where is place for right in _rights(kind, "list watch")}
    also = ELSEWHERE.get(place, set())
    calls = {call: verbs for call, (where, verbs) in CALLS.items() if where is place or call.module in also}
    used = {call: verbs for call, verbs in calls.items() if broker or call.module not in BROKER}
    return watched.union(*(_rights(call.kind, verbs) for call, verbs in used.items()))


def _rights(kind: str, verbs: str) -> Iterator[Right]:
    words = verbs.split()
    below = "".join(f"/{word}" for word in words if word in SUBRESOURCES)
    found = KINDS[kind]
    return (Right(found.group, found.plural + below, verb) for verb in words if verb not in SUBRESOURCES)


def calls_in(module: Path) -> set[Call]:
    """Return the calls of a module that name a kind of object."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        kinds = {argument.id for argument in node.args if isinstance(argument, ast.Name)} & KINDS.keys()
        found |= {Call(module.stem, name, kind) for kind in kinds if name not in LOCAL}
    return found


def granted(rules: Iterable[dict[str, list[str]]]) -> set[Right]:
    """Return what the rules of a role grant."""
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
