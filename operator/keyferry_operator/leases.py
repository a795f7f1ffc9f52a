"""One replica's hold on one Lease object in the operator's namespace: whoever has it does the work that it stands for.

A lease keeps two replicas from doing the same work; it is not what keeps a credential from being spent twice (the
claim in the private state is). Another's lease has run out when nothing in it changed for its duration by our own
clock: what stands in it as a time is for people, and no two machines' clocks are compared.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from keyferry_operator.client import LEASES
from keyferry_operator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping

    from keyferry.io.clock import Clock
    from keyferry_operator.client import Kind, Object

log = logging.getLogger(__name__)

DURATION: Final = 15.0
"""Seconds without a change after which another's lease has run out."""
DEADLINE: Final = 10.0
"""Seconds without a successful renewal after which the holder steps down: well before anybody else may take over."""
RETRY: Final = 2.0
"""Seconds between two renewals, and between two looks at those of others."""
REQUEST: Final = 3.0
"""Seconds that one renewal may take, all its requests together."""
JITTER: Final = 0.2
"""Part of ``RETRY`` by which each waits longer at random, so that they do not all come at once."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds of leases, where they are not to be those above."""

    duration: float = DURATION
    deadline: float = DEADLINE
    retry: float = RETRY
    request: float = REQUEST


DEFAULT_TIMING: Final = Timing()


class LeaseApi(Protocol):
    """What of ``KubeClient`` is needed here; its methods raise ApiError."""

    async def create(self, kind: Kind, namespace: str | None, body: Object) -> Object:
        """Create an object."""

    async def replace(self, kind: Kind, namespace: str | None, body: Object) -> Object:
        """Write an object whose resourceVersion must still be the stored one."""

    async def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str = "", version: str = "") -> bool:
        """Delete an object, where given only that of this uid and version; False where it was not there."""

    def pages(self, kind: Kind, namespace: str | None = None, *, labels: str = "") -> AsyncIterator[Object]:
        """Yield the objects of a kind."""


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

    def holder(self, now: float, duration: float = DURATION) -> str:
        """Return who holds it; nobody where it was released or has run out."""
        if self.claim is None or now - self.since >= duration:
            return ""
        return self.claim.holder


class Step(enum.Enum):
    """What to do with the Lease."""

    CREATE = enum.auto()
    TAKE = enum.auto()
    RENEW = enum.auto()
    WAIT = enum.auto()


def decide(seen: Seen, me: str, now: float, duration: float = DURATION) -> Step:
    """Return what ``me`` is to do with the Lease; ``now`` is of the clock of ``seen``."""
    claim = seen.claim
    if claim is None:
        return Step.CREATE
    if claim.holder == me:
        return Step.RENEW
    if not claim.holder or now - seen.since >= duration:
        return Step.TAKE
    return Step.WAIT


@dataclass(frozen=True, slots=True)
class Place:
    """Which Lease."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    """What is to stand on it, beside what others put there."""


def lease_object(body: Object | None, step: Step, me: str, place: Place, duration: float = DURATION) -> Object:
    """Return the Lease to write over ``body``, which keeps its version and what others put on it."""
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    held = body or {
        "apiVersion": f"{LEASES.group}/{LEASES.version}",
        "kind": "Lease",
        "metadata": {"name": place.name, "namespace": place.namespace},
    }
    metadata = {**held["metadata"], "labels": {**(held["metadata"].get("labels") or {}), **place.labels}}
    before, claim = held.get("spec") or {}, Claim.of(held) or Claim()
    new = step is not Step.RENEW
    spec = {
        **before,
        "holderIdentity": me,
        "leaseDurationSeconds": math.ceil(duration),
        "acquireTime": at if new else before.get("acquireTime", at),
        "renewTime": at,
        "leaseTransitions": claim.transitions + (step is Step.TAKE),
    }
    return {**held, "metadata": metadata, "spec": spec}


class Hold:
    """One replica's hold on one Lease: ``attempt`` gets and keeps it, ``release`` gives it away. Neither raises."""

    def __init__(self, client: LeaseApi, place: Place, me: str, clock: Clock, timing: Timing = DEFAULT_TIMING) -> None:
        """``me`` is to be unique: two replicas that were given one name by mistake are two."""
        self._timing = timing
        self._client = client
        self.place = place
        self.me = me
        self._clock = clock
        self._body: Object | None = None
        """The Lease as we wrote it last; None where it has to be read first."""
        self._seen = Seen(None, self._now())
        self._held_at = -math.inf
        """When the last successful renewal was begun."""
        self._failing = False
        self.continued = False
        """Whether it was ours before the last try that succeeded, and nobody's in between."""

    def _now(self) -> float:
        """Return seconds that never go back and that count a machine's sleep, in which others went on."""
        return self._clock.boottime()

    @property
    def left(self) -> float:
        """For how many seconds it may still be believed to be ours without another renewal."""
        return self._held_at + self._timing.deadline - self._now()

    @property
    def taken_by(self) -> str:
        """Who holds it instead of us, as last seen; empty where that is nobody."""
        claim = self._seen.claim
        return claim.holder if self._body is None and claim is not None and claim.holder != self.me else ""

    async def attempt(self, seen: Seen | None = None, body: Object | None = None) -> bool:
        """Try once to get or to keep the lease; tell whether it is ours by this very try.

        With ``seen`` and ``body``, as they were listed just now, it need not be read to be taken.
        """
        begun, patience = self._now(), self._timing.request
        if seen is not None:
            self._seen = seen
        try:
            async with asyncio.timeout(min(patience, self.left) if self.left > 0 else patience):
                held = await self._write(body)
        except Exception as error:  # noqa: BLE001 - whatever happens, the next try may do better
            self._body = None  # it may have been written for all that: read it before the next try
            log.log(
                logging.DEBUG if self._failing else logging.WARNING,
                "the lease %s could not be read or written (%s); trying again",
                self.place.name,
                told(error),
            )
            self._failing = True
            return False
        self._failing = False
        if held:
            self._held_at = begun
        return held

    async def release(self, *, delete: bool = False) -> None:
        """Let the next replica take over at once. Where that fails, it does when the lease has run out."""
        try:
            async with asyncio.timeout(self._timing.request):
                body = await self._find()
                claim = Claim.of(body)
                if body is None or claim is None or claim.holder != self.me:
                    return
                if delete:
                    await self._client.delete(
                        LEASES, self.place.namespace, self.place.name, uid=body["metadata"]["uid"]
                    )
                    return
                # A Lease without a holder says so by leaving the name out.
                spec = {name: value for name, value in body["spec"].items() if name != "holderIdentity"}
                await self._client.replace(LEASES, self.place.namespace, {**body, "spec": spec})
                log.info("the lease %s is released", self.place.name)
        except Exception as error:  # noqa: BLE001 - it runs out by itself
            log.warning(
                "the lease %s could not be released (%s); it runs out in %.0f s",
                self.place.name,
                told(error),
                self._timing.duration,
            )

    async def _find(self) -> Object | None:
        """Return the Lease as it is now; the right to list them, which is needed in any case, is enough for it."""
        async for body in self._client.pages(LEASES, self.place.namespace):
            if body["metadata"]["name"] == self.place.name:
                return body
        return None

    async def _write(self, body: Object | None) -> bool:
        if self._body is not None:
            body, step = self._body, Step.RENEW
        else:
            if body is None:
                body = await self._find()
            self._seen = self._seen.then(Claim.of(body), self._now())
            step = decide(self._seen, self.me, self._now(), self._timing.duration)
        if step is Step.WAIT:
            return False
        wanted = lease_object(body, step, self.me, self.place, self._timing.duration)
        self.continued = step is Step.RENEW
        write = self._client.create if step is Step.CREATE else self._client.replace
        self._body = await write(LEASES, self.place.namespace, wanted)
        self._seen = self._seen.then(Claim.of(self._body), self._now())
        return True


async def done_before(work: Coroutine[Any, Any, None], end: asyncio.Event) -> bool:
    """Wait until ``work`` is done, or give it up at ``end``; tell whether it was done first. Raises what it raises."""
    task, ending = asyncio.create_task(work), asyncio.create_task(end.wait())
    try:
        await asyncio.wait([task, ending], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done() and not end.is_set()
    finally:
        await cancelled(task, ending)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def told(error: Exception) -> str:
    """Return what may be said of an error: ours speak for themselves, the text of others may hold anything."""
    return error.message if isinstance(error, ApiError) else type(error).__name__
