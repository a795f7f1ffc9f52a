"""Pods that mount a Secret are annotated when it is renewed, where that is allowed. No kubelet is needed for that."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import kopf
import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.model import ObjectKey
from keyferry_operator.client import KubeClient
from keyferry_operator.touch import Pace, PodToucher
from tests.support.kube_api import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyferry.engine import Event
    from tests.operator.live.conftest import Field
    from tests.support.kube_audit import AuditEvent

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"
KEY = "keyferry.dev/touched"
IDENTITY = ObjectKey("", "nightly")


def _bot(field: Field, **target: Any) -> None:
    field.issuer.clients.add(
        Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=(Grant.CLIENT_CREDENTIALS,))
    )
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly", target=target))


def _mounts(secret: str) -> dict[str, Any]:
    return {"name": secret, "secret": {"secretName": secret}}


def _projects(secret: str) -> dict[str, Any]:
    return {"name": secret, "projected": {"sources": [{"secret": {"name": secret}}]}}


def _pod(field: Field, name: str, *volumes: dict[str, Any], node: str = "one", phase: str = "Running") -> None:
    pod = field.cluster.api.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": field.namespace},
            "spec": {
                "containers": [{"name": "main", "image": "localhost/none:1"}],
                "volumes": list(volumes),
                **({"nodeName": node} if node else {}),
            },
        }
    )
    field.cluster.api.patch(pod, {"status": {"phase": phase}}, subresource="status")


def _touched(field: Field) -> dict[str, str]:
    pods = field.cluster.api.items("v1", "Pod", field.namespace)
    values = {pod["metadata"]["name"]: (pod["metadata"].get("annotations") or {}).get(KEY) for pod in pods}
    return {name: value for name, value in values.items() if value is not None}


def _version(field: Field, secret: str) -> str:
    return f"{secret}.{(field.target(secret) or {})['metadata']['resourceVersion']}"


@contextlib.asynccontextmanager
async def _toucher(
    field: Field, told: list[Event], account: str = "", pace: Pace | None = None
) -> AsyncIterator[PodToucher]:
    """Run a toucher with all rights, or with those of a service account."""
    login = field.login()
    if account:
        token = field.cluster.api.service_account_token(field.namespace, account)
        login = kopf.ConnectionInfo(server=login.server, ca_path=login.ca_path, ca_data=login.ca_data, token=token)
    async with KubeClient(login) as client:
        toucher = PodToucher(client, enabled=True, tell=told.append, pace=pace or Pace())
        running = asyncio.create_task(toucher.run())
        try:
            yield toucher
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _touched_after(field: Field, revision: int) -> str:
    """Wait until the right pods know of a renewal, and return what they were told."""
    await field.until(lambda: field.status("nightly").get("revision") == revision)
    version = _version(field, "nightly")
    await field.until(lambda: _touched(field) == dict.fromkeys(("direct", "projected", "starting"), version))
    return version


async def test_pods_that_mount_the_secret_are_touched_at_each_renewal(field: Field) -> None:
    _bot(field, touchPods=True)
    _pod(field, "direct", _mounts("nightly"))
    _pod(field, "projected", _projects("nightly"))
    _pod(field, "starting", _mounts("nightly"), phase="Pending")
    _pod(field, "other", _mounts("hourly"))
    _pod(field, "done", _mounts("nightly"), phase="Succeeded")
    _pod(field, "nowhere", _mounts("nightly"), node="", phase="Pending")
    async with field.operator(touch_pods=True) as operator:
        first = await _touched_after(field, 1)
        operator.engine.renew(ObjectKey(field.namespace, "nightly"))
        assert await _touched_after(field, 2) != first


async def test_where_it_is_not_allowed_an_event_says_so_and_the_token_is_published(field: Field) -> None:
    _bot(field, touchPods=True)
    _pod(field, "direct", _mounts("nightly"))

    def refusals() -> list[dict[str, Any]]:
        found = field.cluster.api.items("events.k8s.io/v1", "Event", field.namespace)
        return [event for event in found if event.get("action") == "pods_not_touched"]

    async with field.operator() as operator:
        await field.until(refusals)
        (event,) = refusals()
        assert (event["type"], event["regarding"]["name"]) == ("Warning", "nightly")
        assert "touchPods.enabled" in event["note"]
        assert field.condition("nightly")["status"] == "True"
        operator.engine.renew(ObjectKey(field.namespace, "nightly"))
        await field.until(lambda: field.status("nightly").get("revision") == 2)
    assert len(refusals()) == 1, "it is not told again with each renewal"
    assert _touched(field) == {}


async def test_nobody_is_touched_who_did_not_ask(field: Field) -> None:
    _bot(field)
    _pod(field, "direct", _mounts("nightly"))
    async with field.operator(touch_pods=True):
        await field.until(lambda: field.condition("nightly").get("status") == "True")
        field.apply(field.identity("hourly", target={"touchPods": True}))
        _pod(field, "both", _mounts("nightly"), _mounts("hourly"))
        await field.until(lambda: _touched(field))
    assert _touched(field) == {"both": _version(field, "hourly")}


async def test_without_the_right_it_is_told_and_goes_on(field: Field) -> None:
    _pod(field, "direct", _mounts("nightly"))
    told: list[Event] = []
    async with _toucher(field, told, account="default") as toucher:
        toucher.written(IDENTITY, ObjectKey(field.namespace, "nightly"), "1")
        await field.until(lambda: told)
        toucher.written(ObjectKey("", "hourly"), ObjectKey(field.namespace, "hourly"), "1")
        await field.until(lambda: len(told) == 2)
    assert [event.key for event in told] == [IDENTITY, ObjectKey("", "hourly")]
    assert all("no right to list and patch pods" in event.message for event in told)
    assert _touched(field) == {}


async def test_secrets_of_one_namespace_are_told_together_and_not_to_more_pods_than_allowed(field: Field) -> None:
    for name in ("a", "b", "c"):
        _pod(field, name, _mounts("nightly"), _projects("hourly"))
    _allow(field, "default")
    mark = field.cluster.audit.mark()
    told: list[Event] = []
    async with _toucher(field, told, account="default", pace=Pace(most_pods=2)) as toucher:
        for secret in ("nightly", "hourly"):
            toucher.written(IDENTITY, ObjectKey(field.namespace, secret), "7")
        await field.until(lambda: len(_touched(field)) == 2)
        toucher.written(IDENTITY, ObjectKey(field.namespace, "unrelated"), "8")
        await field.until(lambda: len(_requests(field, mark, "list")) == 2)
    assert set(_touched(field).values()) == {"hourly.7,nightly.7"}
    await field.until(lambda: len(_requests(field, mark, "patch")) == 2)
    assert told == []


def _allow(field: Field, account: str) -> None:
    """Let a service account do everything in its namespace."""
    api, group = field.cluster.api, "rbac.authorization.k8s.io"
    api.create(
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": account, "namespace": field.namespace},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": field.namespace}],
        }
    )
    user = f"system:serviceaccount:{field.namespace}:{account}"
    eventually(lambda: api.may(user, "patch", "pods", field.namespace), "the role is in force")


def _requests(field: Field, mark: int, verb: str) -> list[AuditEvent]:
    found = field.cluster.audit.events(mark, namespace=field.namespace, resource="pods")
    return [event for event in found if event.verb == verb and event.user.startswith("system:serviceaccount:")]


async def test_a_pod_that_went_meanwhile_is_no_failure(field: Field) -> None:
    _pod(field, "a", _mounts("nightly"))
    _pod(field, "b", _mounts("nightly"))
    told: list[Event] = []
    # So slow that the second pod has gone before its turn.
    async with _toucher(field, told, pace=Pace(rate=1.0)) as toucher:
        toucher.written(IDENTITY, ObjectKey(field.namespace, "nightly"), "1")
        await field.until(lambda: _touched(field))
        gone = field.cluster.api.get("v1", "Pod", "b", field.namespace)
        field.cluster.api.delete(gone, gracePeriodSeconds=0)
        toucher.written(IDENTITY, ObjectKey(field.namespace, "nightly"), "2")
        await field.until(lambda: _touched(field) == {"a": "nightly.2"})
    assert told == []
