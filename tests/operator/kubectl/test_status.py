from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from keyferry.errors import Reason
from keyferry_operator.kubectl.advice import NEXT, next_step
from keyferry_operator.kubectl.statuses import status_of
from keyferry_operator.names import LEASE, SHARD
from keyferry_operator.report import rfc3339
from tests.operator.kubectl.conftest import GROUP, VIEWER, identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.operator.kubectl.conftest import Ran
    from tests.support.cluster import Cluster

pytestmark = pytest.mark.cluster

TOKEN = "canary-" + secrets.token_hex(8)
HOUR = 3600.0


def fresh(**more: Any) -> dict[str, Any]:
    now = time.time()
    return {
        "observedGeneration": 1,
        "revision": 3,
        "issueTime": rfc3339(now - 60),
        "expirationTime": rfc3339(now + HOUR),
        "renewalTime": rfc3339(now + HOUR / 2),
        "failureCount": 0,
        "binding": {"name": "nightly"},
        "conditions": conditions("Issued", "the token is fresh", ready=True),
        **more,
    }


def conditions(reason: str, message: str, *, ready: bool = False, stalled: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "type": kind,
            "status": str(holds),
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(time.time()),
        }
        for kind, holds in (("Ready", ready), ("Reconciling", False), ("Stalled", stalled))
    ]


def rejected() -> dict[str, Any]:
    return {
        "observedGeneration": 1,
        "failureCount": 1,
        "lastError": {"code": "invalid_grant", "message": "log in again"},
        "failure": {"retry": "NeedsPerson", "cause": "x"},
        "conditions": conditions("ApprovalRequired", "log in again", stalled=True),
    }


def declare(cluster: Cluster, namespace: str, name: str, status: dict[str, Any] | None = None, **spec: Any) -> Any:
    made = cluster.api.apply(identity(name, namespace, **spec))
    if status is not None:
        made = cluster.api.patch(made, {"status": status}, subresource="status")
    return made


def lease(cluster: Cluster, namespace: str, *, age: float, holder: str = "pod-1", name: str = LEASE) -> None:
    renewed = datetime.fromtimestamp(time.time() - age, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    cluster.api.apply(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"renewTime": renewed, **({"holderIdentity": holder} if holder else {})},
        }
    )


def test_a_table_of_a_namespace_and_the_exit_code(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    lease(cluster, people, age=1)
    declare(cluster, people, "nightly", fresh())
    options = ("-n", people, "--operator-namespace", people)
    ran = kubectl_keyferry("status", *options)
    assert (ran.code, ran.err) == (0, "")
    rows = ran.out.splitlines()
    assert rows[0].split()[:6] == ["IDENTITY", "PROVIDER", "GRANT", "STATE", "EXPIRES", "RENEWS"]
    assert rows[1].split()[:4] == ["nightly", "issuer", "ClientCredentials", "Fresh"]
    assert "\x1b" not in ran.out
    declare(cluster, people, "person", rejected())
    ran = kubectl_keyferry("status", *options)
    assert ran.code == 1
    assert ran.out.splitlines()[2].split()[3] == "Stalled"
    everywhere = kubectl_keyferry("status", "-A", "--operator-namespace", people)
    assert f"{people}/nightly" in everywhere.out


def test_names_are_told_in_detail_with_the_next_step_and_events(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    made = declare(cluster, people, "person", rejected())
    cluster.api.create(
        {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "person.1", "namespace": people},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "keyferry.dev/operator",
            "reportingInstance": "pod-1",
            "action": "failed",
            "reason": "ApprovalRequired",
            "type": "Warning",
            "note": "log in again",
            "regarding": {"kind": "ServiceIdentity", "namespace": people, "name": "person", "apiVersion": GROUP}
            | {"uid": made["metadata"]["uid"]},
        }
    )
    ran = kubectl_keyferry("status", "person", "-n", people, "--as", VIEWER)
    assert ran.code == 1
    assert f"{people}/person: Stalled" in ran.out
    assert "Stalled:     True: only a change or a person helps" in ran.out
    assert "put a new refresh token" in ran.out
    assert "Warning  ApprovalRequired: log in again" in ran.out
    assert kubectl_keyferry("status", "nobody", "-n", people).code == 2


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_objects_are_printed_for_programs(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran], form: str
) -> None:
    declare(cluster, people, "nightly", fresh())
    ran = kubectl_keyferry("status", "nightly", "-n", people, "-o", form)
    found = json.loads(ran.out) if form == "json" else yaml.safe_load(ran.out)
    assert found["kind"] == "ServiceIdentityList"
    assert found["items"][0]["status"]["revision"] == 3
    assert "managedFields" not in found["items"][0]["metadata"]


@pytest.mark.parametrize(
    ("age", "holder", "words"),
    [
        (1.0, "pod-1", ""),
        (600.0, "pod-1", "no operator works: the Lease"),
        (600.0, "", "nobody holds the Lease"),
        (None, "", "there is no Lease"),
    ],
)
def test_that_no_operator_works_is_said(
    cluster: Cluster,
    people: str,
    kubectl_keyferry: Callable[..., Ran],
    age: float | None,
    holder: str,
    words: str,
) -> None:
    declare(cluster, people, "nightly", fresh())
    if age is not None:
        lease(cluster, people, age=age, holder=holder)
    ran = kubectl_keyferry("status", "-n", people, "--operator-namespace", people)
    assert ran.code == 0
    assert words in ran.err
    assert bool(words) == bool(ran.err)


def test_the_lease_of_a_shard_tells_as_well(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    declare(cluster, people, "nightly", fresh())
    lease(cluster, people, age=600, holder="")  # from before there were shards
    lease(cluster, people, age=1, name=f"{SHARD}2")
    ran = kubectl_keyferry("status", "-n", people, "--operator-namespace", people)
    assert (ran.code, ran.err) == (0, "")


def test_who_may_not_read_the_lease_is_told_by_what_is_overdue(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    declare(cluster, people, "nightly", fresh())
    options = ("-n", people, "--operator-namespace", "kube-system", "--as", VIEWER)
    assert kubectl_keyferry("status", *options).err == ""
    declare(cluster, people, "nightly", fresh(renewalTime=rfc3339(time.time() - 600)))
    ran = kubectl_keyferry("status", *options)
    assert f"the renewal of {people}/nightly was due" in ran.err
    assert "you may not read its Lease" in ran.err


def test_a_viewer_has_the_rights_of_the_chart_and_is_told_of_those_that_are_missing(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    declare(cluster, people, "nightly", fresh())
    assert kubectl_keyferry("status", "-n", people, "--as", VIEWER).code == 0
    ran = kubectl_keyferry("status", "-n", "default", "--as", VIEWER)
    assert (ran.code, ran.out) == (1, "")
    assert "vera may not list serviceidentities.keyferry.dev in namespace default; the role view" in ran.err
    ran = kubectl_keyferry("status", "-A", "--as", VIEWER)
    assert "in the whole cluster" in ran.err
    assert "name one namespace with -n" in ran.err


def test_no_token_can_be_printed_for_none_is_asked_for(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    declare(cluster, people, "nightly", fresh())
    cluster.api.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "nightly", "namespace": people},
            "stringData": {"token": TOKEN},
        }
    )
    for arguments in (["status"], ["status", "nightly"], ["status", "-o", "yaml"], ["status", "-o", "wide"]):
        ran = kubectl_keyferry(*arguments, "-n", people)
        assert TOKEN not in ran.out + ran.err


def test_a_status_of_a_newer_operator_is_shown_as_far_as_it_is_understood(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    status = fresh() | {"conditions": conditions("SomethingNew", "\x1b[31mtold in words", ready=True)}
    declare(cluster, people, "nightly", status)
    ran = kubectl_keyferry("status", "nightly", "-n", people)
    assert ran.code == 0
    assert "told in words" in ran.out
    assert "\x1b" not in ran.out


def test_every_reason_has_a_next_step() -> None:
    assert set(NEXT) == set(Reason)


def test_who_waits_for_a_person_is_told_the_command_that_shows_where() -> None:
    seeded, asked = (
        status_of(
            {
                "metadata": {"name": "person", "namespace": "batch"},
                "spec": {"grant": {"type": grant}},
                "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "ApprovalRequired"}]},
            }
        )
        for grant in ("RefreshToken", "LabArchivesCode")
    )
    assert "new refresh token" in next_step(seeded, 0.0)
    assert "kubectl keyferry login person -n batch" in next_step(asked, 0.0)
