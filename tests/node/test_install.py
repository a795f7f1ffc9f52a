"""From `helm install` to a pod that reads its token, an upgrade, `helm uninstall`, and all of it again: on a real node.

It is one long test, because each step is about what the one before has left. Commands come from docs/install.md.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.node.person import GROUP, HOME, LONG, TEAM, commands
from tests.support.kube_api import eventually

if TYPE_CHECKING:
    from tests.node.person import Person

pytestmark = [pytest.mark.node, pytest.mark.keycloak, pytest.mark.slow, pytest.mark.timeout(1800)]

(INSTALL,) = commands("The chart")
DECLARE, READ, (RENEW,) = commands("A first identity")
(UPGRADE,), UNINSTALL, REMOVE = commands("Upgrading and uninstalling")
TOUCH = (
    """kubectl -n batch patch serviceidentity nightly-ingest --type=merge -p '{"spec":{"target":{"touchPods":true}}}'"""
)


def test_from_install_to_uninstall(person: Person) -> None:
    person.types(*INSTALL)
    first = declare_and_read(person)
    take_over_a_session(person)
    second = renew_at_the_kubelets_pace(person, first)
    upgrade(person, second)
    renew_with_touched_pods(person, second)
    uninstall_and_install_again(person)
    remove_everything(person)


def declare_and_read(person: Person) -> str:
    """A pod and a Job read a live token; what lacks a Secret says so. Returns the token."""
    *_, table = person.types(*DECLARE)
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [
        ["nightly-ingest", "True", "Issued"],
        ["nightly-report", "False", "SecretNotFound"],
    ]
    assert "post-bot" in person.condition("nightly-report")["message"]
    _, _, in_pod, _, in_job = person.types(*READ)
    assert in_pod == in_job
    assert person.is_active(in_pod)
    assert person.exchanges() == 1
    return in_pod


def take_over_a_session(person: Person) -> None:
    """Plant a refresh token, which from then on is in the private state alone."""
    material, host = person.realm.material, person.keycloak.http_url.removeprefix("http://")
    login = {"grant_type": "password", "username": material.alice.name, "password": material.alice.password}
    answer = httpx.post(
        person.realm.endpoint(),
        data={**login, "scope": "openid email"},
        auth=(material.login.id, material.login.secret),
        timeout=60,
    )
    seed = answer.raise_for_status().json()["refresh_token"]
    for name, values in {
        "login-app": {"client_secret": material.login.secret},
        "archive-seed": {"refresh_token": seed},
    }.items():
        person.node.cluster.api.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": name,
                    "namespace": TEAM,
                    "labels": {"keyferry.dev/credential": "true"},
                    "annotations": {"keyferry.dev/hosts": host},
                },
                "stringData": values,
            }
        )
    person.types(
        "kubectl -n batch apply -f examples/keycloak/refresh-token.yaml",
        "kubectl -n batch wait --for=condition=Ready serviceidentity/archive --timeout=2m",
    )


def renew_at_the_kubelets_pace(person: Person, first: str) -> str:
    """A renewal reaches the running pod; touching it is refused, aloud, where the installation does not allow it."""
    person.types(TOUCH)
    assert person.renews("nightly-ingest", RENEW) == 2
    waited = person.seconds_until(lambda: person.token_in_pod() != first, "the next token is in the pod")
    print(f"the kubelet brought a renewed token into the pod after {waited:.1f} s")  # noqa: T201 - for people
    second = person.token_in_pod()
    assert person.is_active(second)
    assert "keyferry.dev/touched" not in reader_annotations(person)
    (told,) = [event for event in events(person) if event.get("action") == "pods_not_touched"]
    assert "touchPods.enabled" in told["note"]
    assert told["type"] == "Warning"
    return second


def events(person: Person) -> list[dict[str, str]]:
    return person.node.cluster.api.items("events.k8s.io/v1", "Event", TEAM)


def reader_annotations(person: Person) -> dict[str, str]:
    found = person.node.cluster.api.get("v1", "Pod", "reader", TEAM)["metadata"]
    return dict(found.get("annotations", {}))


def upgrade(person: Person, token: str) -> None:
    """`helm test` passes; a changed value is in force without any exchange."""
    before = person.untouched()
    person.types(f"{UPGRADE} --set touchPods.enabled=true", INSTALL[-1])
    assert person.exchanges() == 0
    assert person.untouched() == before
    assert person.token_in_pod() == token
    (pod,) = person.node.cluster.api.items("v1", "Pod", HOME, labelSelector="app.kubernetes.io/component=operator")
    assert "--touch-pods" in pod["spec"]["containers"][0]["args"]


def renew_with_touched_pods(person: Person, second: str) -> None:
    """The file follows at once, now that the installation allows it."""
    assert person.renews("nightly-ingest", RENEW) == 3
    waited = person.seconds_until(lambda: person.token_in_pod() != second, "the next token is in the pod")
    print(f"with the pod touched it was there after {waited:.1f} s")  # noqa: T201 - for people
    secret = person.node.cluster.api.get("v1", "Secret", "nightly-ingest", TEAM)["metadata"]
    assert reader_annotations(person)["keyferry.dev/touched"] == f"nightly-ingest.{secret['resourceVersion']}"
    assert person.is_active(person.token_in_pod())


def uninstall_and_install_again(person: Person) -> None:
    """Nothing hangs, the data stay, and the next release goes on where this one ended."""
    before = person.untouched()
    person.types(*UNINSTALL)
    eventually(lambda: not person.left_behind(), "nothing of the release is left", timeout=LONG)
    api = person.node.cluster.api
    kept = [*api.items(GROUP, "ServiceIdentity"), *api.items(GROUP, "TokenProvider")]
    assert {each["metadata"]["name"] for each in kept} == {"nightly-ingest", "nightly-report", "archive", "keycloak"}
    everything = [*kept, *api.items("v1", "Namespace"), *api.items("v1", "Secret")]
    assert not [each for each in everything if each["metadata"].get("finalizers")]
    assert not [each for each in everything if "deletionTimestamp" in each["metadata"]]
    assert person.untouched() == before

    person.types(INSTALL[0])
    assert person.untouched() == before
    assert person.exchanges() == 0
    assert person.renews("archive", RENEW) == 2, "the refresh token is still in the private state"


def remove_everything(person: Person) -> None:
    """What identities held ends with them; in the end nothing of Keyferry is left, and nothing hangs."""
    tokens = [person.published(name) for name in ("nightly-ingest", "archive")]
    assert all(map(person.is_active, tokens))
    for command in REMOVE:
        if "keyferry.dev/state=gone" in command:
            eventually(partial(shows_nothing, person, command), "everything is revoked", timeout=LONG)
            eventually(lambda: not any(map(person.is_active, tokens)), "Keycloak calls no token active", timeout=LONG)
        else:
            person.types(command)
    person.types(f"kubectl delete namespace {TEAM} --timeout=2m")
    assert not person.left_behind()
    assert not person.node.cluster.api.find("v1", "Namespace", HOME)


def shows_nothing(person: Person, command: str) -> bool:
    return person.types(command) == [""]
