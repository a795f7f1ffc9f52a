"""The phases of ``bench.operator``: what is done, in which order, and what is counted meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.field import credential, identity, path, provider, status_path
from bench.operator_process import OperatorProcess
from bench.plain_kube import PlainClient, apply, create, delete, merge
from bench.process import cpu_seconds, memory
from bench.world import CLIENT_ID
from keyferry.demo.clients import Client, Grant
from keyferry.demo.state import User
from keyferry_operator.crds import manifests

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Iterator

    from bench.plain_kube import Document, Request
    from tests.support.cluster import Cluster
    from tests.support.issuer_process import IssuerProcess

WRITTEN = ("secrets", "serviceidentities/status", "events")
"""What the operator writes for its identities; its Lease is renewed whatever they do."""
STEP = 0.2
"""Seconds between two looks at how far it is."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    count: int = 10_000
    few: int = 1_000
    """Identities of the first round, for the memory."""
    created: int = 200
    """Identities that are created one by one, for the latency."""
    renewed: int = 200
    rotated: int = 50
    """Renewals, by client credentials and with a rotating refresh token."""
    idle: float = 30.0
    """Seconds over which the idle operator is watched."""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """From no token to the last status."""

    rate: float
    """Identities a second, from the moment the schedule is built."""
    total: float
    """Seconds from the start of the process."""
    writes: float
    """Writes to the API for each identity."""
    operator_cpu: float
    """Milliseconds of processor time for each identity."""
    server_cpu: float
    """The same of the API server and etcd."""
    peak: float
    """Resident at the most (MB)."""
    troubles: list[str]


@dataclass(frozen=True, slots=True)
class Plain:
    """What a plain client makes of the same writes."""

    applies: float
    """Server-side applies of the same Secrets a second."""
    both: float
    """Secrets with their status a second."""


@dataclass(frozen=True, slots=True)
class Restart:
    """From healthy identities to rest."""

    ready: float
    settled: float
    """Seconds from the start of the process until the schedule is built, and until hardly anything is done any more."""
    cpu: float
    exchanges: int
    writes: int
    resident: float
    peak: float
    idle: float
    """Per cent of a core."""


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    few: ColdStart
    plain: Plain
    cold: ColdStart
    latencies: list[float]
    """Seconds from the creation of an identity to its Secret, in order."""
    renewal_writes: float
    rotation_writes: float
    restart: Restart
    sizes: Sizes


class Run:
    """One measurement in a cluster of its own."""

    def __init__(self, cluster: Cluster, issuer: IssuerProcess, base: Path, sizes: Sizes) -> None:
        self._cluster = cluster
        self._issuer = issuer
        self._escrow = base / "escrow"
        self._sizes = sizes

    async def measure(self) -> Results:
        """Go through all phases."""
        self._escrow.mkdir()
        for manifest in manifests():
            self._cluster.api.apply(manifest, manager="bench")
        self._home, few, many, plain = (
            self._cluster.create_namespace(name) for name in ("keyferry", "few", "many", "plain")
        )
        self._servers = [_pid_of(flag) for flag in self._flags()]
        async with PlainClient(self._cluster.access) as client:
            self._client = client
            await self._declare(few, self._sizes.few)
            first = await self._cold_start(self._sizes.few)
            compared = await self._compare(few, plain)
            for kind in ("serviceidentities", "secrets"):
                await client.send(delete(path(few, kind)))
            await self._declare(many, self._sizes.count)
            cold = await self._cold_start(self._sizes.count)
            async with self._operator() as operator:
                operator.wait_until_at_rest()
                latencies = await self._latencies(operator, many)
                renewals = await self._renewals(operator, many)
                rotations = await self._rotations(operator, many)
            restart = await self._restart()
        return Results(first, compared, cold, latencies, renewals, rotations, restart, self._sizes)

    def _flags(self) -> tuple[str, str]:
        control = self._cluster.control
        assert control is not None
        return f"--secure-port={control.port}", f"--listen-client-urls=http://127.0.0.1:{control.etcd_port}"

    @asynccontextmanager
    async def _operator(self) -> AsyncIterator[OperatorProcess]:
        with OperatorProcess(self._cluster.kubeconfig, self._home, self._escrow) as operator:
            await asyncio.to_thread(operator.wait_until_ready)
            yield operator

    async def _declare(self, namespace: str, count: int) -> None:
        for request in provider(namespace, self._issuer):
            await self._client.send(request)
        await self._client.send_all(identity(namespace, f"job-{index:05}") for index in range(count))

    async def _writes(self) -> Counter[str]:
        found = await self._client.writes()
        for kind in found.keys() - set(WRITTEN):
            del found[kind]
        return found

    # --- phases -------------------------------------------------------------------------------------------------------

    async def _cold_start(self, count: int) -> ColdStart:
        before = await self._writes()
        with OperatorProcess(self._cluster.kubeconfig, self._home, self._escrow) as operator:
            ready = await asyncio.to_thread(operator.wait_until_ready)
            spent, servers = cpu_seconds(operator.pid), self._server_seconds()
            while operator.obtained < count or await self._statuses(before) < count:
                operator.check()
                await asyncio.sleep(STEP)
            finished = time.monotonic()
            spent, servers = cpu_seconds(operator.pid) - spent, self._server_seconds() - servers
            await asyncio.to_thread(operator.wait_until_at_rest)
            _, peak = memory(operator.pid)
        writes = await self._writes() - before
        return ColdStart(
            rate=count / (finished - ready),
            total=finished - operator.begun,
            writes=writes.total() / count,
            operator_cpu=spent * 1000 / count,
            server_cpu=servers * 1000 / count,
            peak=peak,
            troubles=operator.troubles,
        )

    async def _statuses(self, before: Counter[str]) -> int:
        return (await self._writes() - before)["serviceidentities/status"]

    def _server_seconds(self) -> float:
        return sum(cpu_seconds(pid) for pid in self._servers)

    async def _compare(self, few: str, namespace: str) -> Plain:
        """Write as the operator did, with bodies of its own making, and nothing else."""
        secret = json.loads(await self._client.send(("GET", path(few, "secrets", "job-00000"), "", b"")))
        shown = json.loads(await self._client.send(("GET", path(few, "serviceidentities", "job-00000"), "", b"")))
        metadata = {name: secret["metadata"][name] for name in ("labels", "annotations", "ownerReferences")}
        metadata["labels"] = {"plain": "true"}  # else the next operator would look at them

        def body(index: int) -> Document:
            named = {**metadata, "name": f"plain-{index:05}"}
            return {"apiVersion": "v1", "kind": "Secret", "metadata": named, "data": secret["data"]}

        secrets = path(namespace, "secrets")
        applies = await self._client.send_all([apply(secrets, body(index)) for index in range(self._sizes.count)])
        await self._client.send(delete(secrets))

        def both() -> Iterator[Request]:
            for index in range(self._sizes.few):
                patch = {"status": {**shown["status"], "revision": 2, "lastHandledRenew": "plain"}}
                yield create(secrets, body(index))
                yield merge(status_path(few, f"job-{index:05}"), patch)

        writes = await self._client.send_all(list(both()))
        await self._client.send(delete(secrets))
        return Plain(applies, writes / 2)

    async def _latencies(self, operator: OperatorProcess, namespace: str) -> list[float]:
        """Create identities one after the other, and wait for the Secret of each."""
        arrived: dict[str, asyncio.Future[float]] = {}

        def tell(name: str, at: float) -> None:
            if name in arrived:
                arrived[name].set_result(at)

        watching = asyncio.create_task(self._client.appearances(path(namespace, "secrets"), tell))
        taken = []
        try:
            await asyncio.sleep(1.0)
            for index in range(self._sizes.created):
                name = f"single-{index:04}"
                arrived[name] = asyncio.get_running_loop().create_future()
                request = identity(namespace, name)
                begun = time.perf_counter()
                await self._client.send(request)
                async with asyncio.timeout(60):
                    taken.append(await arrived[name] - begun)
                operator.check()
                await asyncio.sleep(0.05)  # idle again
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return sorted(taken)

    async def _renewals(self, operator: OperatorProcess, namespace: str) -> float:
        names = [f"job-{index:05}" for index in range(self._sizes.renewed)]
        return await self._renew(operator, namespace, names)

    async def _rotations(self, operator: OperatorProcess, namespace: str) -> float:
        """Renew with refresh tokens that the issuer replaces at each use."""
        self._issuer.add_user(User("ada", "secret", email="ada@example.org"))
        self._issuer.add_client(Client(f"{CLIENT_ID}-user", secrets=("user",), grants=(Grant.REFRESH_TOKEN,)))
        names = [f"rotating-{index:04}" for index in range(self._sizes.rotated)]
        client = {
            "id": f"{CLIENT_ID}-user",
            "authentication": "ClientSecretBasic",
            "secretsFrom": [{"secretKeyRef": {"name": "user", "key": "secret"}}],
        }
        await self._client.send(credential(namespace, "user", self._issuer, secret="user"))
        before = operator.obtained
        for name in names:
            seed = self._issuer.seed_refresh_token(f"{CLIENT_ID}-user", "ada")
            await self._client.send(credential(namespace, f"{name}-seed", self._issuer, token=seed))
            source = {"secretKeyRef": {"name": f"{name}-seed", "key": "token"}}
            grant = {"type": "RefreshToken", "refreshToken": {"from": source}}
            await self._client.send(identity(namespace, name, grant=grant, client=client))
        while operator.obtained < before + len(names):
            operator.check()
            await asyncio.sleep(STEP)
        return await self._renew(operator, namespace, names)

    async def _renew(self, operator: OperatorProcess, namespace: str, names: list[str]) -> float:
        """Have identities renewed on demand; return the operator's writes for each."""
        await asyncio.to_thread(operator.wait_until_at_rest)
        before, renewed = await self._writes(), operator.renewed
        for name in names:
            patch = {"metadata": {"annotations": {"keyferry.dev/renew": "bench"}}}
            await self._client.send(merge(path(namespace, "serviceidentities", name), patch))
        while operator.renewed < renewed + len(names):
            operator.check()
            await asyncio.sleep(STEP)
        await asyncio.to_thread(operator.wait_until_at_rest)
        return (await self._writes() - before).total() / len(names)

    async def _restart(self) -> Restart:
        before = await self._writes()
        self._issuer.clear_requests()
        with OperatorProcess(self._cluster.kubeconfig, self._home, self._escrow) as operator:
            ready = await asyncio.to_thread(operator.wait_until_ready)
            settled = await asyncio.to_thread(operator.wait_until_at_rest)
            spent, since = cpu_seconds(operator.pid), time.monotonic()
            await asyncio.sleep(self._sizes.idle)
            idle = (cpu_seconds(operator.pid) - spent) / (time.monotonic() - since)
            resident, peak = memory(operator.pid)
        return Restart(
            ready=ready - operator.begun,
            settled=settled - operator.begun,
            cpu=spent,
            exchanges=sum(request.path.endswith("/token") for request in self._issuer.requests),
            writes=(await self._writes() - before).total(),
            resident=resident,
            peak=peak,
            idle=idle * 100,
        )


def _pid_of(flag: str) -> int:
    """Return the process that was started with a flag."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        if flag in arguments and not Path(arguments[0]).name.startswith("python"):
            return int(directory.name)
    raise RuntimeError(f"no process has {flag}")
