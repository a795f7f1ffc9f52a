"""Each right of the chart is taken away by itself: the operator goes on, says which it lacks, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from keyferry_operator.names import LEASE
from tests.chart.rights import Place, Right, needed
from tests.operator.live.conftest import GROUP
from tests.operator.live.test_credentials import SECRET, account, add_bot, by_refresh_token
from tests.support.pki import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.chart.conftest import Helm
    from tests.operator.live.conftest import Field

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROGRAM = "import sys; from keyferry_operator.command import app; app(args=sys.argv[1:])"
ACCOUNT = "kf-keyferry"
LIFETIME = 30.0
"""Seconds; so that a renewal comes by itself, and with it the writes over what is there."""
PLACES = {
    Place.WATCHED: "team",
    Place.TOKENS: "team",
    Place.PODS: "team",
    Place.PRIVATE: "home",
    Place.ORIGIN: "kube-system",
}
AT_THE_END = {"delete"}
"""Verbs that are asked for when an identity goes."""


@dataclass
class Installation:
    """The chart's rights in two namespaces, one of them missing, and an operator that has no others."""

    field: Field
    roles: list[dict[str, Any]]

    def grant(self, without: Right | None = None, place: str = "") -> None:
        """Apply the roles, but for one right in one place."""
        for role in copy.deepcopy(self.roles):
            if without is not None and role["metadata"]["namespace"] == self.namespace(place):
                for rule in role["rules"]:
                    if without.group in rule["apiGroups"] and without.resource in rule["resources"]:
                        rest = [resource for resource in rule["resources"] if resource != without.resource]
                        verbs = [verb for verb in rule["verbs"] if verb != without.verb]
                        role["rules"] += [{**rule, "resources": rest}] if rest else []
                        rule |= {"resources": [without.resource], "verbs": verbs or ["deletecollection"]}
            self.field.cluster.api.apply(role, manager="chart")

    def namespace(self, place: str) -> str:
        return {"team": self.field.namespace, "home": self.field.home}.get(place, place)


class Process:
    """A `keyferry operator` that logs in as the ServiceAccount."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    def text(self) -> str:
        return self._log.read_text()

    def says(self, *phrases: str) -> bool:
        """Tell whether one of the phrases is in its log, in which every failure of an identity is, too."""
        text = self.text()
        return any(phrase in text for phrase in phrases)

    @property
    def runs(self) -> bool:
        return self._process.returncode is None


@contextlib.asynccontextmanager
async def started(field: Field, directory: Path) -> AsyncIterator[Process]:
    token = field.cluster.api.service_account_token(field.home, ACCOUNT)
    kubeconfig = field.cluster.kubeconfig_for(token, directory / "kubeconfig", field.home)
    log = directory / "operator.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM),
            *("--namespace", field.home, "--instance", "one", "--watch-namespace", field.namespace),
            *(
                "--allow-host",
                "127.0.0.1",
                "--escrow",
                str(directory / "escrow"),
                "--service-account-tokens",
                "--touch-pods",
            ),
            stdout=output,
            stderr=output,
            env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        )
    try:
        yield Process(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def installation(field: Field, helm: Helm) -> Iterator[Installation]:
    add_bot(field.issuer)
    field.issuer.service.settings.access_lifetime = LIFETIME
    values = {
        "watch": {"namespaces": [field.namespace]},
        "serviceAccountTokens": {"enabled": True},
        "touchPods": {"enabled": True},
        "fullnameOverride": ACCOUNT,
    }
    rendered = helm.template(values, home=field.home)
    api = field.cluster.api
    for document in [*rendered.of("RoleBinding"), rendered.one("ServiceAccount")]:
        api.apply(document, manager="chart")
    yield Installation(field, rendered.of("Role"))
    for document in [*rendered.of("RoleBinding"), *rendered.of("Role")]:
        if document["metadata"]["namespace"] == "kube-system":
            api.delete(document)


NAMES = ("machine", "person", "worker")
"""The identities that stay."""


def declare(field: Field) -> None:
    """Declare identities that need every right between them."""
    trusting = field.provider("trusting")
    trusting["spec"]["tls"] = {"caFrom": {"configMapKeyRef": {"name": "authority", "key": "ca.crt"}}}
    issuer = field.issuer.issuer
    worker = {"serviceAccountToken": {"name": "worker", "audience": issuer}}
    asserted = {"authentication": "ClientAssertion", "assertionFrom": worker}
    authority = Authority.create().certificate
    field.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authority"}, "data": {"ca.crt": authority}},
        account("worker", field.host),
        field.secret("bot", secret=SECRET),
        field.secret("seed", token=field.issuer.seed_refresh_token("bot", "ada")),
        field.secret("other-seed", token=field.issuer.seed_refresh_token("bot", "ada")),
        field.provider(),
        trusting,
        field.identity("machine", providerRef={"name": "trusting"}, target={"touchPods": True}),
        field.identity("person", grant=by_refresh_token("seed")),
        field.identity("leaver", grant=by_refresh_token("other-seed")),
        field.identity("worker", client=asserted),
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "mounts"},
            "spec": {
                "nodeName": "one",
                "containers": [{"name": "main", "image": "localhost/none:1"}],
                "volumes": [{"name": "token", "secret": {"secretName": "machine"}}],
            },
        },
    )


def rights() -> Iterator[Any]:
    for place, where in PLACES.items():
        for right in sorted(needed(place, broker=False)):  # no pod asks here
            yield pytest.param(where, right, id=f"{where}-{right.verb}-{right.resource.replace('/', '-')}")


@pytest.mark.parametrize(("where", "right"), list(rights()))
async def test_a_right_that_is_missing_is_named_and_nothing_is_lost(
    installation: Installation, where: str, right: Right, tmp_path: Path
) -> None:
    field = installation.field
    installation.grant(without=right, place=where)
    if right != Right("coordination.k8s.io", "leases", "create"):
        lease = {"name": LEASE, "namespace": field.home}
        field.cluster.api.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": lease})
    field.trust_account("worker")
    declare(field)
    # The latter is what kopf repeats of the API server's answer, as it stands in a JSON line.
    phrases: tuple[str, ...] = (
        f"may not {right.verb} {right.resource}",
        f'cannot {right.verb} resource \\"{right.resource}\\"',
    )
    if right in needed(Place.PODS):
        phrases = ("the operator has no right to list and patch pods",)
    async with started(field, tmp_path) as process:
        if right.verb in AT_THE_END:
            await field.until_ready(*NAMES, "leaver")
            # Whose identity stays is deleted by the operator alone; what a gone one leaves, the cluster may take first.
            moves = field.cluster.api.get(GROUP, "ServiceIdentity", "person", field.namespace)
            field.cluster.api.patch(moves, {"spec": {"target": {"secretName": "elsewhere"}}})
        field.cluster.api.delete(field.cluster.api.get(GROUP, "ServiceIdentity", "leaver", field.namespace))
        await field.until(lambda: process.says(*phrases) or not process.runs)
        assert process.runs, process.text()
        assert "Traceback" not in process.text()
        installation.grant()
        for name in NAMES:  # what waits for a change, or for minutes, may try at once
            found = field.cluster.api.get(GROUP, "ServiceIdentity", name, field.namespace)
            field.cluster.api.patch(found, {"metadata": {"annotations": {"keyferry.dev/renew": "now"}}})
        await field.until_ready(*NAMES)
        assert process.runs
    assert max(field.issuer.sent_refresh_tokens().values(), default=0) <= 1
