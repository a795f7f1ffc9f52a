"""Resources and answers that no sane person or provider would write."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyferry.run.resources import ResourceFiles
from tests.engine.clocks import FastClock
from tests.engine.world import (
    PASSWORD_GRANT,
    REFRESH,
    World,
    exchange_of,
    identity,
    key,
    secret,
    until,
)
from tests.support.faults import Fault, FaultKind
from tests.support.issuer import FaultIssuer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyferry.run.broker import LocalBroker

QUIET = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], database=None)

# --- resources -------------------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "0s", "-5m", "http://", "https://a b/", "../..", "\x00", "a" * 5000, "ClientCredentials", "${x}"]
    ),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=3), max_size=3),
)


def samples(issuer: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "keyferry.dev/v1alpha1",
            "kind": "TokenProvider",
            "metadata": {"name": "odd-idp"},
            "spec": {
                "type": "OAuth",
                "oauth": {
                    "issuer": issuer,
                    "endpoints": {"token": f"{issuer}/token"},
                    "client": {"id": "bot", "secretsFrom": [{"secretKeyRef": {"name": "odd", "key": "secret"}}]},
                    "refreshTokens": {"rotation": "Auto", "reuseWindow": "0s", "inDoubt": "ReplayOnce"},
                    "lifetime": {"assumed": "5m", "maximum": "24h"},
                },
                "limits": {"requestsPerSecond": 10, "burst": 20, "concurrency": 8, "timeout": "10s"},
            },
        },
        identity(
            "odd",
            "odd-idp",
            scopes=["read"],
            parameters={"acr": "2"},
            renewal={"before": "10m"},
            consumers=[{"identityName": "x"}],
        ),
        identity("odd-seeded", "odd-idp", grant=REFRESH, target={"files": [{"format": "Json", "name": "a.json"}]}),
        identity("odd-person", grant=PASSWORD_GRANT, deletionPolicy="Retain", expectedSubject={"subject": "ada"}),
        identity("odd-link", grant=exchange_of("odd")),
        secret("odd", secret="x"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"ca.crt": "x"}},
    ]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a document."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from places(value, (*path, name))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Return the text of a file: good resources of which a few places were replaced, dropped, doubled or cut off."""
    documents = copy.deepcopy(samples("http://127.0.0.1:1"))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(places(documents))))
        holder: Any = documents
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for part in path[:-1]:
                holder = holder[part]
            match draw(st.sampled_from(["replace", "drop", "add", "nest"])):
                case "replace":
                    holder[path[-1]] = draw(ODD)
                case "drop":
                    del holder[path[-1]]
                case "add":
                    holder[path[-1]][draw(st.text(max_size=8))] = draw(ODD)
                case _:
                    holder[path[-1]] = [holder[path[-1]]]
    text = yaml.safe_dump_all(documents, allow_unicode=draw(st.booleans()))
    if draw(st.booleans()):
        text = text[: draw(st.integers(0, len(text)))]
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + draw(st.sampled_from(["\t", "\0", "&a *a", "!!python/object:os.system", "{", "---\n", "\ufeff"]))
            + text[at:]
        )
    return text


class Bench:
    """An event loop with a broker that is told of resources but exchanges nothing."""

    def __init__(self, base: Path) -> None:
        self.runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self.world, self.broker = self.runner.run(self._start(base))

    async def _start(self, base: Path) -> tuple[World, LocalBroker]:
        clock = FastClock(20)
        # Tokens that outlive the test: nothing here is to be renewed but on demand, however slow the machine.
        issuer = await self._stack.enter_async_context(FaultIssuer(clock=clock.now))
        issuer.service.settings.access_lifetime = 86_000.0
        world = World(base, issuer, clock)
        world.basics(limits={"requestsPerSecond": 1000, "burst": 1000})
        world.write("good.yaml", identity("good"), identity("kept", scopes=["read"]))
        broker = await self._stack.enter_async_context(world.broker(keep_watch=False))
        await world.fresh("good", "kept")
        return world, broker

    def close(self) -> None:
        self.runner.run(self._stack.aclose())
        self.runner.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_no_resource_file_stops_the_broker_or_touches_its_neighbours(bench: Bench) -> None:
    world, broker = bench.world, bench.broker
    engine, good = broker.engine, world.token("good")

    @QUIET
    @given(text=mutated())
    def check(text: str) -> None:
        (world.resources / "odd.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        bench.runner.run(broker._reload(changed=True))
        assert all(problem.message for problem in broker.problems)
        entry = engine.roster.entries[key("good")]
        assert entry.refusal is None
        assert entry.resource.spec.scopes == ()
        for status in engine.statuses():
            assert status.reason
        bench.runner.run(asyncio.sleep(0))

    check()
    assert world.token("good") == good
    (world.resources / "odd.yaml").unlink()
    bench.runner.run(_goes_on(world))


async def _goes_on(world: World) -> None:
    world.renew("good")
    await world.fresh("good", revision=2)


@QUIET
@given(data=st.binary(max_size=300))
def test_no_bytes_are_too_odd_for_a_resource_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_bytes(data)
    loaded = ResourceFiles((tmp_path,)).load()
    assert not loaded.identities


# --- answers ---------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "a\nb", "tök", "x" * 9000, "Bearer", "bearer", "DPoP", "N_A", "3600", "-1", "1e9999", "NaN"]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
FIELDS = st.sampled_from(
    [
        "access_token",
        "token_type",
        "expires_in",
        "refresh_token",
        "refresh_expires_in",
        "scope",
        "id_token",
        "issued_token_type",
        "error",
        "error_description",
    ]
)
OBJECTS = st.dictionaries(FIELDS, VALUES, max_size=8).map(
    lambda fields: json.dumps({"access_token": "good-token", "token_type": "Bearer"} | fields)
)
BODIES = st.one_of(
    OBJECTS,
    OBJECTS.flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end])),
    VALUES.map(json.dumps),
    st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.sampled_from(
        ["[" * 100_000, '{"access_token":' * 5_000, "<html>", "{}", '{"access_token": "a", "access_token": 1}']
    ),
)
STATUSES = st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 418, 500, 503])


@pytest.mark.slow
@pytest.mark.parametrize(("grant", "examples"), [("ClientCredentials", 80), ("RefreshToken", 25)])
def test_no_answer_stops_the_broker_or_reaches_a_file_unless_it_is_a_token(
    bench: Bench, grant: str, examples: int
) -> None:
    world, broker = bench.world, bench.broker
    world.write("seed.yaml", secret("seed", token=world.issuer.seed_refresh_token("bot", "ada")))
    name = "good" if grant == "ClientCredentials" else "seeded"
    world.write("good.yaml", identity("good"), identity("kept", scopes=["read"]), identity("seeded", grant=REFRESH))
    bench.runner.run(broker._reload(changed=True))
    bench.runner.run(world.fresh(name))
    rounds = 0

    async def play(status: int, body: str) -> None:
        world.issuer.faults.clear()
        before, sent, told = world.token(name), len(world.requests()), len(world.told.events)
        world.issuer.faults.add(Fault(FaultKind.BODY, times=1, status=status, body=body))
        for lane in broker.engine.lanes().values():
            lane.succeeded()  # its rest is what other tests are about
        world.renew(name)
        await until(lambda: len(world.told.events) > told and not world.busy(name))
        token = world.token(name)
        if token != before:
            assert token
            assert all(0x20 <= ord(char) <= 0x7E for char in token)
            assert token in body or len(world.requests()) > sent + 1
            written = json.loads(world.file(name, "token.json").read_text())
            assert written["access_token"] == token
            assert written["token_type"] == "Bearer"
        else:
            assert token, "last-good stays"

    @settings(QUIET, max_examples=examples)
    @given(status=STATUSES, body=BODIES)
    def check(status: int, body: str) -> None:
        nonlocal rounds
        rounds += 1
        if grant == "RefreshToken":
            # Most odd answers end or put in doubt a session, and each begins with a new seed.
            seed = world.issuer.seed_refresh_token("bot", "ada")
            world.write("seed.yaml", secret("seed", token=seed))
            bench.runner.run(broker._reload(changed=True))
        bench.runner.run(play(status, body))

    check()
    assert rounds >= examples
    assert not [event for event in world.told.events if "defect" in event.message]
    bench.runner.run(_still_works(world))


async def _still_works(world: World) -> None:
    world.issuer.faults.clear()
    assert world.running is not None
    for lane in world.running.engine.lanes().values():
        lane.succeeded()
    world.renew("kept")
    await world.fresh("kept", revision=2)
