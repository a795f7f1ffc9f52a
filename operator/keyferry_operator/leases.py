"""Who leads: one replica, as a Lease object in the operator's namespace says.

The lease keeps two replicas from doing the same work; it is not what keeps a credential from being spent twice (the
claim in the private state is). Another's lease has run out when nothing in it changed for its duration by our own
clock: what stands in it as a time is for people, and no two machines' clocks are compared.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from keyferry.io.clock import SystemClock
from keyferry_operator.client import LEASES
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from keyferry.io.clock import Clock
    from keyferry_operator.client import Kind, Object

log = logging.getLogger(__name__)

LEASE: Final = "keyferry-operator"
"""Name of the Lease."""
DURATION: Final = 15.0
"""Seconds without a change after which another's lease has run out."""
DEADLINE: Final = 10.0
"""Seconds without a successful renewal after which the leader steps down: well before anybody else may take over."""
RETRY: Final = 2.0
"""Seconds between two renewals, and between two looks of a standby."""
REQUEST: Final = 3.0
"""Seconds that one renewal may take, all its requests together."""
JITTER: Final = 0.2
"""Part of ``RETRY`` by which standbys wait longer at random, so that they do not all come at once."""


class Outcome(enum.Enum):
    """How the operator ended."""

    STOPPED = enum.auto()
    """As it was asked to; the next replica may take over at once."""
    LOST = enum.auto()
    """Another replica leads, or may; this process is to end and begin again."""


class LeaseApi(Protocol):
    """What of ``KubeClient`` is needed here; its methods raise ApiError."""

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """Return an object as it is now, or None."""

    async def create(self, kind: Kind, namespace: str | None, body: Object) -> Object:
        """Create an object."""

    async def replace(self, kind: Kind, namespace: str | None, body: Object) -> Object:
        """Write an object whose resourceVersion must still be the stored one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a Lease says, as far as it counts here."""

    holder: str = ""
    """Empty where it was released."""
    renewed: str = ""
    """Its renewTime, compared with itself alone."""
    transitions: int = 0

    @classmethod
    def of(cls, body: Object | None) -> Claim | None:
        """Read a Lease; whatever is missing in it is empty."""
        if body is None:
            return None
        spec = body.get("spec") or {}
        return cls(
            str(spec.get("holderIdentity") or ""),
            str(spec.get("renewTime") or ""),
            int(spec.get("leaseTransitions") or 0),
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A claim, and since when (seconds of our own clock) it has said the same."""

    claim: Claim | None
    since: float

    def then(self, claim: Claim | None, now: float) -> Seen:
        """Return what is seen after another look."""
        return self if claim == self.claim else Seen(claim, now)


class Step(enum.Enum):
    """What to do with the Lease."""

    CREATE = enum.auto()
    TAKE = enum.auto()
    RENEW = enum.auto()
    WAIT = enum.auto()


def decide(seen: Seen, me: str, now: float) -> Step:
    """Return what ``me`` is to do with the Lease; ``now`` is of the clock of ``seen``."""
    claim = seen.claim
    if claim is None:
        return Step.CREATE
    if claim.holder == me:
        return Step.RENEW
    if not claim.holder or now - seen.since >= DURATION:
        return Step.TAKE
    return Step.WAIT


def lease_object(body: Object | None, step: Step, me: str, namespace: str) -> Object:
    """Return the Lease to write over ``body``, which keeps its version and what others put on it."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    held = body or {
        "apiVersion": f"{LEASES.group}/{LEASES.version}",
        "kind": "Lease",
        "metadata": {"name": LEASE, "namespace": namespace},
    }
    before, claim = held.get("spec") or {}, Claim.of(held) or Claim()
    new = step is not Step.RENEW
    spec = {
        **before,
        "holderIdentity": me,
        "leaseDurationSeconds": int(DURATION),
        "acquireTime": at if new else before.get("acquireTime", at),
        "renewTime": at,
        "leaseTransitions": claim.transitions + (step is Step.TAKE),
    }
    return {**held, "spec": spec}


class Election:
    """One replica's part: ``acquire``, then ``hold`` beside the work, then ``release``. None of them raises."""

    def __init__(self, client: LeaseApi, namespace: str, instance: str, *, clock: Clock | None = None) -> None:
        self._client = client
        self._namespace = namespace
        self._clock: Clock = clock or SystemClock()
        self.identity = f"{instance}_{secrets.token_hex(4)}"
        """Unique: two replicas that were given one name by mistake, or a container after its crash, are two."""
        self._body: Object | None = None
        """The Lease as we wrote it last; None where it has to be read first."""
        self._seen = Seen(None, self._now())
        self._held_at = 0.0
        """When the last successful renewal was begun."""
        self._failing = False

    def _now(self) -> float:
        """Return seconds that never go back and that count a machine's sleep, in which others went on."""
        return self._clock.boottime()

    async def acquire(self) -> None:
        """Stand by until the lease is ours."""
        told = ""
        while not await self._attempt():
            leader = self._seen.claim.holder if self._seen.claim is not None else ""
            if leader != told:
                log.info("%s leads; this replica stands by", leader)
                told = leader
            await self._clock.sleep(RETRY * (1 + JITTER * random.random()))  # noqa: S311 - no secret hangs on it
        log.info("this replica leads as %s", self.identity)

    async def hold(self) -> None:
        """Renew the lease until it is lost."""
        while True:
            await self._clock.sleep(min(RETRY, max(0.0, self._left())))
            if await self._attempt():
                continue
            claim = self._seen.claim
            if self._body is None and claim is not None and claim.holder not in ("", self.identity):
                log.error("%s leads now; this replica steps down", claim.holder)
                return
            if self._left() <= 0:
                log.error("the lease could not be renewed for %.0f s; this replica steps down", DEADLINE)
                return

    async def release(self) -> None:
        """Let the next replica take over at once. Where that fails, it does when the lease has run out."""
        try:
            async with asyncio.timeout(REQUEST):
                body = await self._client.get(LEASES, self._namespace, LEASE)
                claim = Claim.of(body)
                if body is None or claim is None or claim.holder != self.identity:
                    return
                # A Lease without a holder says so by leaving the name out.
                spec = {name: value for name, value in body["spec"].items() if name != "holderIdentity"}
                await self._client.replace(LEASES, self._namespace, {**body, "spec": spec})
                log.info("the lease is released")
        except Exception as error:  # noqa: BLE001 - it runs out by itself
            log.warning("the lease could not be released (%s); it runs out in %.0f s", _told(error), DURATION)

    def _left(self) -> float:
        return self._held_at + DEADLINE - self._now()

    async def _attempt(self) -> bool:
        """Try once to get or to keep the lease; tell whether it is ours by this very try."""
        begun = self._now()
        left = self._left()
        try:
            async with asyncio.timeout(min(REQUEST, left) if left > 0 else REQUEST):
                held = await self._write()
        except Exception as error:  # noqa: BLE001 - whatever happens, the next try may do better
            self._body = None  # it may have been written for all that: read it before the next try
            log.log(
                logging.DEBUG if self._failing else logging.WARNING,
                "the lease could not be read or written (%s); trying again",
                _told(error),
            )
            self._failing = True
            return False
        self._failing = False
        if held:
            self._held_at = begun
        return held

    async def _write(self) -> bool:
        if self._body is None:
            body = await self._client.get(LEASES, self._namespace, LEASE)
            self._seen = self._seen.then(Claim.of(body), self._now())
            step = decide(self._seen, self.identity, self._now())
        else:
            body, step = self._body, Step.RENEW
        if step is Step.WAIT:
            return False
        wanted = lease_object(body, step, self.identity, self._namespace)
        write = self._client.create if step is Step.CREATE else self._client.replace
        self._body = await write(LEASES, self._namespace, wanted)
        self._seen = self._seen.then(Claim.of(self._body), self._now())
        return True


async def done_before(work: Coroutine[Any, Any, None], end: asyncio.Event) -> bool:
    """Wait until ``work`` is done, or give it up at ``end``; tell whether it was done first."""
    task, ending = asyncio.create_task(work), asyncio.create_task(end.wait())
    try:
        await asyncio.wait([task, ending], return_when=asyncio.FIRST_COMPLETED)
        return task.done() and not end.is_set()
    finally:
        await cancelled(task, ending)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _told(error: Exception) -> str:
    """Return what may be said of an error: ours speak for themselves, the text of others may hold anything."""
    return error.message if isinstance(error, ApiError) else type(error).__name__
