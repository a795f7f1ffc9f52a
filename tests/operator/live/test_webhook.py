"""The chart's webhook on a real API server, answered by the operator: pods come in with a sidecar, or not at all."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

from keyferry_operator.api.broker import BrokerSettings
from keyferry_operator.installation import Installation, SidecarSettings
from tests.operator.injection.samples import asking, container, pod, variables
from tests.support.kube_api import ApiError, eventually

if TYPE_CHECKING:
    from tests.chart.conftest import Helm
    from tests.operator.live.conftest import Field

pytestmark = pytest.mark.cluster

SIDECARS = Installation(sidecar=SidecarSettings(image="keyferry/keyferry:1"))


def shipped(field: Field, helm: Helm, name: str, port: int) -> dict[str, Any]:
    """The chart's configuration for the test's namespace alone; a URL replaces the Service, which has no route."""
    selected = {"matchLabels": {"kubernetes.io/metadata.name": field.namespace}}
    values = {"fullnameOverride": name, "webhook": {"namespaceSelector": selected}}
    found = helm.template(values, home=field.home).one("MutatingWebhookConfiguration")
    found["webhooks"][0]["clientConfig"] = {"url": f"https://127.0.0.1:{port}/inject"}
    return found


def new_pod(field: Field, name: str, annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
    body = pod(annotations, **spec)
    body["metadata"] = {"name": name, "namespace": field.namespace, "annotations": annotations}
    return body


async def test_pods_come_in_with_a_sidecar_or_not_at_all(field: Field, helm: Helm) -> None:
    api, name = field.cluster.api, f"kf-{field.namespace}"[:40].rstrip("-")
    field.apply(field.provider(), field.secret("bot", secret="bot-secret-1"))
    files = [{"format": "Token", "name": "bearer"}]
    field.apply(field.identity("nightly", target={"type": "None", "files": files}))
    broker = BrokerSettings("127.0.0.1", 0, hosts=("127.0.0.1",))
    before = new_pod(field, "before", asking())
    api.create(before)
    async with field.operator(broker=broker, webhook=name, installation=SIDECARS, count_pods=True) as operator:
        assert operator.broker is not None
        assert operator.webhook is not None
        server = operator.broker.server
        await field.until(lambda: server.listening)
        configuration = shipped(field, helm, name, int(server.url.rpartition(":")[2]))
        api.apply(configuration)
        try:
            operator.webhook.trust(operator.broker.certificates.bundle)  # now, not at the next look
            await field.until(lambda: "caBundle" in client_of(field, name))
            written = base64.b64decode(client_of(field, name)["caBundle"]).decode()
            assert written == operator.broker.certificates.bundle
            overlooked = operator.webhook.overlooked
            assert overlooked is not None
            # In a thread, for the operator answers in this one.
            await asyncio.to_thread(judge, field)
            known = operator.webhook.outcomes
            assert known["injected"] >= 1
            assert known["refused"] >= 1
            assert known["unchanged"] == 0, "nobody asked about the pod that is plain"
            await overlooked.count()
            assert overlooked.pods is not None
            assert overlooked.pods[field.namespace] == 1, "the one that was there before"
            said = "\n".join(operator.webhook.series())
            assert f'keyferry_pods_not_injected{{namespace="{field.namespace}"}} 1' in said
            assert 'keyferry_injections_total{outcome="unchanged"} 0' in said
        finally:
            await asyncio.to_thread(api.delete, configuration)


def client_of(field: Field, name: str) -> dict[str, Any]:
    found = field.cluster.api.get("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", name)
    return dict(found["webhooks"][0]["clientConfig"])


def judge(field: Field) -> None:
    """Create pods: an annotated one, a plain one, and one whose annotation cannot be."""
    api = field.cluster.api
    created = eventually(lambda: attempt(field, new_pod(field, "app", asking())), "the API server asks about pods")
    assert container(created, "keyferry")["restartPolicy"] == "Always"
    assert variables(created)["BEARER_TOKEN_FILE"] == "/var/run/keyferry/nightly/bearer"
    plain = api.create(new_pod(field, "plain", {"example.org/x": "y"}))
    assert "initContainers" not in plain["spec"]
    said = eventually(lambda: refusal(field, new_pod(field, "wrong", asking(mode="Sidekick"))), "it is refused")
    assert "keyferry.dev/mode: 'Sidekick' is none of Sidecar, Secret; did you mean Sidecar?" in said
    fallen = eventually(
        lambda: attempt(field, new_pod(field, "fallback", asking(inject="nightly,other", fallback="other"))),
        "a pod that falls back on a Secret",
    )
    assert "--fallback=other=/var/run/secrets/keyferry.dev/other" in container(fallen, "keyferry")["args"]
    no_secret = eventually(lambda: refusal(field, new_pod(field, "none", asking(fallback="nightly"))), "no Secret")
    assert "keyferry.dev/fallback names nightly, which publishes no Secret (spec.target.type is None)" in no_secret


def refusal(field: Field, body: dict[str, Any]) -> str:
    """Why a pod may not come in; empty where a busy machine did not get to answer in time."""
    with pytest.raises(ApiError) as refused:
        field.cluster.api.create(body)
    return "" if "failed calling webhook" in str(refused.value) else str(refused.value)


def attempt(field: Field, body: dict[str, Any]) -> dict[str, Any] | None:
    """Create a pod; None, and no pod, while the API server has not taken in the configuration yet."""
    try:
        found = field.cluster.api.create(body)
    except ApiError as error:
        if "failed calling webhook" in str(error):
            return None
        raise
    if "initContainers" in found["spec"]:
        return found
    field.cluster.api.delete(found)
    return None
