"""Fixtures that the whole suite shares: real servers, one of each for a test run, with and without pytest-xdist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import pytest_asyncio

from tests.support import browser as browser_support
from tests.support import keycloak as keycloak_server
from tests.support import tiled as tiled_server_module
from tests.support.servers import SharedRun
from tests.support.tier import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from playwright.async_api import Browser

    from tests.support.keycloak import Keycloak, Realm
    from tests.support.tiled import Login, TiledServer

pytest_plugins = ["tests.support.order", "tests.support.retries"]

SHARED_RUN = pytest.StashKey[SharedRun]()
RUN_DIRECTORY = "keyferry_run_directory"

# Neither may fail because a machine is slow: how long an example takes says nothing about what it shows.
hypothesis.settings.register_profile("keyferry", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("keyferry")


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run in the process that a person started; join it in a worker of pytest-xdist."""
    worker = getattr(config, "workerinput", None)
    config.stash[SHARED_RUN] = SharedRun.create() if worker is None else SharedRun(Path(worker[RUN_DIRECTORY]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a new worker where the run's directory is."""
    node.workerinput[RUN_DIRECTORY] = str(node.config.stash[SHARED_RUN].directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let go of the servers; in the process that began the run, wait for their end."""
    run = config.stash.get(SHARED_RUN, None)
    if run is None:
        return  # the configuration failed before
    if hasattr(config, "workerinput"):
        run.lease.release()
    else:
        run.close()


@pytest.fixture(scope="session")
def shared_run(pytestconfig: pytest.Config) -> SharedRun:
    """Return the servers and the private directory of this run, the same in all workers."""
    return pytestconfig.stash[SHARED_RUN]


@pytest.fixture(scope="session")
def keycloak(shared_run: SharedRun) -> Keycloak:
    """Return the run's real Keycloak; the tier ``keycloak`` is skipped, or fails, where it cannot run."""
    require("keycloak", keycloak_server.problem())
    return keycloak_server.shared_keycloak(shared_run)


@pytest.fixture(scope="session")
def keycloak_realm(keycloak: Keycloak) -> Realm:
    """Return the realm ``keyferry``: Keycloak's own lifetimes, refresh tokens that may be used again."""
    return keycloak.realm(keycloak_server.MAIN_REALM)


@pytest.fixture(scope="session")
def rotating_realm(keycloak: Keycloak) -> Realm:
    """Return the realm ``rotating``: access tokens of a few seconds, refresh tokens that are good once."""
    return keycloak.realm(keycloak_server.ROTATING_REALM, keycloak_server.rotating_options())


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Return the run's Chromium, for tests in the session's loop; without one, the tier ``browser`` cannot run."""
    require("browser", browser_support.problem())
    async with browser_support.running_browser() as running:
        yield running


@pytest.fixture(scope="session")
def tiled_server(shared_run: SharedRun) -> TiledServer:
    """Return the run's real Tiled server; the tier ``tiled`` is skipped, or fails, where it cannot run."""
    require("tiled", tiled_server_module.problem())
    return tiled_server_module.shared_tiled(shared_run)


@pytest.fixture
def start_tiled(tmp_path: Path) -> Iterator[Callable[..., TiledServer]]:
    """Return a function that starts a Tiled server of the test's own, with the lifetimes given (in seconds).

    ``login`` is a way to log in through a browser.
    """
    require("tiled", tiled_server_module.problem())
    started: list[TiledServer] = []

    def start(login: Login | None = None, **lifetimes: int) -> TiledServer:
        directory = tmp_path / f"tiled-{len(started)}"
        directory.mkdir(mode=0o700)
        started.append(tiled_server_module.start_tiled(directory, tiled_server_module.Lifetimes(**lifetimes), login))
        return started[-1]

    yield start
    for server in started:
        server.stop()
