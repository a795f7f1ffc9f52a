"""Measures the broker API with many requests held: ``python -m bench.held``.

The operator is the real ``keyferry operator`` on a real API server; the requests come over TLS from this process, in
the name of pods that nobody runs. Nothing here fails for being slow: the figures are for people.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.field import API, identity, provider
from bench.operator_process import OperatorProcess
from bench.plain_kube import PlainClient
from bench.process import PATIENCE, cpu_seconds, memory
from bench.table import Figure, print_table
from bench.world import start_issuer
from keyferry.io.tls import TlsSettings, build_context, use_small_buffers
from keyferry.model import ObjectKey
from keyferry.sidecar.connection import Answer, Connection
from keyferry.wire import LONGEST_WAIT, TokenAnswer, identity_path
from keyferry_operator.crds import manifests
from tests.operator.live.pods import Pod
from tests.support.cluster import start_cluster
from tests.support.kube_servers import Options
from tests.support.servers import free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from tests.support.cluster import Cluster
    from tests.support.issuer_process import IssuerProcess

HELD = 5_000
PER_POD = 16
"""Requests of one pod: below what it may hold, and what it may ask at once."""
OPENING = 16
"""Connections that are opened at the same time."""
SETTLE = 5.0
"""Seconds after which the last of them is held."""
HOST = "127.0.0.1"
NAME = "nightly"
ACCOUNT = "ingest"


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured. MB are of 10^6 bytes."""

    held: int
    before: float
    while_held: float
    """Resident (MB)."""
    first: float
    last: float
    """Seconds from the moment that the operator had the new revision until the first and the last had it."""
    cpu: float
    """Seconds of processor time in which all were answered."""
    opening: float
    """Seconds until all were held."""


class Waiters:
    """Requests in the name of pods."""

    def __init__(self, url: str, authorities: str, namespace: str, tokens: Sequence[str]) -> None:
        self._port = int(url.rpartition(":")[2])
        self._context: ssl.SSLContext = build_context(TlsSettings(authorities))
        self._target = f"{identity_path(ObjectKey(namespace, NAME))}/token"
        self._tokens = tokens
        self._gate = asyncio.Semaphore(OPENING)
        self.connected = 0
        self.answered: list[tuple[float, TokenAnswer]] = []
        """When (monotonic), and what."""

    async def first(self) -> str:
        """Return the tag of the current revision."""
        connection = await Connection.open(HOST, self._port, self._context, HOST)
        answer = await connection.ask(self._request(0), patience=PATIENCE)
        connection.close()
        assert answer.status == 200, answer.body
        return str(answer.headers["etag"])

    async def wait(self, number: int, etag: str) -> None:
        """Hold a request, again and again, until there is another revision."""
        connection: Connection | None = None
        while connection is None:
            # A busy machine may be too slow for some of them.
            async with self._gate:
                with contextlib.suppress(OSError):
                    connection = await Connection.open(HOST, self._port, self._context, HOST)
        self.connected += 1
        answer: Answer | None = None
        while answer is None or answer.status != 200:
            answer = await connection.ask(self._request(number, etag), patience=PATIENCE)
            assert answer.status in (200, 304), answer.body
        self.answered.append((time.monotonic(), TokenAnswer.from_json(json.loads(answer.body))))
        connection.close()

    def _request(self, number: int, etag: str = "") -> bytes:
        lines = [f"GET {self._target} HTTP/1.1", f"Host: {HOST}:{self._port}"]
        lines.append(f"Authorization: Bearer {self._tokens[number % len(self._tokens)]}")
        if etag:
            lines += [f"If-None-Match: {etag}", f"Prefer: wait={LONGEST_WAIT}"]
        return "\r\n".join([*lines, "", ""]).encode()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.held", description=__doc__)
    parser.add_argument("--count", type=int, default=HELD, help="how many requests are held")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{options.count} held requests; {platform.machine()}, Python {platform.python_version()};"
        f" load average {load:.1f} before the start{' (others are at work on this machine)' if load > 0.5 else ''}\n",
        flush=True,
    )
    use_small_buffers()
    with tempfile.TemporaryDirectory(prefix="keyferry-bench-") as base, start_issuer() as issuer:
        cluster = start_cluster(Path(base), Options(audit=False))
        try:
            print_table(figures(asyncio.run(measure(cluster, issuer, Path(base), options.count))))
        finally:
            cluster.stop()


async def measure(cluster: Cluster, issuer: IssuerProcess, base: Path, count: int) -> Results:
    """Hold the requests, renew, and wait until all have heard of it."""
    for manifest in manifests():
        cluster.api.apply(manifest, manager="bench")
    home, namespace = (cluster.create_namespace(name) for name in ("keyferry", "jobs"))
    async with PlainClient(cluster.access) as client:
        for request in provider(namespace, issuer):
            await client.send(request)
        consumers = [{"serviceAccountName": ACCOUNT}]
        grant: dict[str, Any] = {"grant": {"type": "ClientCredentials"}, "consumers": consumers}
        await client.send(identity(namespace, NAME, **grant))
    tokens = await asyncio.to_thread(_pods, cluster, namespace, -(-count // PER_POD))
    escrow = base / "escrow"
    escrow.mkdir()
    port = free_port()
    broker = ("--broker", f"{HOST}:{port}", "--broker-host", HOST)
    with OperatorProcess(cluster.kubeconfig, home, escrow, *broker) as operator:
        await asyncio.to_thread(operator.wait_until_ready)
        while not operator.obtained:
            operator.check()
            await asyncio.sleep(0.1)
        waiters = Waiters(f"https://{HOST}:{port}", await _authorities(cluster, home), namespace, tokens)
        etag = await waiters.first()
        await asyncio.to_thread(operator.wait_until_at_rest)
        return await _hold(cluster, operator, waiters, namespace, etag, count)


async def _hold(
    cluster: Cluster, operator: OperatorProcess, waiters: Waiters, namespace: str, etag: str, count: int
) -> Results:
    before, begun = memory(operator.pid)[0], time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(waiters.wait(number, etag))
        while waiters.connected < count:
            operator.check()
            await asyncio.sleep(0.1)
        opening = time.monotonic() - begun
        await asyncio.sleep(SETTLE)
        while_held, spent = memory(operator.pid)[0], cpu_seconds(operator.pid)
        declared = cluster.api.get(API, "ServiceIdentity", NAME, namespace)
        patch = {"metadata": {"annotations": {"keyferry.dev/renew": "now"}}}
        await asyncio.to_thread(cluster.api.patch, declared, patch)
    # Those whose wait was just over, and who asked again, are answered like newcomers: without its age.
    had = min(at - answer.age for at, answer in waiters.answered if answer.age is not None)
    arrived = [at - had for at, _ in waiters.answered]
    cpu = cpu_seconds(operator.pid) - spent
    return Results(count, before, while_held, min(arrived), max(arrived), cpu, opening)


def figures(results: Results) -> list[Figure]:
    """Return the rows of the table."""
    each = (results.while_held - results.before) * 1000 / results.held
    return [
        Figure("resident before", results.before, "MB", None, ""),
        Figure("resident while they are held", results.while_held, "MB", None, f"{results.held} requests"),
        Figure("memory for each", each, "kB", None, "connection, TLS and request"),
        Figure("until the first has a new revision", results.first * 1000, "ms", None, "from when the operator has it"),
        Figure("until all have it", results.last, "s", None, ""),
        Figure("processor time for that", results.cpu, "s", None, "with the renewal itself"),
        Figure("until all are held", results.opening, "s", None, "both ends of TLS share the machine"),
    ]


def _pods(cluster: Cluster, namespace: str, count: int) -> list[str]:
    """Make pods that nobody runs; return their tokens."""
    api = cluster.api
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": namespace}})
    tokens = []
    for number in range(count):
        metadata = {
            "name": f"job-{number}",
            "namespace": namespace,
            "annotations": {"keyferry.dev/inject": NAME},
        }
        containers = [{"name": "main", "image": "localhost/none"}]
        spec = {"serviceAccountName": ACCOUNT, "automountServiceAccountToken": False, "containers": containers}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        tokens.append(Pod(api, api.create(document)).token())
    return tokens


async def _authorities(cluster: Cluster, home: str) -> str:
    """Return what sidecars are told to trust, once the operator has said it."""
    found: dict[str, Any] | None = None
    while found is None:
        found = await asyncio.to_thread(cluster.api.find, "v1", "ConfigMap", "keyferry-ca", home)
        await asyncio.sleep(0.1)
    return str(found["data"]["ca.crt"])


if __name__ == "__main__":
    main()
