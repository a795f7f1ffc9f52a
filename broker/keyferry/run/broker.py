"""``keyferry run``: the engine over files. The one place where its parts are put together."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final, Self

from keyferry.engine import Engine, EngineSettings, Event, Level, Ports
from keyferry.engine.roster import identity_refs
from keyferry.errors import KeyferryError
from keyferry.io.addresses import AddressPolicy
from keyferry.io.clock import SystemClock
from keyferry.io.file_escrow import FileEscrow
from keyferry.io.file_store import FileStore
from keyferry.io.state_dir import StateDir
from keyferry.io.threads import Threads, in_thread
from keyferry.model import ObjectKey
from keyferry.render import Endpoint
from keyferry.run.failures import FailureFiles
from keyferry.run.local_publisher import LocalPublisher
from keyferry.run.memory import building, settle
from keyferry.run.reporter import LocalReporter
from keyferry.run.resources import ResourceFiles
from keyferry.run.sources import LocalCredentials
from keyferry.run.viewers import LocalViewers
from keyferry.spec.target import FileFormat
from keyferry.web.presented import ACCESS_KEY_ID, lasting_placeholder, part_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType
    from typing import Any

    from keyferry.engine.credentials import Reference
    from keyferry.io.clock import Clock
    from keyferry.ledger import Checkpoint
    from keyferry.record import Versioned
    from keyferry.run.settings import RunSettings
    from keyferry.spec.problem import Problem
    from keyferry.spec.resources import IdentityResource, Loaded

log = logging.getLogger(__name__)

THREADS: Final = 16
POLL: Final = 4.0
"""Seconds between looks at the resource files and credentials."""
DIRECTORY_POLL: Final = 1.0
"""Seconds between looks at token directories that a client may delete from."""
GONE_AFTER: Final = 2
"""Looks in a row in which an identity must be missing before it is taken for deleted: a file may be half-written."""


Documents = dict[tuple[str, str, str], tuple[str, bytes]]
"""From namespace, name and key to the file of a Secret or ConfigMap document, and what it holds."""


class LocalBroker:
    """A broker on one machine: holds a state directory, reads resource files, writes token files.

    Use it in ``async with``. With ``only`` it works on those identities, on whose tokens they present, and on what
    ``include`` adds, and lets nothing go. Raises StateHeld where another broker holds the state, StoreUnavailable
    where it cannot be used.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        only: Iterable[ObjectKey] | None = None,
        keep_watch: bool = True,
        clock: Clock | None = None,
        checkpoint: Checkpoint | None = None,
        renew_interval: float = 60.0,
        prompts: bool = True,
    ) -> None:
        """``prompts`` tells whether anybody would see it when a person is asked; else nobody is."""
        self.settings = settings
        self._only = None if only is None else set(only)
        self._loaded: Loaded | None = None
        self._keep_watch = keep_watch
        self.clock: Clock = clock or SystemClock()
        self._checkpoint = checkpoint
        self._renew_interval = renew_interval
        self.prompts = prompts
        self._executor = Threads(THREADS, name="keyferry")
        self._files = ResourceFiles(settings.paths, settings.default_namespace)
        self._credentials = LocalCredentials(settings.secrets, self._executor)
        self._missing: dict[ObjectKey, int] = {}
        self._fingerprints: dict[Reference, tuple[object, ...]] = {}
        self._unknown: dict[ObjectKey, Versioned] = {}
        self._documents: tuple[Documents, Documents] = ({}, {})
        self._documents_kept = False
        self._deletable: list[ObjectKey] = []
        """Identities with files that a client may delete."""
        self._tasks: list[asyncio.Task[Any]] = []
        self.problems: tuple[Problem, ...] = ()
        """What is wrong in the resource files just now."""
        self.loopback = ""
        """URL that loopback endpoints are served below, where they are; set it before ``start``."""
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
        # The threads first: while one may still write, nobody else may hold the state.
        await asyncio.to_thread(self._executor.shutdown)
        self._state.close()

    async def load(self) -> Loaded:
        """Read the resources and do nothing with them yet; ``start`` goes on with what was read here."""
        with building():
            self._loaded = await self._in_thread(self._files.load)
        return self._loaded

    async def start(self) -> None:
        """Read the resources, rebuild the schedule, and begin to work. Raises StoreError."""
        loaded = self._loaded or await self.load()
        self._loaded = None
        with building():
            self._declare(loaded)
            unknown = await self.engine.start()
        settle(len(self.engine.roster.entries))
        await self._sweep(unknown)
        self._fingerprints = await self._in_thread(self._fingerprint)
        self._tasks.append(asyncio.create_task(self.engine.run(), name="engine"))
        if self._keep_watch:
            self._unknown = {held.record.key: held for held in unknown if self._files.covers(held.record.source)}
            self._tasks.append(asyncio.create_task(self._watch(), name="watch"))
            self._tasks.append(asyncio.create_task(self._watch_directories(), name="watch-directories"))
        self.ready.set()

    @property
    def selective(self) -> bool:
        """Tell whether it works on some of the declared identities only."""
        return self._only is not None

    async def include(self, key: ObjectKey) -> bool:
        """Look after an identity that ``only`` left out, from now on; False where no resource file declares it."""
        if key in self.engine.roster.entries:
            return True
        if self._only is None:
            return False
        loaded = await self._in_thread(self._files.load)
        if all(identity.key != key for identity in loaded.identities):
            return False
        self._only.add(key)
        self._declare(loaded)
        return key in self.engine.roster.entries

    def endpoint(self, key: ObjectKey) -> Endpoint | None:
        """Return the loopback endpoints of an identity, where they are served."""
        if not self.loopback:
            return None
        placeholder = lasting_placeholder(self._state.digest_key, key)
        return Endpoint(f"{self.loopback}/{part_of(key, self.settings.default_namespace)}", placeholder, ACCESS_KEY_ID)

    def directory(self, key: ObjectKey) -> Path:
        """Return where an identity's files are."""
        return self._publisher.directory(key)

    async def run(self) -> None:
        """Wait until the engine stops (``stop``)."""
        await asyncio.shield(self._tasks[0])

    def stop(self) -> None:
        """Start nothing new; spends and commits under way are finished."""
        self.engine.stop()

    async def _assemble(self) -> None:
        state = self._state
        self.reporter = LocalReporter(FailureFiles(state.path), self._executor)
        self._publisher = LocalPublisher(
            self.settings.out, key=state.digest_key, executor=self._executor, endpoint=self.endpoint
        )
        self._escrow = FileEscrow(state.path, self._executor)
        store = FileStore(state, self._executor)
        policy = AddressPolicy(allowed=self.settings.allowed_hosts)
        ports = Ports(
            store=store,
            escrow=self._escrow,
            credentials=self._credentials,
            publisher=self._publisher,
            reporter=self.reporter,
            clock=self.clock,
            rng=random.Random(),  # noqa: S311 - for jitter, not for secrets
            addresses=lambda _resource: policy,
            admits=lambda _namespace, _resource: "",  # the files are the user's own
        )
        settings = EngineSettings(
            holder=state.holder,
            prompts=self.prompts,
            renew_interval=self._renew_interval,
            page_url=self.settings.page_url,
        )
        self.engine = Engine(ports, settings, checkpoint=self._checkpoint)
        if self.settings.page_url:
            self.engine.approvals.viewers = await self._in_thread(lambda: LocalViewers.open(state.path))
        await self._in_thread(self._publisher.prepare)

    # --- resources ----------------------------------------------------------------------------------------------------

    def _declare(self, loaded: Loaded) -> None:
        """Hand the resources to the engine. What is invalid now keeps its last good version."""
        self._take_documents(loaded)
        news = set(loaded.problems) - set(self.problems)
        self.problems = loaded.problems
        for problem in loaded.problems:
            if problem in news:
                self.reporter.event(Event(Level.ERROR, "invalid_resource", problem.reason, str(problem)))
        for provider in loaded.providers:
            self.engine.declare_provider(provider)
        for identity in self._selected(loaded):
            self.engine.declare_identity(identity)
            self._missing.pop(identity.key, None)
        entries = self.engine.roster.entries
        self._deletable = [key for key, entry in entries.items() if _deletable(entry.resource.spec.target.files)]

    def _take_documents(self, loaded: Loaded) -> None:
        """Hand the Secret and ConfigMap documents to whoever reads credentials.

        Those that vanished are kept in memory while they may be only unreadable, and until what was issued with them
        is revoked: they often go together with the identity and are still needed for that.
        """
        declared = {identity.key for identity in loaded.identities}
        troubled = {problem.source for problem in loaded.problems}
        going = self.engine.roster.entries.keys() - declared or self.engine.leaving or self.engine.open_revocations
        everything = bool(going) or not loaded.complete
        documents: list[Documents] = []
        self._documents_kept = everything and self._only is None
        for found, before in ((loaded.secrets, self._documents[0]), (loaded.config_maps, self._documents[1])):
            there = {
                (item.key.namespace, item.key.name, name): (item.source, data)
                for item in found
                for name, data in item.data.items()
            }
            kept = {place: held for place, held in before.items() if everything or held[0] in troubled}
            documents.append({**kept, **there})
        self._documents = (documents[0], documents[1])
        secrets, configs = ({place: data for place, (_, data) in part.items()} for part in self._documents)
        self._credentials.replace_documents(secrets, configs)

    def _selected(self, loaded: Loaded) -> Iterable[IdentityResource]:
        """Return the identities to work on: all, or those of ``only`` with all whose tokens they present."""
        if self._only is None:
            return loaded.identities
        declared = {identity.key: identity for identity in loaded.identities}
        selected: dict[ObjectKey, IdentityResource] = {}
        pending = sorted(self._only)
        while pending:
            key = pending.pop()
            if key in declared and key not in selected:
                selected[key] = declared[key]
                pending += [ObjectKey(key.namespace, name) for name in identity_refs(declared[key].spec)]
        return selected.values()

    async def _reload(self, *, changed: bool) -> None:
        loaded = await self._in_thread(self._files.load)
        self._declare(loaded)
        if self._only is None:
            await self._let_go(loaded, changed=changed)

    async def _let_go(self, loaded: Loaded, *, changed: bool) -> None:
        """Drop what is no longer declared, once it was missing twice while all files could be read and none changed.

        What was declared in a file that has a mistake now stays: the mistake may be what hides it.
        """
        troubled = {problem.source for problem in loaded.problems}
        if not loaded.complete:
            self._missing.clear()
            return
        declared = {identity.key for identity in loaded.identities}
        declared |= {key for kind, key in loaded.invalid if kind == "ServiceIdentity"}
        candidates = (self.engine.roster.entries.keys() | self._unknown.keys() | self.engine.leaving) - declared
        self._missing = {
            key: 1 if changed else self._missing.get(key, 0) + 1
            for key in candidates
            if self._source(key) not in troubled
        }
        for key, looks in list(self._missing.items()):
            if looks < GONE_AFTER:
                continue
            try:
                held = self._unknown.get(key)
                if held is not None and key not in self.engine.roster.entries:
                    await self.engine.let_go_record(held)
                else:
                    await self.engine.drop_identity(key)
                self._unknown.pop(key, None)
                del self._missing[key]
            except KeyferryError as error:
                log.warning("an identity that is gone could not be put away yet: %s: %s", key, error)
        kept = {(provider.kind.value, provider.key) for provider in loaded.providers}
        kept |= {(kind, key) for kind, key in loaded.invalid}
        for provider_key, provider in list(self.engine.roster.providers.items()):
            if provider_key not in kept and provider.resource.source not in troubled:
                self.engine.drop_provider(provider_key)

    def _source(self, key: ObjectKey) -> str | None:
        """Return the file that declared an identity, now or before the start."""
        entry, held = self.engine.roster.entries.get(key), self._unknown.get(key)
        if entry is not None:
            return entry.resource.source
        return held.record.source if held is not None else None

    async def _sweep(self, unknown: list[Versioned]) -> None:
        """Remove answers in escrow that belong to no open claim of any record."""
        wanted = {claim.attempt_id for held in unknown for claim in held.record.claims} | self.engine.open_claims
        await self._in_thread(lambda: self._escrow.sweep(wanted))

    # --- watching -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice changed resources and credentials."""
        while True:
            await self.clock.sleep(POLL)
            try:
                changed = await self._in_thread(self._files.changed)
                if changed or self._missing or self._documents_kept:
                    await self._reload(changed=changed)
                references = self.engine.roster.references()
                fresh = await self._in_thread(lambda: self._credentials.fingerprints(references))  # noqa: B023
            except (OSError, KeyferryError) as error:
                log.warning("the resource files could not be looked at: %s", error)
                continue
            except Exception as error:  # noqa: BLE001 - a watch that ends in silence is worse than one that complains
                log.error("unexpected %s while looking at the resource files", type(error).__name__)  # noqa: TRY400
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
            await self.clock.sleep(DIRECTORY_POLL)
            entries = self.engine.roster.entries
            keys = [key for key in self._deletable if key in entries and entries[key].revision]
            try:
                missing = await self._publisher.missing(keys) if keys else []
            except (OSError, KeyferryError) as error:
                log.warning("the token directories could not be looked at: %s", error)
                continue
            for key in missing:
                self.engine.republish(key)

    def _fingerprint(self) -> dict[Reference, tuple[object, ...]]:
        return self._credentials.fingerprints(self.engine.roster.references())

    async def _in_thread(self, work: Any) -> Any:
        return await in_thread(self._executor, work)


def _deletable(files: Any) -> bool:
    return any(file.format is FileFormat.TILED for file in files)
