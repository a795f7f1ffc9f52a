"""That the proxy before the API server is a faithful one, and that what goes wrong is what was planned."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import kopf
import pytest

from keyferry_operator.client import SECRETS, KubeClient
from keyferry_operator.errors import ApiError
from tests.support import kube_config
from tests.support.kube_api import Api
from tests.support.kube_api import ApiError as Refusal
from tests.support.kube_faults import ApiFault, ApiFaultKind, ApiFaultPlan, ApiRequest, lost, refused
from tests.support.kube_fixtures import cluster
from tests.support.kube_proxy import KubeProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

__all__ = ["cluster"]

pytestmark = [
    pytest.mark.cluster,
    # Connections that were left to themselves on purpose are closed when the garbage collector finds them.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PATIENCE = 180.0


@pytest.fixture(scope="module")
def team(cluster: Cluster) -> Iterator[str]:
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def namespace(cluster: Cluster, team: str) -> str:
    """Return a namespace without Secrets: to make a new one for each test takes longer than the tests."""
    cluster.api.delete_all("v1", "Secret", team)
    return team


@pytest.fixture
def proxy(cluster: Cluster, tmp_path: Path) -> Iterator[KubeProxy]:
    with KubeProxy(cluster.access, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: KubeProxy) -> AsyncIterator[KubeClient]:
    access = proxy.access
    async with KubeClient(kopf.ConnectionInfo(server=access.url, ca_data=access.ca, token=access.token)) as client:
        yield client


def secret(namespace: str, name: str = "a", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {"of": "tests", **labels}},
        "stringData": {"key": "value"},
    }


async def listed(client: KubeClient, namespace: str) -> list[str]:
    return sorted([item["metadata"]["name"] async for item in client.pages(SECRETS, namespace, labels="of=tests")])


def test_kubectl_sees_no_difference(cluster: Cluster, proxy: KubeProxy, namespace: str) -> None:
    cluster.api.create(secret(namespace))
    straight = cluster.kubectl("get", "secrets", "-n", namespace, "-o", "yaml")
    assert cluster.kubectl("get", "secrets", "-n", namespace, "-o", "yaml", kubeconfig=proxy.kubeconfig) == straight
    cluster.kubectl("label", "secret", "a", "-n", namespace, "by=kubectl", kubeconfig=proxy.kubeconfig)
    found = cluster.api.get("v1", "Secret", "a", namespace)
    assert found["metadata"]["labels"]["by"] == "kubectl"
    assert [request.verb for request in proxy.asked(resource="secrets", name="a")][-1] == "patch"
    answer = cluster.try_run("kubectl", "get", "secret", "b", "-n", namespace, kubeconfig=proxy.kubeconfig)
    assert "NotFound" in answer.stderr


def test_a_user_stays_who_they_are(cluster: Cluster, proxy: KubeProxy, namespace: str) -> None:
    token = cluster.api.service_account_token(namespace, "default")
    access = kube_config.read(proxy.kubeconfig_for(token, "nobody"))
    with pytest.raises(Refusal) as refusal:
        Api(access.url, access.context(), access.token).items("v1", "Secret", namespace)
    assert refusal.value.code == 403
    assert f"system:serviceaccount:{namespace}:default" in refusal.value.message


async def test_our_client_reads_writes_and_watches(client: KubeClient, namespace: str) -> None:
    ((version, found),) = [page async for page in client.listing(SECRETS, namespace, labels="of=tests")]
    assert found == []
    events = client.watch(SECRETS, namespace, labels="of=tests", version=version, seconds=60)
    made = await client.create(SECRETS, namespace, secret(namespace))
    async with asyncio.timeout(PATIENCE):
        assert (await anext(events))["object"]["metadata"]["uid"] == made["metadata"]["uid"]
        body = {**made, "data": {"key": "bmV3"}}
        await client.replace(SECRETS, namespace, body)
        assert (await anext(events))["type"] == "MODIFIED"
        await client.delete(SECRETS, namespace, "a")
        assert (await anext(events))["type"] == "DELETED"
    await events.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [409, 410, 429, 500, 503, 504])
async def test_an_answer_in_place_of_the_request(
    client: KubeClient, proxy: KubeProxy, namespace: str, status: int
) -> None:
    proxy.add(refused(status, verb="create", resource="secrets", retry_after=1))
    with pytest.raises(ApiError) as error:
        await client.create(SECRETS, namespace, secret(namespace))
    assert error.value.status == status
    assert await listed(client, namespace) == []
    assert proxy.faults.left() == []


@pytest.mark.parametrize("kind", [ApiFaultKind.RESET_AFTER, ApiFaultKind.ANSWER_AFTER])
async def test_what_was_asked_is_done_and_the_answer_lost(
    client: KubeClient, proxy: KubeProxy, namespace: str, kind: ApiFaultKind
) -> None:
    seen: list[tuple[str, str, bool]] = []
    proxy.add(
        ApiFault(
            kind,
            verb="create",
            namespace=namespace,
            name="a",
            status=504,
            hook=lambda request: seen.append((request.verb, request.name, request.forwarded)),
        )
    )
    with pytest.raises(ApiError):
        await client.create(SECRETS, namespace, secret(namespace))
    assert seen == [("create", "a", True)]
    assert await listed(client, namespace) == ["a"]


async def test_what_is_reset_before_does_not_happen(client: KubeClient, proxy: KubeProxy, namespace: str) -> None:
    proxy.add(ApiFault(ApiFaultKind.RESET_BEFORE, verb="create"))
    with pytest.raises(ApiError) as error:
        await client.create(SECRETS, namespace, secret(namespace))
    assert error.value.status == 0
    assert await listed(client, namespace) == []


async def test_a_client_that_gives_up_has_its_write_done_all_the_same(
    client: KubeClient, proxy: KubeProxy, namespace: str
) -> None:
    done = threading.Event()
    proxy.add(ApiFault(ApiFaultKind.STALL_AFTER, verb="create", hook=lambda _request: done.set()))
    writing = asyncio.create_task(client.create(SECRETS, namespace, secret(namespace)))
    assert await asyncio.to_thread(done.wait, PATIENCE)
    writing.cancel()
    assert await listed(client, namespace) == ["a"]


async def test_an_answer_that_is_cut_short(client: KubeClient, proxy: KubeProxy, namespace: str) -> None:
    made = await client.create(SECRETS, namespace, secret(namespace))
    proxy.add(ApiFault(ApiFaultKind.GARBAGE, verb="get", name="a"))
    assert await client.get(SECRETS, namespace, "a") == made
    assert [(request.status, request.faults) for request in proxy.asked(verb="get", name="a")] == [
        (200, (ApiFaultKind.GARBAGE,)),
        (200, ()),
    ]


async def test_a_list_of_yesterday(client: KubeClient, proxy: KubeProxy, namespace: str) -> None:
    await client.create(SECRETS, namespace, secret(namespace, "a"))
    version = await asyncio.to_thread(proxy.version)
    await client.create(SECRETS, namespace, secret(namespace, "b"))
    await client.delete(SECRETS, namespace, "a")
    proxy.add(ApiFault(ApiFaultKind.STALE, resource="secrets", selector="of=*", version=version))
    assert await listed(client, namespace) == ["a"]
    assert await listed(client, namespace) == ["b"]


async def _watched(client: KubeClient, namespace: str, names: list[str]) -> list[str]:
    """Make Secrets and return what a watch tells of them until it ends, in short."""
    ((version, _),) = [page async for page in client.listing(SECRETS, namespace, labels="of=tests")]
    told: list[str] = []

    async def follow() -> None:
        async for event in client.watch(SECRETS, namespace, labels="of=tests", version=version, seconds=60):
            told.append(  # noqa: PERF401 - it is read meanwhile
                f"{event['type']} {event['object'].get('metadata', {}).get('name', '')}".strip()
            )

    watching = asyncio.create_task(follow())
    for name in names:
        await client.create(SECRETS, namespace, secret(namespace, name))
    try:
        async with asyncio.timeout(3):
            await asyncio.shield(watching)
    except ApiError:
        told.append("broken")
    except TimeoutError:
        watching.cancel()
        told.append("open")
    return told


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (ApiFaultKind.GONE, ["ADDED a", "ERROR"]),
        (ApiFaultKind.CUT, ["ADDED a"]),
        (ApiFaultKind.BREAK, ["ADDED a", "broken"]),
        (ApiFaultKind.SILENT, ["ADDED a", "open"]),
        (ApiFaultKind.MUFFLE, ["ADDED a", "ADDED c", "open"]),
    ],
)
async def test_a_watch_that_fails(
    client: KubeClient, proxy: KubeProxy, namespace: str, kind: ApiFaultKind, told: list[str]
) -> None:
    proxy.add(ApiFault(kind, resource="secrets", namespace=namespace, skip_events=1))
    assert await _watched(client, namespace, ["a", "b", "c"]) == told


async def test_an_api_server_that_is_away_and_comes_back(client: KubeClient, proxy: KubeProxy, namespace: str) -> None:
    watching = asyncio.create_task(_watched(client, namespace, []))
    assert await listed(client, namespace) == []
    await asyncio.sleep(0.5)
    await asyncio.to_thread(proxy.stop)
    assert await watching == ["broken"]
    with pytest.raises(ApiError) as error:
        await client.create(SECRETS, namespace, secret(namespace))
    assert error.value.status == 0
    await asyncio.to_thread(proxy.start)
    await client.create(SECRETS, namespace, secret(namespace))
    assert await listed(client, namespace) == ["a"]


async def test_many_at_once(client: KubeClient, proxy: KubeProxy, namespace: str) -> None:
    proxy.add(ApiFault(ApiFaultKind.DELAY, verb="create", delay=0.2, times=None))
    names = [f"s{number:02}" for number in range(50)]
    await asyncio.gather(*(client.create(SECRETS, namespace, secret(namespace, name)) for name in names))
    assert await listed(client, namespace) == names
    assert len(proxy.asked(verb="create", resource="secrets")) == 50


def test_faults_are_taken_in_their_turn() -> None:
    plan = ApiFaultPlan()
    first, second = plan.add(
        refused(500, verb="list", resource="secrets", skip=1, times=2), lost(verb=("create", "update"), name="a*")
    )
    listing = ApiRequest(0.0, "GET", "/", {}, "list", resource="secrets")
    update = ApiRequest(0.0, "PUT", "/", {}, "update", resource="secrets", name="abc")
    assert [len(plan.take(listing)) for _ in range(4)] == [0, 1, 1, 0]
    assert [fault.kind for fault in plan.take(update)] == [ApiFaultKind.RESET_AFTER]
    assert plan.take(update) == []
    assert (plan.used(first), plan.used(second)) == (2, 1)
