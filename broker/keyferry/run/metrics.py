"""Prometheus metrics over HTTP: what the engine knows, read when somebody scrapes.

The server is aiohttp's, in the engine's own loop, and not the thread with a WSGI server that prometheus_client
brings: the engine may only be read in its loop, aiohttp is a dependency anyway, and it stops cleanly. Nothing of an
identity is kept here; only counters are.

prometheus_client writes what there is of counters and providers, in a thread. The series of identities are written
here, a few identities at a time between the engine's own work: at 10,000 of them the library's general way takes
most of a second of pure computing for each scrape, and this a fifth of that.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Multiset
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

from keyferry import __version__
from keyferry.engine.status import State
from keyferry.errors import Reason
from keyferry.io.clock import SystemClock
from keyferry.web.serving import SERVER, Server, base_url, listen, parse_address, plain, port_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from prometheus_client.metrics import MetricWrapperBase
    from prometheus_client.metrics_core import Metric

    from keyferry.engine import Engine, Event, IdentityStatus
    from keyferry.io.clock import Clock
    from keyferry.model import ObjectKey

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The Prometheus text format."""
BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds (seconds) of the request durations; requests are given up after 10 s unless the provider says more."""
SLICE: Final = 200
"""Identities that are read without letting the engine's loop go on."""

_RENEWED: Final = frozenset({"obtained", "renewed"})
_REVOCATIONS: Final = {"revoked": "success", "revocation_failed": "failure"}


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz`` on ``address`` (see ``parse_address``, whose ValueError it raises).

    It is a ``keyferry.run.reporter.Listener`` and takes ``engine.exchange_seconds`` while it runs. It never reads a
    token, and repeats nothing of a request.
    """

    def __init__(self, engine: Engine, address: str, *, clock: Clock | None = None) -> None:
        self._engine = engine
        self._host, self._port = parse_address(address)
        self._clock: Clock = clock or SystemClock()
        self._tally = _Tally()
        self._unobserved: Callable[[str, float], None] = engine.exchange_seconds
        self._scraping = asyncio.Lock()
        self._runner: web.ServerRunner | None = None
        self._executor: ThreadPoolExecutor | None = None

    @property
    def port(self) -> int:
        """Where it listens; before ``start``, where it is to."""
        if self._runner is not None and self._runner.addresses:
            return port_of(self._runner)
        return self._port

    @property
    def url(self) -> str:
        """The address to scrape."""
        return f"{base_url(self._host, self.port)}/metrics"

    async def start(self) -> None:
        """Listen. Raises KeyferryError where the address cannot be had."""
        advice = "Name another address with --metrics, or leave it out."
        self._runner = await listen(Server(self._handle), self._host, self._port, what="The metrics", advice=advice)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="keyferry-metrics")
        self._engine.exchange_seconds = self._tally.observe

    async def close(self) -> None:
        """Stop listening; a second call does nothing."""
        runner, self._runner = self._runner, None
        executor, self._executor = self._executor, None
        if runner is None or executor is None:
            return
        self._engine.exchange_seconds = self._unobserved
        await runner.cleanup()
        executor.shutdown()

    # --- what the reporter tells --------------------------------------------------------------------------------------

    def report(self, status: IdentityStatus) -> None:
        """Do nothing: an identity's status is read from the engine when somebody scrapes."""

    def forget(self, key: ObjectKey) -> None:
        """Do nothing: an identity that is gone is not among the engine's any more."""

    def event(self, event: Event) -> None:
        """Count what is over as soon as it happened: renewals and revocations."""
        if event.event in _REVOCATIONS:
            self._tally.revocations.labels(_REVOCATIONS[event.event]).inc()
        elif event.key is not None and event.event in _RENEWED:
            self._tally.renewal("success", event.reason, self._provider_of(event.key))
        elif event.key is not None and event.event == "failed":
            self._tally.renewal("failure", event.reason, self._provider_of(event.key))

    def _provider_of(self, key: ObjectKey) -> str:
        """Return the provider that an identity uses; empty where it was dropped meanwhile."""
        entry = self._engine.roster.entries.get(key)
        provider = self._engine.roster.provider_of(entry) if entry is not None else None
        return provider.name if provider is not None else ""

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if request.method not in {"GET", "HEAD"}:
            return plain(405, "method not allowed\n", Allow="GET, HEAD")
        if request.path == "/healthz":
            return plain(200, "ok\n")
        if request.path != "/metrics" or self._executor is None:
            return plain(404, "not found; the metrics are at /metrics\n")
        # One at a time: many who scrape at once must not cost the engine more than one does.
        async with self._scraping:
            identities = await self._identities()
            others = _Others(self._engine, self._tally, identities.states, self._clock.monotonic())
            text = await asyncio.get_running_loop().run_in_executor(self._executor, others.text)
            body = b"".join((text, *identities.parts()))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, "Server": SERVER})

    async def _identities(self) -> _Identities:
        """Write the series of all identities: consistent for each, and without holding up the loop for long."""
        engine = self._engine
        written = _Identities(self._clock.now())
        keys = engine.own_identities()
        for start in range(0, len(keys), SLICE):
            written.add([engine.status(key) for key in keys[start : start + SLICE] if engine.looks_after(key)])
            await asyncio.sleep(0)
        return written


class _Identities:
    """The series of identities in the Prometheus text format, as they stand at ``now`` (Unix seconds)."""

    def __init__(self, now: float) -> None:
        self._now = now
        self._parts: dict[str, list[bytes]] = {
            name: [f"# HELP {name} {documentation}\n# TYPE {name} gauge\n".encode()]
            for name, documentation in (*((name, documentation) for name, documentation, _ in _VALUES), _STALLED)
        }
        self.states: Multiset[State] = Multiset()

    def add(self, statuses: list[IdentityStatus]) -> None:
        """Write the series of some more identities."""
        now = self._now
        self.states.update(status.state(now) for status in statuses)
        labelled = [
            (f'identity="{_escaped(status.key.name)}",namespace="{_escaped(status.key.namespace)}"', status)
            for status in statuses
        ]
        for name, _documentation, value in _VALUES:
            values = ((labels, value(status, now)) for labels, status in labelled)
            self._put(name, [f"{name}{{{labels}}} {number!r}\n" for labels, number in values if number is not None])
        name = _STALLED[0]
        stalled = ((labels, status.shown_reason(now).value) for labels, status in labelled if status.stalled())
        self._put(name, [f'{name}{{{labels},reason="{reason}"}} 1\n' for labels, reason in stalled])

    def parts(self) -> Iterator[bytes]:
        """Yield the text, family by family."""
        for parts in self._parts.values():
            yield from parts

    def _put(self, name: str, lines: list[str]) -> None:
        self._parts[name].append("".join(lines).encode())


_STALLED: Final = (
    "keyferry_identity_stalled",
    "1 where only a changed resource or credential, or a person, helps; absent for all others.",
)
_VALUES: Final[tuple[tuple[str, str, Callable[[IdentityStatus, float], float | None]], ...]] = (
    (
        "keyferry_identity_ready",
        "1 while a published token can be used, else 0.",
        lambda status, now: int(status.ready(now)),
    ),
    (
        "keyferry_identity_expiration_timestamp_seconds",
        "When the token expires (Unix time); absent while there is none.",
        lambda status, _now: status.expiration_time,
    ),
    (
        "keyferry_identity_renewal_timestamp_seconds",
        "When the token is to be renewed (Unix time); absent while there is none.",
        lambda status, _now: status.renewal_time,
    ),
    (
        "keyferry_identity_reauthorize_by_timestamp_seconds",
        "When the login ends, so that a person must log in again before (Unix time); absent where that is not known.",
        lambda status, _now: status.reauthorize_by_time,
    ),
)
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def _escaped(value: str) -> str:
    """Return a label's value as the text format wants it."""
    return value.translate(_ESCAPES)


class _Tally:
    """What only counting can tell. Every label is of a bounded set: results, reasons, the declared providers."""

    def __init__(self) -> None:
        self.renewals = Counter(
            "keyferry_renewals",
            "Tokens obtained or renewed (success), and tries that failed, by the reason that people see.",
            ("result", "reason", "provider"),
            registry=None,
        )
        self.revocations = Counter(
            "keyferry_revocations",
            "Orders to revoke what a deleted identity left: carried out (success), or given up (failure).",
            ("result",),
            registry=None,
        )
        self.durations = Histogram(
            "keyferry_exchange_duration_seconds",
            "How long one HTTP request to a provider took, whatever came of it.",
            ("provider",),
            registry=None,
            buckets=BUCKETS,
        )
        self._known: dict[str, set[tuple[str, str]]] = {}
        """By provider, the results and reasons that were counted."""
        for result in sorted(set(_REVOCATIONS.values())):
            self.revocations.labels(result)

    def renewal(self, result: str, reason: Reason, provider: str) -> None:
        """Count a renewal, or a try."""
        self._known.setdefault(provider, set()).add((result, reason.value))
        self.renewals.labels(result, reason.value, provider).inc()

    def observe(self, provider: str, seconds: float) -> None:
        """Note how long a request took."""
        self._known.setdefault(provider, set())
        self.durations.labels(provider).observe(seconds)

    def keep_only(self, providers: Collection[str]) -> None:
        """Drop the series of providers that are gone; begin those of new ones at 0, so that the first rise is seen."""
        for gone in self._known.keys() - set(providers) - {""}:
            for result, reason in self._known.pop(gone):
                self.renewals.remove(result, reason, gone)
            self.durations.remove(gone)
        for provider in providers:
            begun = self._known.setdefault(provider, set())
            self.durations.labels(provider)
            for labels in _ALWAYS - begun:
                begun.add(labels)
                self.renewals.labels(*labels, provider)

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted, without the times at which each count began: they would double the series."""
        metrics: tuple[MetricWrapperBase, ...] = (self.renewals, self.revocations, self.durations)
        for metric in metrics:
            for family in metric.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family


class _Others:
    """Everything but the series of identities. Read in the loop, written in a thread."""

    def __init__(self, engine: Engine, tally: _Tally, states: Multiset[State], monotonic: float) -> None:
        self._tally = tally
        self._states = states
        self._queue_depth = engine.queue_depth()
        lanes = engine.lanes()
        self._breakers = {name: int(lane.state(monotonic)) for name, lane in lanes.items()}
        self._in_flight = {name: int(lane.busy) for name, lane in lanes.items()}
        tally.keep_only(lanes.keys())

    def text(self) -> bytes:
        """Return the Prometheus text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield InfoMetricFamily("keyferry_build", "The version of Keyferry.", value={"version": __version__})
        yield GaugeMetricFamily(
            "keyferry_queue_depth", "Identities that wait for an exchange.", value=self._queue_depth
        )
        yield _gauge(
            "keyferry_identities",
            "How many identities are in each state; the states are those of the table of `keyferry run`.",
            "state",
            {state.value: self._states[state] for state in State},
        )
        yield _gauge(
            "keyferry_provider_breaker_state",
            "Whether the provider is asked: 0 closed (yes), 1 half-open (one try), 2 open (it is left alone).",
            "provider",
            self._breakers,
        )
        yield _gauge(
            "keyferry_exchanges_in_flight", "Exchanges under way at the provider.", "provider", self._in_flight
        )
        yield from self._tally.collect()


def _gauge(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


_ALWAYS: Final = frozenset({("success", Reason.ISSUED.value), ("failure", Reason.RETRYING.value)})
"""Results and reasons that every provider's series begin with."""
