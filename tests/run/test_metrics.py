from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from keyferry import __version__
from keyferry.demo.clients import Client
from keyferry.errors import KeyferryError
from keyferry.io.addresses import HostRule
from keyferry.model import ObjectKey
from keyferry.run.broker import LocalBroker
from keyferry.run.metrics import MetricsServer
from keyferry.run.settings import RunSettings
from keyferry.web.serving import parse_address
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DEADLINE = 180.0
CLIENT_SECRET = "canary-of-the-client"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "metrics.md"
PROVIDER = "TokenProvider default/main"


class Scraped:
    """One scrape, parsed; a sample is found by its name and its labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def get(self, metric: str, **labels: str) -> float | None:
        return self.samples.get((metric, frozenset(labels.items())))

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


class Watched:
    """A broker with its metrics, and the issuer that it asks."""

    def __init__(self, broker: LocalBroker, server: MetricsServer, http: httpx.AsyncClient) -> None:
        self.broker = broker
        self.server = server
        self.http = http

    async def scrape(self) -> Scraped:
        answer = await self.http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Scraped(answer.text)

    async def until(self, reached: Callable[[Scraped], bool]) -> Scraped:
        async with asyncio.timeout(DEADLINE):
            while not reached(scraped := await self.scrape()):  # noqa: ASYNC110 - scrapes are polled
                await asyncio.sleep(0.05)
        return scraped


def resources(issuer: FaultIssuer, names: list[str], limits: str = "{}") -> str:
    documents = [
        f"""
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {{name: main}}
spec:
  type: OAuth
  oauth:
    issuer: {issuer.issuer}
    client: {{id: bot, secretsFrom: [{{secretKeyRef: {{name: bot, key: client_secret}}}}]}}
  limits: {limits}
""",
        f"""
apiVersion: v1
kind: Secret
metadata: {{name: bot}}
stringData: {{client_secret: {CLIENT_SECRET}}}
""",
    ]
    documents += [
        f"""
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {name}}}
spec:
  providerRef: {{name: main}}
  grant: {{type: ClientCredentials}}
"""
        for name in names
    ]
    return "---".join(documents)


@pytest.fixture
async def issuer() -> AsyncIterator[FaultIssuer]:
    async with FaultIssuer() as issuer:
        issuer.clients.add(Client("bot", secrets=(CLIENT_SECRET,)))
        yield issuer


@asynccontextmanager
async def watched(base: Path, text: str) -> AsyncIterator[Watched]:
    path = base / "resources.yaml"
    path.write_text(text)
    settings = RunSettings((path,), base / "out", base / "state", allowed_hosts=(HostRule.parse("127.0.0.1"),))
    async with LocalBroker(settings) as broker:
        server = MetricsServer(broker.engine, "0")
        broker.reporter.listeners.append(server)
        await server.start()
        try:
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE) as http:
                await broker.start()
                assert broker.problems == ()
                yield Watched(broker, server, http)
        finally:
            await server.close()


async def test_a_token_that_was_obtained_is_seen(tmp_path: Path, issuer: FaultIssuer) -> None:
    async with watched(tmp_path, resources(issuer, ["nightly"])) as run:
        seen = await run.until(lambda seen: seen.get("keyferry_identities", state="Fresh") == 1)
        status = run.broker.engine.status(ObjectKey("default", "nightly"))
    identity = {"namespace": "default", "identity": "nightly"}
    assert seen.get("keyferry_identity_ready", **identity) == 1
    assert seen.get("keyferry_identity_expiration_timestamp_seconds", **identity) == status.expiration_time
    assert seen.get("keyferry_identity_renewal_timestamp_seconds", **identity) == status.renewal_time
    assert seen.get("keyferry_renewals_total", result="success", reason="Issued", provider=PROVIDER) == 1
    assert seen.get("keyferry_renewals_total", result="failure", reason="Retrying", provider=PROVIDER) == 0
    assert seen.get("keyferry_provider_breaker_state", provider=PROVIDER) == 0
    assert seen.get("keyferry_exchanges_in_flight", provider=PROVIDER) == 0
    assert seen.get("keyferry_queue_depth") == 0
    assert seen.get("keyferry_revocations_total", result="failure") == 0
    assert seen.get("keyferry_build_info", version=__version__) == 1
    # Two requests: the discovery of the endpoints, and the exchange.
    assert seen.get("keyferry_exchange_duration_seconds_count", provider=PROVIDER) == len(issuer.requests) == 2
    documented = DOCUMENTATION.read_text()
    assert not [name for name in seen.families if f"`{name}`" not in documented]
    assert not {name for name in seen.names() if not name.startswith("keyferry_") or name.endswith("_created")}


async def test_no_credential_is_on_the_page(tmp_path: Path, issuer: FaultIssuer) -> None:
    issuer.faults.add(Fault(FaultKind.STATUS, times=1))
    async with watched(tmp_path, resources(issuer, ["one", "two"])) as run:
        seen = await run.until(lambda seen: seen.get("keyferry_identities", state="Fresh") == 2)
    tokens = [token.value for token in issuer.issued]
    assert tokens  # one will do: equal exchanges that meet are made once
    assert not [secret for secret in (CLIENT_SECRET, *tokens) if secret in seen.text]


async def test_a_failure_is_counted_with_its_reason(tmp_path: Path, issuer: FaultIssuer) -> None:
    issuer.faults.add(Fault(FaultKind.ERROR, error="invalid_client", status=401))
    async with watched(tmp_path, resources(issuer, ["nightly"])) as run:
        seen = await run.until(lambda seen: seen.get("keyferry_identities", state="Stalled") == 1)
    identity = {"namespace": "default", "identity": "nightly"}
    assert seen.get("keyferry_renewals_total", result="failure", reason="ClientRejected", provider=PROVIDER) == 1
    assert seen.get("keyferry_renewals_total", result="success", reason="Issued", provider=PROVIDER) == 0
    assert seen.get("keyferry_identity_ready", **identity) == 0
    assert seen.get("keyferry_identity_stalled", reason="ClientRejected", **identity) == 1
    assert seen.get("keyferry_identity_expiration_timestamp_seconds", **identity) is None


async def test_an_open_breaker_is_seen_and_closes_again(tmp_path: Path, issuer: FaultIssuer) -> None:
    names = [f"bot-{number}" for number in range(6)]
    fault = issuer.faults.add(Fault(FaultKind.STATUS, status=503))
    async with watched(tmp_path, resources(issuer, names)) as run:
        seen = await run.until(lambda seen: seen.get("keyferry_provider_breaker_state", provider=PROVIDER) == 2)
        failures = seen.get("keyferry_renewals_total", result="failure", reason="Retrying", provider=PROVIDER)
        assert failures is not None
        assert failures >= 5
        issuer.faults.remove(fault)
        seen = await run.until(lambda seen: seen.get("keyferry_identities", state="Fresh") == 6)
        assert seen.get("keyferry_provider_breaker_state", provider=PROVIDER) == 0


async def test_those_who_wait_and_those_under_way_are_seen(tmp_path: Path, issuer: FaultIssuer) -> None:
    names = [f"bot-{number}" for number in range(5)]
    issuer.faults.add(Fault(FaultKind.STALL_BEFORE, times=1, delay=3))
    async with watched(tmp_path, resources(issuer, names, "{concurrency: 1}")) as run:
        seen = await run.until(lambda seen: seen.get("keyferry_queue_depth") == 4)
        assert seen.get("keyferry_exchanges_in_flight", provider=PROVIDER) == 1
        seen = await run.until(lambda seen: seen.get("keyferry_identities", state="Fresh") == 5)
        assert seen.get("keyferry_queue_depth") == 0


async def test_what_is_gone_leaves_no_series(tmp_path: Path, issuer: FaultIssuer) -> None:
    async with watched(tmp_path, resources(issuer, ["nightly"])) as run:
        await run.until(lambda seen: seen.get("keyferry_identities", state="Fresh") == 1)
        await run.broker.engine.drop_identity(ObjectKey("default", "nightly"))
        seen = await run.until(lambda seen: seen.get("keyferry_revocations_total", result="success") == 1)
        assert seen.get("keyferry_renewals_total", result="success", reason="Issued", provider=PROVIDER) == 1
        run.broker.engine.drop_provider(("TokenProvider", ObjectKey("default", "main")))
        seen = await run.scrape()
    assert PROVIDER not in seen.text
    assert "nightly" not in seen.text


async def test_many_scrapes_at_once_are_all_answered(tmp_path: Path, issuer: FaultIssuer) -> None:
    names = [f"bot-{number}" for number in range(300)]  # more than are read in one go
    limits = "{requestsPerSecond: 1000, burst: 1000}"
    async with watched(tmp_path, resources(issuer, names, limits)) as run:
        pages = await asyncio.gather(*(run.scrape() for _ in range(5)))
        pages.append(await run.until(lambda seen: seen.get("keyferry_identities", state="Fresh") == 300))
        for page in pages:
            states = [value for (name, _), value in page.samples.items() if name == "keyferry_identities"]
            assert sum(states) == len(names)
        for name in names:
            assert pages[-1].get("keyferry_identity_ready", namespace="default", identity=name) == 1


async def test_other_requests_are_refused_without_repeating_them(tmp_path: Path, issuer: FaultIssuer) -> None:
    async with watched(tmp_path, resources(issuer, ["nightly"])) as run:
        assert (await run.http.get("/healthz")).text == "ok\n"
        missing = await run.http.get("/canary?canary")
        assert (missing.status_code, "canary" in missing.text) == (404, False)
        posted = await run.http.post("/metrics", content=b"canary")
        assert (posted.status_code, "canary" in posted.text) == (405, False)
        reader, writer = await asyncio.open_connection("127.0.0.1", run.server.port)
        writer.write(b"GET /canary\x01 HTTP/1.1\r\ncanary\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), DEADLINE)
        writer.close()
        await writer.wait_closed()
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        assert b"canary" not in answer
        assert (await run.http.head("/metrics")).status_code == 200


async def test_it_stops_listening_and_can_be_closed_twice(tmp_path: Path, issuer: FaultIssuer) -> None:
    async with watched(tmp_path, resources(issuer, ["nightly"])) as run:
        port = run.server.port
        await run.scrape()
        await run.server.close()
        await run.server.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        key = ObjectKey("default", "nightly")
        assert await run.broker.engine.wait_for(key, lambda status: status.revision > 0, DEADLINE)


async def test_a_port_that_is_taken_is_named(tmp_path: Path, issuer: FaultIssuer) -> None:
    async with watched(tmp_path, resources(issuer, ["nightly"])) as run:
        second = MetricsServer(run.broker.engine, f":{run.server.port}")
        with pytest.raises(KeyferryError, match=rf"127\.0\.0\.1, port {run.server.port}: Address already in use"):
            await second.start()
        await second.close()
        assert (await run.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),  # noqa: S104 - nothing is bound here
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_an_address_without_a_host_is_this_machine_s_own(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "localhost", "host:", "::1:9464", "[::1]", "65536", "http://host:1", "a b:1", "٣"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_address(text)
