"""A plugin for pytest: what it tells of failures in CI, and which tests are run once more after one.

A test beside a real server (Keycloak, Tiled, an API server, a node, a browser) can fail because that server was slow or
was killed for want of memory. ``KEYFERRY_RETRY_TIERS`` names the tiers whose tests are run once more then; the first
failure is still told in full, and counted in the run's last lines. Wherever everything is our own, a failure is a
signal, and is final: so is one of the crash tier, and so is a test that did not end.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

RETRY_VARIABLE = "KEYFERRY_RETRY_TIERS"
FINAL = "crash"
"""The tier in which no failure is forgiven, whatever servers it uses."""
TIMED_OUT = r"^Failed: Timeout \(>"
MOST_RETRIES = 10
"""For a whole run: where more than that fails, it is not chance, and to try it again takes too long."""

LIMIT = pytest.StashKey[Any]()
"""What pytest-timeout (which has no types) keeps of a test: ``pytest_timeout.Settings``."""


def pytest_configure(config: pytest.Config) -> None:
    """Bound the second tries; tell failures at once where nobody watches."""
    retries = bool(os.environ.get(RETRY_VARIABLE))
    if retries:
        config.option.max_suite_reruns = MOST_RETRIES
    if (retries or os.environ.get("CI")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_AtOnce(config))


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give a second try to the tests of the tiers that are named."""
    tiers = set(os.environ.get(RETRY_VARIABLE, "").replace(",", " ").split())
    for item in items:
        named = {mark.name for mark in item.iter_markers()}
        if named & tiers and FINAL not in named:
            item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=[TIMED_OUT]))


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Remember a test's limit, and leave it to pytest-timeout to keep it."""
    item.stash[LIMIT] = settings


def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Set the limit anew: pytest-timeout stops its clock at a failure, and a teardown or a second try can hang too."""
    if isinstance(node, pytest.Item) and (settings := node.stash.get(LIMIT, None)) is not None:
        node.ihook.pytest_timeout_set_timer(item=node, settings=settings)


class _AtOnce:
    """Tells a failure when it happens, where nobody watches: a run that is cut short has said then what it knew."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._retried: list[str] = []
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the whole of it, also where a second try follows; the summary at the end repeats a final one."""
        again = str(report.outcome) == "rerun"
        if again:
            self._retried.append(report.nodeid)
        elif report.failed:
            self._failed.add(report.nodeid)
        else:
            return
        word = "failed, and is run once more" if again else "failed"
        self._write(f"\n{report.nodeid} {word} ({report.when}):\n{report.longreprtext}\n")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Count the second tries after everything else, so that nobody overlooks them."""
        result = yield
        if self._retried:
            names = sorted(set(self._retried))
            self._write(f"\n{len(names)} TESTS FAILED AT FIRST AND WERE RUN ONCE MORE. What failed is above, in full:")
            for name in names:
                self._write(f"  {name}: {'FAILED AGAIN' if name in self._failed else 'passed then'}")
        return result

    def _write(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(text, red=True)
