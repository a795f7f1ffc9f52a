"""Watches: kopf for our own resources, and a small reflector for Secrets, which kopf cannot select by label.

kopf runs in a thread and loop of its own: when it stops it cancels every task of its loop, and would kill a token
exchange under way. Its handlers (``on.event`` only) keep no state and write nothing; they hand each object over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, cast

import kopf

from keyferry_operator.client import CLUSTER_PROVIDERS, IDENTITIES, PAGE, PROVIDERS, Kind
from keyferry_operator.errors import ApiError
from keyferry_operator.kopf_session import connect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

KINDS: Final[tuple[Kind, ...]] = (PROVIDERS, CLUSTER_PROVIDERS, IDENTITIES)
RESTART_PAUSE: Final = 5.0
KOPF_END: Final = 10.0
"""Seconds that kopf is given to end; what it writes is nothing, so nothing is lost with it."""
TLS_END: Final = 0.1
"""Seconds for which the loop goes on after kopf, which does not wait until its connections are closed."""
LEAVE_TRIES: Final = 5
GONE: Final = 410
NEVER_ASKED: Final = "Task exception was never retrieved"
"""How asyncio begins what it says of a task that failed while nobody waited for it."""


@dataclass(frozen=True, slots=True)
class Change:
    """An object was seen, changed, or deleted."""

    kind: Kind
    deleted: bool
    body: Object
    listed: bool = False
    """It is from a list, which tells how things are; a watch may tell late how they were."""


@dataclass(frozen=True, slots=True)
class WatchTimes:
    """Seconds; the defaults are right for clusters."""

    inactivity: float = 75.0
    """Of silence after which a watch counts as dead: the API server sends a bookmark each minute."""
    sweep: float = 600.0
    """Between comparisons of all that is known with all that is there."""


DEFAULT_TIMES: Final = WatchTimes()


Handler = Callable[[Change], None]
"""Called in the operator's own loop."""


class ResourceWatch:
    """kopf in a thread, restarted when it ends by itself."""

    def __init__(
        self,
        login: Callable[[], kopf.ConnectionInfo],
        namespaces: Sequence[str],
        kinds: Sequence[Kind],
        handler: Handler,
        times: WatchTimes = DEFAULT_TIMES,
        *,
        since: Mapping[str, str],
    ) -> None:
        """``since`` has the version at which a list of ours ended, by the URL path of what was listed."""
        self._login = login
        self._since = dict(since)
        self._namespaces = tuple(namespaces)
        self._kinds = tuple(kinds)
        self._handler = handler
        self._times = times
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._end: Callable[[], object] = lambda: None
        """Ends kopf, from any thread."""
        self._thread = threading.Thread(target=self._supervise, name="kopf", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    async def stop(self) -> None:
        """End the watch; waits for kopf's own end."""
        self._stop.set()
        with contextlib.suppress(RuntimeError):  # its loop may have ended by itself
            self._end()
        await asyncio.to_thread(self._thread.join, 10.0)

    def _supervise(self) -> None:
        while not self._stop.is_set():
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(report_all_but_expiry)
            try:
                loop.run_until_complete(self._operate())
            except Exception as error:  # noqa: BLE001 - whatever ends kopf, watching must go on
                log.warning("the watch ended with %s; starting it again", type(error).__name__)
            finally:
                _leave(loop)
            self._stop.wait(RESTART_PAUSE)

    async def _operate(self) -> None:
        logging.getLogger("kopf._core.reactor.running").addFilter(_not_of_signals)
        # A flag of this loop: for one of another thread kopf would keep a thread of its own waiting, and with it this
        # loop, should kopf end by itself (as it does when a watch is answered 410 or 403).
        ending, loop = asyncio.Event(), asyncio.get_running_loop()
        self._end = lambda: loop.call_soon_threadsafe(ending.set)
        if self._stop.is_set():
            return
        registry = kopf.OperatorRegistry()
        for kind in self._kinds:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(self._forwarder(kind))
        kopf.on.login(registry=registry)(self._connect)
        ourselves = asyncio.current_task()
        roots = await kopf.spawn_tasks(
            registry=registry,
            settings=_settings(self._times),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=ending,
        )
        running = asyncio.create_task(kopf.run_tasks(roots, ignored=frozenset({ourselves} if ourselves else ())))
        await asyncio.wait(roots, return_when=asyncio.FIRST_COMPLETED)
        # One of its main tasks ended, so it ends. It may wait for ever, though, for a watch whose connection closes
        # under it: that asks for new credentials, which nobody gives any more.
        await asyncio.wait({running}, timeout=KOPF_END)
        await asyncio.sleep(TLS_END)
        if running.done():
            running.result()
        elif not self._stop.is_set():
            log.warning("the watch does not end by itself; leaving it, and starting another")

    async def _connect(self, **_: Any) -> kopf.AiohttpSession:
        # Not a plain function, which kopf would run in a thread without a loop.
        return connect(self._login(), self._since)

    def _forwarder(self, kind: Kind) -> Callable[..., Awaitable[None]]:
        # Not a plain function, which kopf would run in yet another thread.
        async def forward(event: kopf.RawEvent, **_: Any) -> None:
            # The parsed JSON itself: kopf only reads it, and what it wraps it in is a view for its own thread.
            self._loop.call_soon_threadsafe(self._handler, _change(kind, event))

        return forward


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop with what is left in it, also with tasks that do not heed their cancellation."""
    for _ in range(LEAVE_TRIES):
        left = asyncio.all_tasks(loop)
        if not left:
            break
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=1.0))
    else:
        loop.set_exception_handler(lambda _loop, _context: None)  # of tasks that are pending when they are dropped
    loop.close()


def _change(kind: Kind, event: kopf.RawEvent) -> Change:
    kind_of_event = event["type"]  # None: kopf's own list
    return Change(kind, kind_of_event == "DELETED", cast("Object", event["object"]), listed=kind_of_event is None)


def report_all_but_expiry(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leave out that nobody asked a task of kopf's why it ended, where a watch had expired: it is begun anew."""
    if context.get("message") != NEVER_ASKED or getattr(context.get("exception"), "status", None) != GONE:
        loop.default_exception_handler(context)


def _not_of_signals(record: logging.LogRecord) -> bool:
    """Leave out that kopf does not mind the process's signals, which is as it should be and would worry people."""
    return not record.getMessage().startswith("OS signals are ignored")


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps kopf from copying each object to compare it with itself: ``on.event`` asks for no differences."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> Any:
        """Return nothing to compare."""
        del body, extra_fields

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return nothing to compare with."""
        del body
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


def _settings(times: WatchTimes) -> kopf.OperatorSettings:
    """Return settings under which kopf writes nothing, never gives up, and notices a dead connection."""
    settings = kopf.OperatorSettings()
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 630
    settings.watching.inactivity_timeout = times.inactivity
    settings.watching.chunk_size = PAGE  # ten thousand parsed objects at once are 200 MB
    settings.queueing.idle_timeout = 0.1  # until then each object has a task, and is kept by it
    settings.queueing.worker_limit = None
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.finalizer = ""
    settings.persistence.diffbase_storage = _NoDiffs()
    return settings


class _Backoffs:
    """Yields pauses without end: kopf's own default gives up after a minute and takes the watch with it."""

    def __iter__(self) -> Any:
        return itertools.chain((0.5, 1.0, 2.0, 5.0), itertools.repeat(15.0))


class Reflector:
    """Lists and watches the objects of a kind that carry a label; relists when the server forgot where we were."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind,
        labels: str,
        handler: Handler,
        *,
        namespaces: Sequence[str] = (),
        times: WatchTimes = DEFAULT_TIMES,
    ) -> None:
        self._client = client
        self._kind = kind
        self._labels = labels
        self._handler = handler
        self._times = times
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._known: dict[str | None, dict[str, _Head]] = {namespace: {} for namespace in self._namespaces}
        self._read: dict[str | None, str] = {}
        """The version at which a list ended from which the watch is to go on."""

    async def read(self, take: Handler) -> None:
        """List what is there, for ``take``; ``run`` goes on from there. Raises ApiError."""
        for namespace in self._namespaces:
            self._read[namespace] = await self._list(namespace, take)

    async def run(self) -> None:
        """Watch until cancelled."""
        await asyncio.gather(*(self._follow(namespace) for namespace in self._namespaces))

    async def _follow(self, namespace: str | None) -> None:
        pauses = iter(_Backoffs())
        while True:
            try:
                version = self._read.pop(namespace, "") or await self._list(namespace, self._handler)
                while True:
                    version = await self._watch(namespace, version)
                    pauses = iter(_Backoffs())
            except ApiError as error:
                if error.status != GONE:
                    log.warning("%s; listing again", error)
                await asyncio.sleep(next(pauses))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                log.warning("what the API server tells of %s is odd (%s)", self._kind.plural, type(error).__name__)
                await asyncio.sleep(next(pauses))

    async def _list(self, namespace: str | None, take: Handler) -> str:
        known, before = self._known[namespace], self._known[namespace].copy()
        since = ""
        async for version, page in self._client.listing(self._kind, namespace, labels=self._labels):
            for body in page:
                before.pop(body["metadata"]["uid"], None)
                known[body["metadata"]["uid"]] = _Head.of(body)
                take(Change(self._kind, deleted=False, body=body, listed=True))
            since = version
        for uid, head in before.items():
            del known[uid]
            take(Change(self._kind, deleted=True, body=head.body(uid)))
        return since

    async def _watch(self, namespace: str | None, version: str) -> str:
        known = self._known[namespace]
        events = self._client.watch(
            self._kind, namespace, labels=self._labels, version=version, inactivity=self._times.inactivity
        )
        async for event in events:
            body = event.get("object", {})
            if event.get("type") == "ERROR":
                raise ApiError("the watch must begin anew", status=int(body.get("code", 0)))
            version = str(body["metadata"]["resourceVersion"])
            if event.get("type") == "BOOKMARK":
                continue
            uid = body["metadata"]["uid"]
            deleted = event.get("type") == "DELETED"
            if deleted:
                known.pop(uid, None)
            else:
                known[uid] = _Head.of(body)
            self._handler(Change(self._kind, deleted=deleted, body=body))
        return version


class _Head(NamedTuple):
    """What is needed to tell of an object's end: nothing of its content."""

    namespace: str
    name: str
    version: str

    @classmethod
    def of(cls, body: Object) -> Self:
        metadata = body["metadata"]
        return cls(sys.intern(metadata.get("namespace", "")), metadata["name"], metadata["resourceVersion"])

    def body(self, uid: str) -> Object:
        """Return as much of the object as is known."""
        return {
            "metadata": {"namespace": self.namespace, "name": self.name, "resourceVersion": self.version, "uid": uid}
        }
