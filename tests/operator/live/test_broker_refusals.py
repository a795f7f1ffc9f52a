"""Who gets nothing of the broker API, on a real API server: always the same answer, which says nothing of why."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from aiohttp.test_utils import make_mocked_request

from keyferry_operator.api.answers import Denied
from keyferry_operator.api.callers import Caller, Callers
from keyferry_operator.api.jwks import ClusterKeys
from keyferry_operator.api.pods import LivePods
from keyferry_operator.client import KubeClient
from tests.operator.live.pods import LOOPBACK, Pod, prepare, serving

if TYPE_CHECKING:
    import httpx

    from tests.operator.live.conftest import Field

pytestmark = pytest.mark.cluster

CONSUMERS = [{"serviceAccountName": "ingest"}]


class Shape:
    """Every refusal of one status is the same answer, and says nothing of whoever asks or what is asked for."""

    def __init__(self, *secrets: str) -> None:
        self._secrets = secrets
        self._seen: dict[int, tuple[Any, list[str]]] = {}

    def __call__(self, answered: httpx.Response, status: int) -> None:
        headers = sorted(name for name in answered.headers if name not in {"date", "content-length"})
        assert answered.status_code == status, answered.text
        assert (answered.json(), headers) == self._seen.setdefault(status, (answered.json(), headers))
        for secret in self._secrets:
            assert secret not in answered.text + str(answered.headers)
        assert ("www-authenticate" in headers) == (status == 401)


def signed(field: Field, token: str, **changes: Any) -> str:
    """Return a token with other claims, signed with the cluster's own key as that one is."""
    control = field.cluster.control
    if control is None:
        pytest.skip("the key of that cluster is not ours to use")
    key = (control.files / "service-account.key").read_text()
    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    return jwt.encode({**claims, **changes}, key, algorithm="RS256", headers={"kid": header["kid"]})


async def test_a_token_that_is_not_a_living_pods(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field) as site:
        pod = Pod.create(field, "ingest-1")
        good = pod.token()
        await field.until_ready("nightly")
        refused = Shape(good, field.token("nightly"), field.namespace, "nightly", "ingest")
        assert (await site.get(good)).status_code == 200
        assert (await site.get(signed(field, good))).status_code == 200, "or what follows would show nothing"
        now = int(time.time())
        private = jwt.decode(good, options={"verify_signature": False})["kubernetes.io"]
        metadata = {"name": "another", "namespace": field.namespace}
        other = field.cluster.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        another = {"name": "another", "uid": other["metadata"]["uid"]}
        tokens: dict[str, str | None] = {
            "none": None,
            "no token": "x",
            "of the operator": field.cluster.api.service_account_token(field.namespace, "ingest"),
            "of another audience": pod.token(audience="https://elsewhere.example.org"),
            "bound to no pod": pod.token(bound=False),
            "expired": signed(field, good, exp=now - 60, iat=now - 600, nbf=now - 600),
            "not yet good": signed(field, good, nbf=now + 600),
            "without an end": signed(field, good, exp=None),
            "of another issuer": signed(field, good, iss="https://elsewhere.example.org"),
            "of another account by its name": signed(field, good, sub="system:serviceaccount:kube-system:default"),
            "of another account than its pod's": signed(
                field,
                good,
                sub=f"system:serviceaccount:{field.namespace}:another",
                **{"kubernetes.io": {**private, "serviceaccount": another}},
            ),
            "of no account": signed(field, good, **{"kubernetes.io": {**private, "serviceaccount": {}}}),
            "of another pod by its uid": signed(
                field, good, **{"kubernetes.io": {**private, "pod": {**private["pod"], "uid": "0-0-0"}}}
            ),
            "of a pod that never was": signed(
                field, good, **{"kubernetes.io": {**private, "pod": {"name": "never", "uid": "0-0-0"}}}
            ),
            "with nonsense in it": signed(field, good, **{"kubernetes.io": [1, {"x": []}]}),
            "torn": good[:-8],
            "huge": "x" * 9000,
        }
        for what, token in tokens.items():
            answered = await site.get(token)
            assert answered.status_code == 401, what
            refused(answered, 401)
        for value in ("Basic eDp5", "Bearer", f"bearer  {good} {good}", good):
            answered = await site.client.get(site.path(), headers={"Authorization": value})
            refused(answered, 401)
        twice = [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")]
        refused(await site.client.get(site.path(), headers=twice), 401)


async def test_what_is_not_for_the_caller_is_as_if_it_were_not_there(field: Field) -> None:
    prepare(
        field,
        field.identity("nightly", consumers=CONSUMERS),
        field.identity("closed"),
        field.identity("chained", consumers=[{"identityName": "nightly"}]),
        field.identity("of-others", consumers=[{"serviceAccountName": "somebody-else"}]),
    )
    with field.cluster.namespace("elsewhere") as elsewhere:
        async with serving(field) as site:
            await field.until_ready("nightly", "closed", "chained", "of-others")
            refused = Shape(field.namespace, elsewhere, "nightly", "closed", "others", field.token("nightly"))
            everything = "nightly,closed,chained,of-others,never"
            pod = Pod.create(field, "ingest-1", inject=everything).token()
            assert (await site.get(pod)).status_code == 200
            for name in ("closed", "chained", "of-others", "never"):
                refused(await site.get(pod, name), 404)
                refused(await site.get(pod, name, wait=55, minimum="1h"), 404)
                refused(await site.post(pod, "labarchives/signature", {"method": "x"}, name), 404)
            refused(await site.get(pod, namespace=elsewhere), 404)
            refused(await site.get(pod, namespace="never"), 404)
            # The right account, in a pod that does not ask for it; of another account; of another namespace.
            refused(await site.get(Pod.create(field, "bare", inject=None).token()), 404)
            refused(await site.get(Pod.create(field, "others", inject="closed,nightly-2").token()), 404)
            refused(await site.get(Pod.create(field, "foreign", account="default").token()), 404)
            refused(await site.get(Pod.create(field, "away", namespace=elsewhere).token()), 404)


async def test_a_pod_that_ended_and_an_account_made_again(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    api = field.cluster.api
    async with serving(field) as site:
        await field.until_ready("nightly")
        refused = Shape(field.token("nightly"))
        deleted, done, lives = (Pod.create(field, f"ingest-{number}") for number in range(3))
        tokens = [pod.token() for pod in (deleted, done, lives)]
        for token in tokens:
            assert (await site.get(token)).status_code == 200

        async def until_refused(token: str) -> None:
            async with asyncio.timeout(120):  # what was read is believed for ten seconds
                while (answered := await site.get(token)).status_code == 200:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(1)
            refused(answered, 401)

        deleted.delete()
        Pod.create(field, "ingest-0")
        done.status(phase="Succeeded")
        await until_refused(tokens[0])
        await until_refused(tokens[1])
        assert (await site.get(tokens[2])).status_code == 200
        account = api.get("v1", "ServiceAccount", "ingest", field.namespace)
        api.delete(account)
        metadata = {"name": "ingest", "namespace": field.namespace}
        api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        await until_refused(tokens[2])


async def test_a_token_that_another_pod_presents(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field, replace(LOOPBACK, check_address=True)) as site:
        await field.until_ready("nightly")
        here, away = Pod.create(field, "here"), Pod.create(field, "away")
        here.status(podIPs=[{"ip": "127.0.0.1"}], podIP="127.0.0.1")
        away.status(podIPs=[{"ip": "10.1.2.3"}], podIP="10.1.2.3")
        assert (await site.get(here.token())).status_code == 200
        assert (await site.get(away.token())).status_code == 401


async def test_without_the_clusters_keys_the_api_server_is_asked(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    nowhere = replace(field.login(), server="https://127.0.0.1:1")

    async with KubeClient(field.login()) as client, KubeClient(nowhere) as away:
        callers = Callers(client, ClusterKeys(away), LivePods(client))
        pod = Pod.create(field, "ingest-1")
        good = pod.token()

        async def status(token: str) -> int:
            request = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {token}"})
            try:
                found = await callers.identify(request)
            except Denied as denied:
                return denied.problem.status
            metadata = pod.document["metadata"]
            uid = field.cluster.api.get("v1", "ServiceAccount", "ingest", field.namespace)["metadata"]["uid"]
            assert found == Caller(field.namespace, "ingest", uid, "ingest-1", metadata["uid"])
            return 200

        assert await status(good) == 200
        assert await status(pod.token(audience="https://elsewhere.example.org")) == 401
        assert await status(pod.token(bound=False)) == 401
        assert await status(good[:-8] + "AAAAAAAA") == 401
        forged = jwt.encode(
            jwt.decode(good, options={"verify_signature": False}), "x" * 64, algorithm="HS256", headers={"kid": "x"}
        )
        assert await status(forged) == 401
