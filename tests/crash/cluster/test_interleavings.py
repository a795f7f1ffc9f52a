"""Two brokers over the private state in Secrets, each with a store of its own, on a real API server."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import kopf
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from keyferry_operator.catalog import Catalog
from keyferry_operator.client import KubeClient
from keyferry_operator.state import SecretStore
from tests.crash.interleavings import KEY, Interleavings, PausingStore

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from keyferry.model import ObjectKey
    from keyferry.record import Record, Versioned
    from tests.support.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.crash, pytest.mark.slow]

T = TypeVar("T")
PATIENCE = 180.0


class Remote:
    """A namespace for private state, and a loop in a thread: the brokers are coroutines that no loop drives."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        access = cluster.access
        self._namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()
        self._client = KubeClient(kopf.ConnectionInfo(server=access.url, ca_data=access.ca, token=access.token))
        self.run(self._client.__aenter__())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do one operation to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def store(self) -> SecretStore:
        """Return a store as a new process has it, after it has listed what there is."""
        store = SecretStore(self._client, self._namespace, Catalog(), origin="cluster", digest_key=b"k" * 32)

        async def start() -> None:
            async for _ in store.records():
                pass

        self.run(start())
        return store

    def close(self) -> None:
        self.run(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


class RemoteStore(PausingStore):
    """A broker's own view of the Secrets. Troubles and the history are those of all."""

    def __init__(self, remote: Remote, uid: str, others: RemoteStore | None = None) -> None:
        super().__init__()
        self.uid = uid
        self.origin = "cluster"
        self._remote = remote
        self._secrets = remote.store()
        if others is not None:
            self.troubles, self.reads, self.history, self.gone = (
                others.troubles,
                others.reads,
                others.history,
                others.gone,
            )

    def peek(self, key: ObjectKey) -> Versioned | None:
        assert key == KEY
        return self._remote.run(self._secrets.read(KEY, self.uid))

    def holder_is_gone(self, holder: str) -> bool:
        return self._secrets.holder_is_gone(holder)

    def _put(self, held: Versioned | None, record: Record) -> Versioned:
        return self._remote.run(self._secrets.create(record) if held is None else self._secrets.replace(held, record))


class RemoteInterleavings(Interleavings):
    """The same machine, over Secrets."""

    remote: Remote

    def new_store(self) -> PausingStore:
        return RemoteStore(self.remote, str(uuid.uuid4()))

    def store_of(self, holder: str) -> PausingStore:
        assert holder
        assert isinstance(self.store, RemoteStore)
        return RemoteStore(self.remote, self.store.uid, self.store)


@pytest.fixture
def remote(cluster: Cluster) -> Iterator[Remote]:
    with cluster.namespace("home") as home:
        remote = Remote(cluster, home)
        yield remote
        remote.close()


def test_every_order_of_events(remote: Remote) -> None:
    class Machine(RemoteInterleavings):
        pass

    Machine.remote = remote
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
