"""How replicas share the shards: a Lease for each shard, and one for each replica, so that all know how many there are.

Every two seconds a replica renews what it holds and looks at all Leases. A shard is handed over by its holder: it
finishes what it is spending there, releases the Lease, and another takes it at its next look. The shards of a replica
that is gone are taken when their Leases have run out.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from keyferry.errors import KeyferryError
from keyferry.io.clock import SystemClock
from keyferry_operator.client import LEASES
from keyferry_operator.division import shards_to_take
from keyferry_operator.leases import DEFAULT_TIMING, JITTER, Claim, Hold, Place, Seen, cancelled, told
from keyferry_operator.names import LEASE, REPLICA, SHARD

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from keyferry.io.clock import Clock
    from keyferry_operator.client import Object
    from keyferry_operator.leases import LeaseApi, Timing

log = logging.getLogger(__name__)

SHARDS_LABEL: Final = "keyferry.dev/shards"
"""On the Lease of a shard: of how many it is one; other numbers are other shards. On a replica's: what it shares."""
GAIN_PAUSE: Final = 3.0
"""Seconds until the records of a shard are read again where that failed."""
BURIED: Final = 60.0
"""Seconds after which the Lease of a replica that ended without a word is deleted."""


class Work(Protocol):
    """What is done in the shards."""

    async def gain(self, shards: frozenset[int], undisturbed: frozenset[int]) -> None:
        """Begin; in those of ``undisturbed`` nobody else was since we lost them. Raises KeyferryErrors; then again."""

    def lose(self, shards: frozenset[int]) -> None:
        """Begin nothing more, from now on: another replica may be at work."""

    async def hand_over(self, shards: frozenset[int]) -> None:
        """Finish what is under way and end."""


@dataclass(slots=True)
class _View:
    """All Leases of ours, as they were listed last."""

    duration: float
    bodies: dict[str, Object] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)

    def take(self, bodies: dict[str, Object], now: float) -> None:
        self.seen = {
            name: self.seen.get(name, Seen(None, now)).then(Claim.of(body), now) for name, body in bodies.items()
        }
        self.bodies = bodies

    def holder(self, name: str, now: float) -> str:
        seen = self.seen.get(name)
        return seen.holder(now, self.duration) if seen is not None else ""

    def holders(self, prefix: str, now: float) -> Iterator[tuple[str, str]]:
        """Yield the Leases of a kind that are held, with their holders."""
        held = ((name, self.holder(name, now)) for name in self.bodies if name.startswith(prefix))
        return ((name, holder) for name, holder in held if holder)


class Sharing:
    """One replica's part: ``run``, until ``close`` ends it."""

    def __init__(
        self,
        client: LeaseApi,
        namespace: str,
        instance: str,
        shards: int,
        work: Work,
        *,
        timing: Timing = DEFAULT_TIMING,
        clock: Clock | None = None,
    ) -> None:
        self._timing = timing
        self._client = client
        self._namespace = namespace
        self._shards = shards
        self._work = work
        self._clock: Clock = clock or SystemClock()
        self._labels = {SHARDS_LABEL: str(shards)} if shards > 1 else {}
        self.identity = f"{instance}_{secrets.token_hex(4)}"
        """Unique: a container after its crash is another one."""
        self._view = _View(timing.duration)
        self._held: dict[int, Hold] = {}
        self._giving: dict[int, asyncio.Task[None]] = {}
        self._gaining: set[asyncio.Task[None]] = set()
        name = REPLICA + hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        self._membership = Hold(client, Place(namespace, name, self._labels), self.identity, self._clock, timing)
        self._membership_turn = asyncio.Lock()
        self._closing = self._closed = self._blind = False
        self._told = ""

    @property
    def held(self) -> frozenset[int]:
        """The shards that are ours."""
        return frozenset(self._held)

    async def run(self) -> None:
        """Hold a fair share, until closed. Raises nothing that can be expected."""
        while not self._closed:
            await self._turn()
            pause = self._timing.retry * (1 + JITTER * random.random())  # noqa: S311 - no secret hangs on it
            left = [hold.left for hold in self._held.values()]
            await self._clock.sleep(min([pause, *(max(0.0, each) for each in left)]))

    async def close(self) -> None:
        """Hand everything over, each shard as soon as it is quiet; ``run`` has to go on until this is done."""
        self._closing = True
        async with self._membership_turn:  # first, so that others take all that is released
            if self._shards > 1:
                await self._membership.release(delete=True)
        for task in self._gaining:
            task.cancel()
        while self._held or self._giving:
            self._give(list(self._held))
            await asyncio.gather(*self._giving.values(), return_exceptions=True)
        await cancelled(*self._gaining)
        self._closed = True

    async def _turn(self) -> None:
        """Renew what is held while looking at what others hold; then act on it."""
        attempts = [hold.attempt() for hold in self._held.values()]
        attempts.append(self._be_member())
        listed, *_ = await asyncio.gather(self._list(), *attempts)
        for shard, hold in list(self._held.items()):
            if hold.taken_by or hold.left <= 0:
                self._lose(shard, hold)
        if listed and not self._closing:
            await self._divide()
            await self._clean_up()
            self._tell()

    async def _be_member(self) -> bool:
        async with self._membership_turn:
            return self._shards > 1 and not self._closing and await self._membership.attempt()

    async def _list(self) -> bool:
        bodies: dict[str, Object] = {}
        try:
            async with asyncio.timeout(self._timing.request):
                async for body in self._client.pages(LEASES, self._namespace):
                    name = str(body["metadata"]["name"])
                    if name == LEASE or name.startswith((SHARD, REPLICA)):
                        bodies[name] = body
        except Exception as error:  # noqa: BLE001 - whatever happens, the next look may do better
            level = logging.DEBUG if self._blind else logging.WARNING
            log.log(level, "the leases could not be listed (%s); trying again", told(error))
            self._blind = True
            return False
        self._blind = False
        self._view.take(bodies, self._now())
        return True

    async def _divide(self) -> None:
        now = self._now()
        if self._others_layout(now):
            return
        view = {shard: self._view.holder(self._name(shard), now) for shard in range(self._shards)}
        # One that we lost, and that nobody else took, is free for us as well.
        view = {shard: holder if holder != self.identity else "" for shard, holder in view.items()}
        ours = dict.fromkeys(self._held, self.identity)
        # One that is being given away is as good as free, but not for us.
        holders = {**view, **ours, **dict.fromkeys(self._giving, "")}
        members = {holder for name, holder in self._view.holders(REPLICA, now) if self._layout(name) == self._shards}
        wanted = shards_to_take(self.identity, members, holders)
        if wanted > 0:
            free = [shard for shard, holder in holders.items() if not holder and shard not in self._giving]
            await self._take(sorted(free, key=self._preference)[:wanted])
        elif wanted < 0:
            keeping = [shard for shard in self._held if shard not in self._giving]
            self._give(sorted(keeping, key=self._preference)[wanted:])

    def _preference(self, shard: int) -> bytes:
        """Order the shards for us, and for each replica in another way: two that take at once seldom take the same."""
        return hashlib.sha256(f"{self.identity} {shard}".encode()).digest()

    def _others_layout(self, now: float) -> bool:
        """Tell whether replicas still work that divide the work in another way, as while ``shards`` is changed.

        Nothing is taken before they have ended. Where both began at once, the finer division gives way.
        """
        others: set[int] = set()
        for name in self._view.bodies:
            if not name.startswith(REPLICA) and self._view.holder(name, now):
                others |= {self._layout(name)} - {self._shards}
        if others and min(others) < self._shards:
            self._give([shard for shard in self._held if shard not in self._giving])
        return bool(others)

    def _layout(self, name: str) -> int:
        """Return by how many shards the holder of a Lease divides the work."""
        label = str((self._view.bodies[name]["metadata"].get("labels") or {}).get(SHARDS_LABEL))
        return int(label) if name != LEASE and label.isdecimal() else 1

    async def _take(self, shards: list[int]) -> None:
        places = {shard: Place(self._namespace, self._name(shard), self._labels) for shard in shards}
        holds = {
            shard: Hold(self._client, place, self.identity, self._clock, self._timing)
            for shard, place in places.items()
        }
        names = [(hold, hold.place.name) for hold in holds.values()]
        got = await asyncio.gather(
            *(hold.attempt(self._view.seen.get(name), self._view.bodies.get(name)) for hold, name in names)
        )
        taken = {shard: hold for (shard, hold), ours in zip(holds.items(), got, strict=True) if ours}
        self._held |= taken
        if taken:
            undisturbed = frozenset(shard for shard, hold in taken.items() if hold.continued)
            task = asyncio.create_task(self._gain(frozenset(taken), undisturbed))
            self._gaining.add(task)
            task.add_done_callback(self._gaining.discard)

    async def _gain(self, shards: frozenset[int], undisturbed: frozenset[int]) -> None:
        while shards := frozenset(self._held) & shards - self._giving.keys():
            try:
                await self._work.gain(shards, undisturbed)
            except KeyferryError as error:
                log.warning("the records of shards %s could not be read yet: %s", _listed(shards), error)
                await self._clock.sleep(GAIN_PAUSE)
            else:
                return

    def _give(self, shards: list[int]) -> None:
        for shard in shards:
            if shard not in self._giving:
                self._giving[shard] = asyncio.create_task(self._hand_over(shard))

    async def _hand_over(self, shard: int) -> None:
        hold = self._held.get(shard)
        try:
            await self._work.hand_over(frozenset({shard}))
        finally:
            if hold is not None and self._held.get(shard) is hold:
                del self._held[shard]
                await hold.release()
            del self._giving[shard]

    def _lose(self, shard: int, hold: Hold) -> None:
        why = f"{hold.taken_by} holds it now" if hold.taken_by else "its lease could not be renewed"
        log.error("this replica loses %s: %s", self._called(shard), why)
        del self._held[shard]
        self._work.lose(frozenset({shard}))

    async def _clean_up(self) -> None:
        """Delete the Leases of replicas that ended long ago without a word."""
        now = self._now()
        for name, seen in self._view.seen.items():
            if name.startswith(REPLICA) and now - seen.since > self._timing.duration + BURIED:
                metadata = self._view.bodies[name]["metadata"]
                await _quietly(
                    self._client.delete(
                        LEASES, self._namespace, name, uid=metadata["uid"], version=metadata["resourceVersion"]
                    ),
                    self._timing.request,
                )

    def _tell(self) -> None:
        """Log who works on what, where that changed."""
        if self._shards > 1:
            text = f"this replica works on shards {_listed(self.held)} of {self._shards}"
        elif self._held:
            text = f"this replica leads as {self.identity}"
        else:
            text = f"{self._view.holder(LEASE, self._now()) or 'nobody'} leads; this replica stands by"
        if text != self._told:
            log.info("%s", text)
            self._told = text

    def _name(self, shard: int) -> str:
        return f"{SHARD}{shard}" if self._shards > 1 else LEASE

    def _called(self, shard: int) -> str:
        return f"shard {shard}" if self._shards > 1 else "the lead"

    def _now(self) -> float:
        return self._clock.boottime()


def _listed(shards: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(shards))) or "(none)"


async def _quietly(work: Coroutine[Any, Any, Any], patience: float) -> None:
    try:
        async with asyncio.timeout(patience):
            await work
    except Exception as error:  # noqa: BLE001 - the next look may do better
        log.debug("a lease could not be deleted: %s", told(error))
