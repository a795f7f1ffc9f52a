"""``keyferry run``: the engine over files. The one place where its parts are put together."""

from __future__ import annotations

import asyncio
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from keyferry.engine import Engine, EngineSettings, Event, Level, Ports
from keyferry.errors import KeyferryError, StoreError
from keyferry.io.addresses import AddressPolicy
from keyferry.io.clock import SystemClock
from keyferry.io.file_escrow import FileEscrow
from keyferry.io.file_store import FileStore
from keyferry.io.state_dir import StateDir
from keyferry.run.failures import FailureFiles
from keyferry.run.local_publisher import LocalPublisher
from keyferry.run.reporter import LocalReporter
from keyferry.run.resources import ResourceFiles
from keyferry.run.sources import LocalCredentials
from keyferry.spec.target import FileFormat

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from keyferry.engine.credentials import Reference
    from keyferry.io.clock import Clock
    from keyferry.ledger import Checkpoint
    from keyferry.model import ObjectKey
    from keyferry.record import Versioned
    from keyferry.run.settings import RunSettings
    from keyferry.spec.problem import Problem
    from keyferry.spec.resources import Loaded

log = logging.getLogger(__name__)

THREADS: Final = 16
POLL: Final = 4.0
"""Seconds between looks at the resource files and credentials."""
DIRECTORY_POLL: Final = 1.0
"""Seconds between looks at token directories that a client may delete from."""
GONE_AFTER: Final = 2
"""Looks in a row in which an identity must be missing before it is taken for deleted: a file may be half-written."""


class LocalBroker:
    """A broker on one machine: holds a state directory, reads resource files, writes token files.

    Use it in ``async with``. Raises StateHeld where another broker holds the state, StoreUnavailable where it cannot
    be used.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        keep_watch: bool = True,
        clock: Clock | None = None,
        checkpoint: Checkpoint | None = None,
        renew_interval: float = 60.0,
    ) -> None:
        self.settings = settings
        self._keep_watch = keep_watch
        self._clock: Clock = clock or SystemClock()
        self._checkpoint = checkpoint
        self._renew_interval = renew_interval
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="keyferry")
        self._files = ResourceFiles(settings.paths, settings.default_namespace)
        self._credentials = LocalCredentials(settings.secrets, self._executor)
        self._missing: dict[ObjectKey, int] = {}
        self._fingerprints: dict[Reference, tuple[object, ...]] = {}
        self._unknown: dict[ObjectKey, Versioned] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self.problems: tuple[Problem, ...] = ()
        """What is wrong in the resource files just now."""
        self.ready = asyncio.Event()
        """Set once the schedule is built."""

    async def __aenter__(self) -> Self:
        self._state = StateDir.open(self.settings.state)
        try:
            await self._assemble()
        except BaseException:
            self._state.close()
            self._executor.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()
        self._state.close()
        self._executor.shutdown()

    async def start(self) -> None:
        """Read the resources, rebuild the schedule, and begin to work. Raises StoreError."""
        loaded = await self._in_thread(self._files.load)
        self._declare(loaded)
        unknown = await self.engine.start()
        await self._sweep(unknown)
        self._fingerprints = await self._in_thread(self._fingerprint)
        self._tasks.append(asyncio.create_task(self.engine.run(), name="engine"))
        if self._keep_watch:
            self._unknown = {held.record.key: held for held in unknown if self._files.covers(held.record.source)}
            self._tasks.append(asyncio.create_task(self._watch(), name="watch"))
            self._tasks.append(asyncio.create_task(self._watch_directories(), name="watch-directories"))
        self.ready.set()

    async def run(self) -> None:
        """Wait until the engine stops (``stop``)."""
        await asyncio.shield(self._tasks[0])

    def stop(self) -> None:
        """Start nothing new; spends and commits under way are finished."""
        self.engine.stop()

    async def _assemble(self) -> None:
        state = self._state
        self.reporter = LocalReporter(FailureFiles(state.path), self._executor)
        self._publisher = LocalPublisher(self.settings.out, key=state.digest_key, executor=self._executor)
        self._escrow = FileEscrow(state.path, self._executor)
        store = FileStore(state, self._executor)
        ports = Ports(
            store=store,
            escrow=self._escrow,
            credentials=self._credentials,
            publisher=self._publisher,
            reporter=self.reporter,
            clock=self._clock,
            rng=random.SystemRandom(),
            addresses=AddressPolicy(allowed=self.settings.allowed_hosts),
        )
        settings = EngineSettings(holder=state.holder, renew_interval=self._renew_interval)
        self.engine = Engine(ports, settings, checkpoint=self._checkpoint)
        await self._in_thread(self._publisher.prepare)

    # --- resources ----------------------------------------------------------------------------------------------------

    def _declare(self, loaded: Loaded) -> None:
        """Hand the resources to the engine. What is invalid now keeps its last good version."""
        self._credentials.replace_documents(
            {
                (secret.key.namespace, secret.key.name, key): data
                for secret in loaded.secrets
                for key, data in secret.data.items()
            },
            {
                (config.key.namespace, config.key.name, key): data
                for config in loaded.config_maps
                for key, data in config.data.items()
            },
        )
        news = set(loaded.problems) - set(self.problems)
        self.problems = loaded.problems
        for problem in loaded.problems:
            if problem in news:
                self.reporter.event(Event(Level.ERROR, "invalid_resource", problem.reason, str(problem)))
        for provider in loaded.providers:
            self.engine.declare_provider(provider)
        for identity in loaded.identities:
            self.engine.declare_identity(identity)
            self._missing.pop(identity.key, None)

    async def _reload(self) -> None:
        loaded = await self._in_thread(self._files.load)
        self._declare(loaded)
        await self._let_go(loaded)

    async def _let_go(self, loaded: Loaded) -> None:
        """Drop what is no longer declared, once it was missing twice while every file could be read."""
        if not loaded.complete:
            self._missing.clear()
            return
        declared = {identity.key for identity in loaded.identities}
        declared |= {key for kind, key in loaded.invalid if kind == "ServiceIdentity"}
        candidates = (self.engine.roster.entries.keys() | self._unknown.keys()) - declared
        self._missing = {key: self._missing.get(key, 0) + 1 for key in candidates}
        for key, looks in list(self._missing.items()):
            if looks < GONE_AFTER:
                continue
            try:
                held = self._unknown.pop(key, None)
                if held is not None and key not in self.engine.roster.entries:
                    await self.engine.let_go_record(held)
                else:
                    await self.engine.drop_identity(key)
                del self._missing[key]
            except KeyferryError as error:
                log.warning("an identity that is gone could not be put away yet: %s: %s", key, error)
        kept = {(provider.kind.value, provider.key) for provider in loaded.providers}
        kept |= {(kind, key) for kind, key in loaded.invalid}
        for provider_key in self.engine.roster.providers.keys() - kept:
            self.engine.drop_provider(provider_key)

    async def _sweep(self, unknown: list[Versioned]) -> None:
        """Remove answers in escrow that belong to no open claim of any record."""
        claims = [held.record.claim for held in unknown if held.record.claim is not None]
        wanted = {claim.attempt_id for claim in claims} | self.engine.open_claims
        await self._in_thread(lambda: self._escrow.sweep(wanted))

    # --- watching -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice changed resources and credentials."""
        while True:
            await self._clock.sleep(POLL)
            try:
                if self._missing or await self._in_thread(self._files.changed):
                    await self._reload()
                fresh = await self._in_thread(self._fingerprint)
            except (OSError, StoreError) as error:
                log.warning("the resource files could not be looked at: %s", error)
                continue
            changed = [
                reference for reference, mark in fresh.items() if self._fingerprints.get(reference, mark) != mark
            ]
            self._fingerprints = fresh
            if changed:
                self.engine.credentials_changed(changed)

    async def _watch_directories(self) -> None:
        """Put the token directory of a Tiled client back when the client deletes it."""
        while True:
            await self._clock.sleep(DIRECTORY_POLL)
            keys = [
                key
                for key, entry in self.engine.roster.entries.items()
                if entry.revision and _deletable(entry.resource.spec.target.files)
            ]
            if keys:
                for key in await self._publisher.missing(keys):
                    self.engine.republish(key)

    def _fingerprint(self) -> dict[Reference, tuple[object, ...]]:
        return self._credentials.fingerprints(self.engine.roster.references())

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _deletable(files: Any) -> bool:
    return any(file.format is FileFormat.TILED for file in files)
