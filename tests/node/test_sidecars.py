"""Pods with sidecars on a real node: from the annotation to running jobs, 200 renewals, kills and outages.

It is one long test, because pods are slow to start: they run beside each other while the next thing is tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import Client
from tests.node.person import GROUP, HOME, LONG, TEAM, Person, commands
from tests.node.workloads import (
    ROOT,
    Seen,
    client_pod,
    example,
    identity,
    pod,
    provider,
    runs,
    scripts,
    secret,
)
from tests.support import node_images
from tests.support.aiod import AiodApi
from tests.support.issuer_process import IssuerProcess
from tests.support.keycloak_realm import RealmOptions
from tests.support.kube_api import ApiError, eventually
from tests.support.labarchives import LabArchives
from tests.support.tiled import ARRAY, USERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.node.workloads import Document
    from tests.support.keycloak import Keycloak
    from tests.support.tiled import TiledServer

pytestmark = [pytest.mark.node, pytest.mark.keycloak, pytest.mark.tiled, pytest.mark.slow]

DECLARE = commands("A first identity")[0]
CONSUME, RUN, LOOK = commands("From nothing to a running job", "sidecar.md")
RENEWALS = 200
# The broker lets a pod ask twice a second; each of these asks and reports every six seconds.
FAST = {pod: tuple(f"{pod}-{number}" for number in range(4)) for pod in ("left", "right", "upper", "lower")}
SLOW = tuple(f"slow-{number}" for number in range(4))
FAST_LIFE, UNHURRIED, AIOD_LIFE, TILED_LIFE = 12.0, 7200.0, 20, 12
HEAD = "| from the issuer's answer to the file | renewals | p50 | p99 | slowest |\n|---|---|---|---|---|"
REVISIONS = f"""
import json, pathlib
files = pathlib.Path("{ROOT}").glob("*/token.json")
print(json.dumps({{file.parent.name: json.loads(file.read_text())["revision"] for file in files}}))
"""
PLACEHOLDER = f"{ROOT}/.keyferry/placeholder"
EMAIL = "ada@example.org"


@pytest.mark.timeout(1800)
def test_from_an_annotation_to_running_jobs(
    installed: Person, keycloak: Keycloak, start_tiled: Callable[..., TiledServer]
) -> None:
    person = installed
    with IssuerProcess() as issuer, LabArchives() as archives, AiodApi(introspection(keycloak)) as aiod:
        tiled = start_tiled(access_token_max_age=TILED_LIFE)
        person.node.load(node_images.clients())
        person.types(*DECLARE)
        declare(person, issuer)
        declare_clients(person, keycloak, aiod, archives, tiled)
        create(person, scripts(), *watchers(), *judged(), client_pod(tiled.url, ARRAY))
        follow_the_page(person)
        for name in ("root", "other", "plain"):
            assert_judged(person, name)
        deliver(person, issuer)
        endure(person, issuer)
        person.node.wait_for_phase(TEAM, "clients", "Succeeded", timeout=LONG)
        told = {name: person.node.logs(TEAM, "clients", name) for name in ("tiled", "aiod", "lab")}
        assert told == {
            "tiled": "read across 5 rotations\n",
            "aiod": "service-account-basic-bot\n",
            "lab": f"stored {1 << 20}\n",
        }
        leave_nothing(person)


def introspection(keycloak: Keycloak) -> Callable[[str], dict[str, Any]]:
    return lambda token: keycloak.introspect(token, "sidecars-aiod")


def create(person: Person, *documents: Document) -> None:
    for document in documents:
        person.node.cluster.api.create(document)


# What is declared


def declare(person: Person, issuer: IssuerProcess) -> None:
    """Identities whose tokens live for seconds, for sidecars alone; and some that live for hours, with a Secret too."""
    for name, life in (("fast", FAST_LIFE), ("slow", UNHURRIED)):
        issuer.add_client(Client(name, secrets=(f"{name}-secret",), access_lifetime=life))
    create(
        person,
        secret("issuer", issuer.url.removeprefix("http://"), fast="fast-secret", slow="slow-secret"),
        provider(issuer),
        *(identity(name, "fast", "None") for names in FAST.values() for name in names),
        *(identity(name, "slow", "Secret") for name in SLOW),
    )


def declare_clients(
    person: Person, keycloak: Keycloak, aiod: AiodApi, archives: LabArchives, tiled: TiledServer
) -> None:
    """The examples of the three systems, made to fit what runs here."""
    realm = keycloak.provision_realm("sidecars-aiod", RealmOptions(access_token_lifespan=AIOD_LIFE))
    bot = realm.material.basic
    create(
        person,
        secret("aiod-bot", keycloak.http_url.removeprefix("http://"), client_secret=bot.secret),
        *example(
            "aiod/bot.yaml",
            {
                "https://auth.aiodp.eu/aiod-auth/realms/aiod": realm.issuer(),
                "https://api.aiodp.eu/": aiod.url,
                "my-bot": bot.id,
            },
        ),
        secret("organization", archives.url.removeprefix("http://"), access_key_id=archives.access_key_id,
               access_password=archives.access_password),
        secret("labarchives-ada", archives.url.removeprefix("http://"), email=EMAIL, code=archives.code_for(EMAIL)),
        *example("labarchives/headless.yaml", {"https://api.labarchives.com": archives.url}),
        secret("tiled-bob", tiled.url.removeprefix("http://"), username="bob", password=USERS["bob"]),
        *example("tiled/api-key.yaml", {"https://tiled.example.org/api/v1": tiled.api_url}, "tiled"),
        *example("tiled/token-directory.yaml", {}),
    )  # fmt: skip


# The pods


def watchers() -> list[Document]:
    """Strict pods that watch many identities; and four others, as a sidecar and as the kubelet brings them."""
    strict = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    user = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000}
    return [
        *(
            pod(name, names, runs("watch.py", *names, securityContext=strict), securityContext=user)
            for name, names in FAST.items()
        ),
        pod("by-sidecar", SLOW, runs("watch.py", *SLOW)),
        pod("by-kubelet", SLOW, runs("watch.py", *SLOW), asks={"mode": "Secret"}),
    ]


def judged() -> list[Document]:
    """Pods of different users; an ordinary init container finds the token as well."""
    names = ("slow-0", "slow-1")

    def both(**security: Any) -> dict[str, Any]:
        container: dict[str, Any] = {"securityContext": security} if security else {}
        return {
            "initContainers": [runs("judge.py", *names, name="first", **container)],
            "containers": [runs("judge.py", *names, **container)],
        }

    return [
        pod("plain", names, **both()),
        pod("root", names, securityContext={"runAsUser": 0}, **both()),
        pod("other", (*names, "streaming"), **both(runAsUser=4711), asks={"clients": "bearer,tiled"}),
    ]


def assert_judged(person: Person, name: str) -> None:
    person.node.wait_for_phase(TEAM, name, "Succeeded", timeout=LONG)
    user = {"plain": 0, "root": 0, "other": 4711}[name]
    for container in ("first", "main"):
        assert person.node.logs(TEAM, name, container) == f"judged as {user}\n"
    body = person.node.cluster.api.get("v1", "Pod", name, TEAM)
    ours, _ = body["spec"]["initContainers"]
    assert (ours["name"], ours["securityContext"]["runAsUser"]) == ("keyferry", 65532)


def follow_the_page(person: Person) -> None:
    """What docs/sidecar.md tells to type: a Deployment and a Job, whose tokens are live."""
    person.types(*CONSUME)
    person.types(*RUN)
    *_, held, printed = person.types(*LOOK)
    assert "nightly-ingest: revision 1, good for" in held
    assert person.is_active(printed.strip())
    with pytest.raises(ApiError, match=r"keyferry\.dev/mode: 'Sidekick' is none of Sidecar, Secret"):
        create(person, pod("wrong", ("slow-0",), runs("judge.py"), asks={"mode": "Sidekick"}))


# Delivery


def deliver(person: Person, issuer: IssuerProcess) -> None:
    """200 renewals reach running pods; beside them, what the kubelet makes of mounted Secrets."""
    for name in (*FAST, "by-sidecar", "by-kubelet"):
        person.node.wait_ready(TEAM, name, timeout=LONG)
    for name in SLOW:
        person.types(f"kubectl -n {TEAM} annotate serviceidentity {name} keyferry.dev/renew=now")
        time.sleep(5)  # so that they do not all fall into one look of the kubelet
    eventually(lambda: len(seen(person, issuer, *FAST).delays) >= RENEWALS, "200 renewals", timeout=LONG, step=5)
    eventually(lambda: len(seen(person, issuer, "by-kubelet").delays) >= len(SLOW), "mounted Secrets", timeout=LONG)
    rows = [seen(person, issuer, *pods) for pods in (FAST, ("by-sidecar",), ("by-kubelet",))]
    assert not [line for row in rows for line in row.broken]
    assert len(rows[1].delays) == len(SLOW)
    assert max(rows[0].delays) < FAST_LIFE, "no token expired on its way"
    told = ("sidecar, tokens of 12 s", "sidecar, tokens of 2 h", "mounted Secret, by the kubelet")
    lines = [HEAD, *(row.row(what) for row, what in zip(rows, told, strict=True))]
    print("\n".join(lines))  # noqa: T201 - for people


def seen(person: Person, issuer: IssuerProcess, *pods: str) -> Seen:
    return Seen.read("".join(person.node.logs(TEAM, name) for name in pods), issuer)


# Kills and outages


def endure(person: Person, issuer: IssuerProcess) -> None:
    """The files stay whole whatever dies, and fresh tokens come again by themselves."""
    placeholder = person.node.exec(TEAM, "left", "cat", PLACEHOLDER)
    kill(person, TEAM, "left", "keyferry")
    eventually(lambda: restarts(person, "left") >= 1, "the sidecar is started again", timeout=LONG)
    fresh_again(person, issuer)
    assert person.node.exec(TEAM, "left", "cat", PLACEHOLDER) == placeholder

    (operator,) = person.node.cluster.api.items("v1", "Pod", HOME, labelSelector="app.kubernetes.io/component=operator")
    kill(person, HOME, operator["metadata"]["name"], "operator")
    fresh_again(person, issuer)

    with frozen_api_server(person):
        time.sleep(FAST_LIFE)  # some tokens expire meanwhile; their files stay
    fresh_again(person, issuer)
    assert not seen(person, issuer, *FAST).broken
    assert restarts(person, "left") == 1


def fresh_again(person: Person, issuer: IssuerProcess) -> None:
    """Wait until every identity was renewed, and its file with it."""

    def revisions() -> dict[str, int]:
        found = person.node.exec(TEAM, "left", "python3", "-c", REVISIONS)
        return dict(json.loads(found))

    before = eventually(lambda: attempted(revisions), "the pod answers", timeout=LONG)
    eventually(
        lambda: all(now > before[name] for name, now in (attempted(revisions) or before).items()),
        "every identity is renewed",
        timeout=LONG,
        step=2,
    )
    assert not seen(person, issuer, *FAST).broken


def attempted(ask: Callable[[], dict[str, int]]) -> dict[str, int] | None:
    """Ask the pod by way of the API server, which may be away."""
    with contextlib.suppress(AssertionError, ApiError, ValueError):
        return ask()
    return None


def kill(person: Person, namespace: str, name: str, container: str) -> None:
    """End a container's processes with SIGKILL, as the kernel does when memory runs out."""
    status = person.node.cluster.api.get("v1", "Pod", name, namespace)["status"]
    everyone = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
    (found,) = [each["containerID"] for each in everyone if each["name"] == container]
    person.node.kill(found.removeprefix("containerd://"))


def restarts(person: Person, name: str) -> int:
    status = person.node.cluster.api.get("v1", "Pod", name, TEAM)["status"]
    return int(status["initContainerStatuses"][0]["restartCount"])


@contextlib.contextmanager
def frozen_api_server(person: Person) -> Iterator[None]:
    """The API server takes connections and answers nothing."""
    port = f"--secure-port={person.node.control.port}".encode()
    (process,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and port in command_line(entry) and b"apiserver" in command_line(entry)[0]
    ]
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def command_line(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


# The end


def leave_nothing(person: Person) -> None:
    """Pods leave nothing behind: no object, and no directory of the kubelet."""
    api = person.node.cluster.api
    objects = ("v1", "Secret"), ("v1", "ConfigMap"), ("v1", "ServiceAccount")
    before = {kind: {each["metadata"]["name"] for each in api.items(*kind, TEAM)} for kind in objects}
    uids = [each["metadata"]["uid"] for each in api.items("v1", "Pod", TEAM)]
    person.node.cluster.kubectl("-n", TEAM, "delete", "deployments,jobs,pods", "--all", "--timeout=3m")
    eventually(lambda: not api.items("v1", "Pod", TEAM), "the pods are gone", timeout=LONG)
    directories = [person.node.control.files / "kubelet" / "pods" / uid for uid in uids]
    eventually(lambda: not any(each.exists() for each in directories), "their directories are gone", timeout=LONG)
    assert {kind: {each["metadata"]["name"] for each in api.items(*kind, TEAM)} for kind in objects} == before
    assert api.items(GROUP, "ServiceIdentity", TEAM), "identities are not the pods'"
