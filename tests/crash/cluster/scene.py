"""The scene of `keyferry operator`: two replicas with the chart's rights, and identities in their own namespace."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import yaml

from keyferry_operator.leases import Timing
from tests.chart.conftest import Helm
from tests.crash.cluster.chronicle import IDENTITIES, LEASES, SECRETS, Chronicle, publication_faults
from tests.crash.cluster.worker import Replica
from tests.crash.scene import APPROVAL, Identity, Scene
from tests.support import kube_config, kubernetes_binaries
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from pathlib import Path

    from keyferry.demo.refresh_tokens import RefreshPolicy
    from tests.crash.cluster.chronicle import Version
    from tests.crash.zygote import Broker, Zygote
    from tests.support.cluster import Cluster
    from tests.support.kube_proxy import KubeProxy

Document = dict[str, Any]
ACCOUNT = "kf-keyferry"
TEAM, HOME = "team-placeholder", "home-placeholder"
MARGIN = 5.0
"""Seconds beyond a request's deadline for which another's claim is left alone: less than people's, for it is idle."""
CONTENTS = (
    SECRETS,
    IDENTITIES,
    LEASES,
    ("keyferry.dev/v1alpha1", "TokenProvider"),
    ("events.k8s.io/v1", "Event"),
    ("v1", "ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
)
"""All that is in the namespaces of a scene."""
PEOPLES = Timing()
PATIENT = Timing(duration=15.0, deadline=12.0, retry=1.0, request=6.0)
"""For many replicas on one machine."""


class Variant(Enum):
    """What follows the death of the replica that works."""

    RESTART = "restart"
    """It is started again: a container that is restarted, with the same volume."""
    TAKEOVER = "takeover"
    """The other one, which stood by, takes over; the first never comes back, and its volume is gone."""
    RETURN = "return"
    """The other one takes over while the first is started again, with its volume."""


@dataclass
class ClusterStage:
    """A cluster, an issuer, and a chronicle of both namespaces of every scene."""

    cluster: Cluster
    zygote: Zygote
    directory: Path
    issuer: FaultIssuer
    chronicle: Chronicle
    rights: str
    """The chart's roles and account, as YAML with placeholders for both namespaces."""
    variant: Variant = Variant.RESTART
    proxy: KubeProxy | None = None
    lease: Timing = PATIENT
    margin: float = MARGIN
    scenes: list[ClusterScene] = field(default_factory=list)

    def scene(self, name: str, identity: Identity) -> ClusterScene:
        """Set up a scene with one identity."""
        return self.scene_of(name, [identity])

    def scene_of(self, name: str, identities: Iterable[Identity]) -> ClusterScene:
        """Set up a scene with several identities."""
        self.scenes.append(ClusterScene(self, name, identities))
        return self.scenes[-1]


class ClusterScene(Scene):
    """Two namespaces: one for the identities, one for the replicas of the operator that looks after them."""

    # Tokens of some seconds are told of as such: they live too short for a kubelet.
    well = frozenset({"Issued", "LifetimeTooShort"})

    def __init__(self, stage: ClusterStage, name: str, identities: Iterable[Identity]) -> None:
        super().__init__(name, identities)
        for identity in self.identities:
            identity.target = f"{{secretName: {self.target(identity)}}}"
        self.stage = stage
        self.variant = stage.variant
        self.lease = stage.lease
        self._api = stage.cluster.api
        self._given: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._mark = 0.0
        self._replicas: dict[str, Broker] = {}
        self._standing_by: asyncio.Task[None] | None = None
        self._dead_letters: dict[str, str] = {}
        self.team = stage.cluster.create_namespace("team")
        self.home = stage.cluster.create_namespace("home")
        self.directory = stage.directory / self.home
        self.directory.mkdir(parents=True)
        self._roles = [*yaml.safe_load_all(stage.rights.replace(TEAM, self.team).replace(HOME, self.home))]
        for document in self._roles:
            self._api.apply(document, manager="chart")
        token = self._api.service_account_token(self.home, ACCOUNT)
        access = stage.cluster.access if stage.proxy is None else stage.proxy.access
        self.kubeconfig = kube_config.Access(access.url, ca=access.ca, token=token).write(self.directory / "kubeconfig")
        self.set_up()

    def declare(self) -> None:
        for identity in self.identities:
            for document in yaml.safe_load_all(identity.document()):
                document["metadata"]["namespace"] = self.team
                self._api.apply(document, manager="user")

    def give(self, identity: Identity, key: str, value: str) -> None:
        self._given[identity.name][key] = value
        metadata = {
            "name": identity.name,
            "namespace": self.team,
            "labels": {"keyferry.dev/credential": "true"},
            "annotations": {"keyferry.dev/hosts": identity.issuer.url.removeprefix("http://")},
        }
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": self._given[identity.name]}
        self._api.apply(secret, manager="user")

    # --- replicas -----------------------------------------------------------------------------------------------------

    def start(self, *, step: str = "", passing: int = 1) -> Broker:
        """Start the first replica; after its death, have one go on as the variant says."""
        if not self._replicas:
            broker = self.replica("a", step=step, passing=passing)
            if self.variant is not Variant.RESTART:
                self._standing_by = asyncio.create_task(self._stand_by())
        elif self.variant is Variant.RESTART:
            broker = self.replica("a")
        else:
            if self._standing_by is not None:
                self._standing_by.cancel()
            broker = self._replicas.get("b") or self.replica("b")
            if broker.status is not None:
                broker = self.replica("b")
            if self.variant is Variant.RETURN and self._replicas["a"].status is not None:
                self.replica("a")
        self._mark = time.monotonic()
        self.brokers.append(broker)
        return broker

    def replica(self, instance: str, *, step: str = "", passing: int = 1) -> Broker:
        """Start one replica."""
        self._read_escrow(instance)
        order = Replica(
            kubeconfig=str(self.kubeconfig),
            home=self.home,
            team=self.team,
            instance=instance,
            escrow=str(self.directory / instance),
            log=str(self.directory / f"{instance}.log"),
            lease=astuple(self.lease),
            margin=self.stage.margin,
            step=step,
            passing=passing,
        )
        self._replicas[instance] = self.stage.zygote.run(order)
        return self._replicas[instance]

    async def _stand_by(self) -> None:
        while self.holder() != "a":  # noqa: ASYNC110 - a watch tells, and nobody sets an event
            await asyncio.sleep(0.02)
        self.replica("b")

    def holder(self) -> str:
        """Return which replica holds the Lease; empty where none does."""
        history = self.stage.chronicle.of(LEASES, self.home, "keyferry-operator")
        spec = history[-1].body["spec"] if history and not history[-1].gone else {}
        return str(spec.get("holderIdentity") or "").partition("_")[0]

    def says(self, instance: str, words: str) -> bool:
        """Tell whether a replica's log holds these words."""
        log = self.directory / f"{instance}.log"
        return log.exists() and words in log.read_text()

    async def finish(self) -> None:
        running = [broker for broker in self._replicas.values() if broker.status is None]
        for broker in running:
            broker.terminate()
        for broker in running:
            status = await broker.ended()
            assert status == 0, f"a replica ended with {status}; {self.last_words()}"
        await self.caught_up()

    async def close(self) -> None:
        if self._standing_by is not None:
            self._standing_by.cancel()
        for broker in self._replicas.values():
            broker.kill()
            await broker.ended()

    def clear(self) -> None:
        """Remove it from the cluster."""
        for document in self._roles:
            if document["metadata"]["namespace"] == "kube-system":
                self._api.delete(document)
        for namespace in (self.team, self.home):
            self.stage.cluster.delete_namespace(namespace, CONTENTS)

    def asks_or_renewed(self, identity: Identity, times: int = 1) -> Callable[[], bool]:
        """Return what tells whether an identity was renewed so often from now, or needs a person."""
        renewed = self.renewal(identity, times)
        return lambda: renewed() or self.reported(identity, APPROVAL)

    # --- what is known ------------------------------------------------------------------------------------------------

    def statuses(self, identity: Identity) -> list[dict[str, Any]]:
        history = self.stage.chronicle.of(IDENTITIES, self.team, identity.name)
        told = [version.body["status"] for version in history if version.at > self._mark and "status" in version.body]
        return [_status(status) for status in told if status.get("conditions")]

    # What is asked often is read from the chronicle: a call would keep the issuer waiting, which runs in this loop.

    def record(self, identity: Identity) -> dict[str, Any]:
        """Return the private state, or what the status tells where there is none, as far as it was told."""
        told = self.stage.chronicle.latest(IDENTITIES, self.team, identity.name)
        if told is None:
            return {}
        private = self.stage.chronicle.latest(SECRETS, self.home, f"kf-{told.body['metadata']['uid']}")
        if private is None:
            return {"revision": (told.body.get("status") or {}).get("revision", 0)}
        return _record(private.data["record"])

    def published(self, identity: Identity) -> tuple[bytes, bytes]:
        latest = self.stage.chronicle.latest(SECRETS, self.team, self.target(identity))
        if latest is None:
            raise LookupError(f"Secret {self.target(identity)} is not there")
        return latest.data["token"], latest.data["token.json"]

    async def caught_up(self) -> None:
        """Wait until the chronicle holds all that was written before this call."""
        await self.stage.chronicle.caught_up(self.home)

    def target(self, identity: Identity) -> str:
        """Return the name of the Secret that is published."""
        return f"{identity.name}-token"

    def attempts(self) -> Mapping[str, Mapping[str, int]]:
        attempts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for version in self.private_versions():
            claim = _record(version.data["record"]).get("claim")
            if claim is not None:
                attempts[claim["digest"]][claim["attempt_id"]] = claim["attempt"]
        return attempts

    def private_versions(self) -> list[Version]:
        """Return every version of the private state of all identities."""
        return [
            version
            for _, history in self.stage.chronicle.inside(SECRETS, self.home)
            for version in history
            if version.labels.get("keyferry.dev/state") == "private" and not version.gone
        ]

    def escrowed(self) -> Mapping[str, str]:
        """Return what lay in the escrow of a replica that died and came back."""
        return self._dead_letters

    def _read_escrow(self, instance: str) -> None:
        """Read the answers in the escrow of a replica that is about to be started: it must not lose them."""
        for path in self.directory.glob(f"{instance}/escrow/*"):
            payload = path.read_bytes().partition(b"\n")[2].rstrip(b"\0")
            try:
                body = json.loads(base64.b64decode(json.loads(payload)["body"]))
            except ValueError:
                continue
            if isinstance(body, dict) and "refresh_token" in body:
                self._dead_letters[body["refresh_token"]] = path.name

    def rescued(self) -> int:
        return len(self._dead_letters)

    def key(self) -> bytes:
        keys = self.stage.chronicle.latest(SECRETS, self.home, "keyferry-keys")
        return b"" if keys is None else keys.data["digest"]

    def litter(self) -> list[str]:
        """Return what is wrong with what was published, with the private state, and with the escrow."""
        issued = {token.value for identity in self.identities for token in identity.issuer.issued}
        faults = []
        for identity in self.identities:
            history = self.stage.chronicle.of(SECRETS, self.team, self.target(identity))
            faults += publication_faults(self.target(identity), history, issued, self.key())
        generations: defaultdict[str, list[int]] = defaultdict(list)
        for version in self.private_versions():
            record = _record(version.data["record"])
            generations[record["name"]].append(record.get("generation", 0))
        faults += [f"the generation of {name} went back" for name, seen in generations.items() if seen != sorted(seen)]
        return faults

    def last_words(self) -> str:
        tails = [path.read_text().splitlines()[-6:] for path in sorted(self.directory.glob("*.log"))]
        return f"the Lease is held by {self.holder()!r}; " + "\n".join(line for tail in tails for line in tail)


def _status(status: Document) -> dict[str, Any]:
    ready = next(item for item in status["conditions"] if item["type"] == "Ready")
    return {"reason": ready["reason"], "message": ready["message"], "revision": status.get("revision", 0)}


def _record(data: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(data)["record"]
    return record


def chart_rights(scratch: Path) -> str:
    """Return what the chart grants to an operator of one namespace, as YAML with placeholders for both namespaces."""
    helm = Helm(kubernetes_binaries.client_programs() / "helm", scratch)
    values = {"watch": {"namespaces": [TEAM]}, "fullnameOverride": ACCOUNT}
    rendered = helm.template(values, home=HOME)
    return yaml.safe_dump_all([each for each in rendered if "Role" in each["kind"] or each["kind"] == "ServiceAccount"])


@asynccontextmanager
async def stage(
    cluster: Cluster, zygote: Zygote, directory: Path, policy: RefreshPolicy | None = None, **options: Any
) -> AsyncIterator[ClusterStage]:
    """Set up an issuer and a chronicle."""
    rights = await asyncio.to_thread(chart_rights, directory)
    async with FaultIssuer(refresh_policy=policy) as issuer, Chronicle(cluster) as chronicle:
        scenes = ClusterStage(cluster, zygote, directory, issuer, chronicle, rights, **options)
        try:
            yield scenes
        finally:
            # Not before: it costs much, and the issuer runs in this process.
            for scene in scenes.scenes:
                scene.clear()
