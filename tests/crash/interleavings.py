"""Two brokers over one store, a provider that forgives nothing, and every order in which things can happen.

The brokers are coroutines that stop at each operation. What happens next (a step of either, a crash, a lost request, an
answer that comes late or never, a store that fails, time that passes) is drawn by hypothesis.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis import target
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keyferry.client_auth import NoAuthentication
from keyferry.doubt import DoubtPolicy, Verdict, judge, settle_time
from keyferry.errors import Ambiguous, KeyferryError, NotSent, RetryClass
from keyferry.grants.inputs import GrantInputs
from keyferry.grants.rfc6749_refresh_token import refresh
from keyferry.ledger import Ledger, Spend
from keyferry.model import HttpRequest, HttpResponse, ObjectKey, TokenSet
from keyferry.record import Claim, Record, Versioned
from keyferry.secret import SecretValue
from tests.support.memory_store import MemoryEscrow, MemoryStore, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from keyferry.model import Exchange

KEY = ObjectKey("default", "bot")
DEADLINE = 10.0
BROKERS = ("a", "b")


class Turn:
    """Where a coroutine stops until the machine lets it go on; ``request`` is what it waits for an answer to."""

    def __init__(self, request: _Request | None = None) -> None:
        self.request = request

    def __await__(self) -> Generator[Turn, Any, Any]:
        return (yield self)


class World:
    """The clocks of everybody."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    monotonic = boottime = now

    async def sleep(self, seconds: float) -> None:
        end = self.time + seconds
        await Turn()
        while self.time < end:
            await Turn()


class PausingStore(MemoryStore):
    """Stops before and after each operation: what happens in between is anybody's."""

    uid = "uid"
    """Of the one identity."""

    async def read(self, key: ObjectKey, uid: str) -> Versioned | None:
        await Turn()
        found = await super().read(key, uid)
        await Turn()
        return found

    async def replace(self, held: Versioned, record: Record) -> Versioned:
        await Turn()
        written = await super().replace(held, record)
        await Turn()
        return written


class PausingEscrow(MemoryEscrow):
    """Stops around the one operation that counts."""

    async def keep(self, attempt_id: str, answer: HttpResponse) -> None:
        await Turn()
        await super().keep(attempt_id, answer)
        await Turn()


@dataclass(eq=False)
class _Request:
    """A request on its way; the one who sent it may be dead."""

    token: str
    attempt_id: str
    delivered: bool = False


class Provider:
    """Accepts each refresh token once; the second time ends the session."""

    def __init__(self) -> None:
        self.presented: Counter[str] = Counter()
        self.presented_replays: list[tuple[str, int]] = []
        self.revoked = False
        self._issued = 0

    def process(self, request: _Request) -> HttpResponse:
        request.delivered = True
        self.presented[request.token] += 1
        if self.presented[request.token] > 1:
            self.revoked = True
        if self.revoked:
            return _answer(400, {"error": "invalid_grant"})
        self._issued += 1
        return _answer(
            200,
            {
                "access_token": f"at-{self._issued}",
                "token_type": "Bearer",
                "expires_in": 60,
                "refresh_token": f"rt-{self._issued}",
            },
        )


def _answer(status: int, body: dict[str, Any]) -> HttpResponse:
    return HttpResponse(status, {}, json.dumps(body).encode())


def _apply(record: Record, token: TokenSet) -> Record:
    return replace(
        record,
        refresh_token=token.refresh_token,
        token=replace(token, refresh_token=None),
        generation=record.generation + 1,
    )


def _begin(token: SecretValue) -> Callable[[float], Exchange]:
    def begin(started: float) -> Exchange:
        inputs = GrantInputs(
            token_endpoint="https://auth.example.org/token",
            issuer="",
            client=NoAuthentication("bot"),
            started_at=started,
            scopes=(),
        )
        return refresh(inputs, token, one_time=True)

    return begin


class Broker:
    """One process of a broker, from its start to its crash: what the engine does, without the engine."""

    def __init__(
        self, world: World, store: PausingStore, escrow: PausingEscrow, holder: str, policy: DoubtPolicy
    ) -> None:
        self.holder = holder
        self._world = world
        self._store = store
        self._policy = policy
        self._ledger = Ledger(store, escrow, world, holder=holder)
        self._seen: dict[str, float] = {}
        self._finished: set[str] = set()
        self._recovered: set[str] = set()
        self._life: Coroutine[Turn, Any, None] = self._live()
        self.turn: Turn | None = self._life.send(None)

    def step(self) -> None:
        """Go on until the next stop; not where it waits for an answer."""
        if self.turn is not None and self.turn.request is None:
            self._go_on(lambda: self._life.send(None))

    def answer(self, outcome: HttpResponse | KeyferryError) -> None:
        """Give the answer that it waits for, or the error that it meets."""
        if isinstance(outcome, HttpResponse):
            self._go_on(lambda: self._life.send(outcome))
        else:
            self._go_on(lambda: self._life.throw(outcome))

    def crash(self) -> None:
        self._life.close()
        self.turn = None

    def _go_on(self, resume: Callable[[], Turn]) -> None:
        try:
            self.turn = resume()
        except StopIteration:
            self.turn = None

    async def _live(self) -> None:
        while True:
            await Turn()
            try:
                if not await self._once():
                    return
            except KeyferryError as error:
                if error.retry is RetryClass.IN_DOUBT:
                    held = self._store.peek(KEY)
                    if held is not None and held.record.claim is not None and held.record.claim.holder == self.holder:
                        self._finished.add(held.record.claim.attempt_id)

    async def _once(self) -> bool:
        """Take one decision; False where only a person helps."""
        held = await self._store.read(KEY, "")
        assert held is not None
        record = held.record
        token = record.refresh_token
        assert token is not None
        if record.refresh_ended:
            return False
        claim = record.claim
        if claim is None:
            await self._spend(held, token, 1)
            return True
        if claim.attempt_id not in self._recovered:
            recovered = await self._ledger.recover(held, _begin(token), _apply)
            self._recovered.add(claim.attempt_id)
            if recovered is not None:
                return True
        expires_at = record.token.expires_at if record.token is not None else None
        judged = judge(claim, self._policy, expires_at=expires_at, settled=self._settled(claim), now=self._world.now())
        if judged.verdict is Verdict.ASK:
            return False
        if judged.verdict is Verdict.REPLAY and judged.at <= self._world.now():
            await self._spend(held, token, 2)
        return True

    def _settled(self, claim: Claim) -> bool:
        if claim.attempt_id in self._finished:
            return True
        seen = self._seen.setdefault(claim.attempt_id, self._world.now())
        gone = self._store.holder_is_gone(claim.holder)
        return self._world.now() - seen >= settle_time(claim, holder_gone=gone)

    async def _spend(self, held: Versioned, token: SecretValue, attempt: int) -> None:
        async def send(_request: HttpRequest) -> HttpResponse:
            current = self._store.peek(KEY)
            assert current is not None
            claim = current.record.claim
            attempt_id = claim.attempt_id if claim is not None else ""
            answer = await Turn(_Request(token.reveal(), attempt_id))
            assert isinstance(answer, HttpResponse)
            return answer

        await self._ledger.spend(held, Spend(token, _begin(token), _apply, send, DEADLINE, attempt))


brokers = st.sampled_from(BROKERS)
# What makes progress is drawn more often, or few examples would get anywhere.
turns = st.sampled_from([1, 2, 3, 5, 10, 40, 40, 40])
outcomes = st.sampled_from(
    ["answered", "answered", "answer lost", "answer lost", "answer lost", "late", "late", "not sent", "refused for now"]
)


class Interleavings(RuleBasedStateMachine):
    """What can happen, and what must hold all the same."""

    def store_of(self, holder: str) -> PausingStore:  # noqa: ARG002 - in memory there is one for all
        """Return the store as the broker of this name has it."""
        return self.store

    def new_store(self) -> PausingStore:
        """Return an empty store."""
        return PausingStore()

    @initialize(replay_once=st.booleans(), window=st.sampled_from([0.0, 60.0]))
    def begin(self, *, replay_once: bool, window: float) -> None:
        self.world = World()
        self.store = self.new_store()
        self.provider = Provider()
        self.policy = DoubtPolicy(replay_once=replay_once, reuse_window=window, deadline=DEADLINE)
        self.escrows = {name: PausingEscrow() for name in BROKERS}
        self.running: dict[str, Broker] = {}
        self.under_way: list[_Request] = []
        self.starts = 0
        self._create(Record(self.store.uid, KEY, origin=self.store.origin, refresh_token=SecretValue("rt-0")))
        self.start("a")

    def _create(self, record: Record) -> None:
        try:
            self.store.create(record).send(None)
        except StopIteration:
            return
        raise AssertionError("creating a record stops nowhere")

    @rule(name=brokers)
    def begin_again(self, name: str) -> None:
        self.start(name)

    def start(self, name: str) -> None:
        if name not in self.running or self.running[name].turn is None:
            self.starts += 1
            holder = f"{name}-{self.starts}"
            store = self.store_of(holder)
            self.running[name] = Broker(self.world, store, self.escrows[name], holder, self.policy)

    @rule(name=brokers, times=turns)
    def go_on(self, name: str, times: int) -> None:
        broker = self.running.get(name)
        for _ in range(times if broker is not None else 0):
            assert broker is not None
            broker.step()

    @precondition(lambda self: any(broker.turn is not None for broker in self.running.values()))
    @rule(name=brokers)
    def crash(self, name: str) -> None:
        broker = self.running.pop(name, None)
        if broker is not None:
            if broker.turn is not None and broker.turn.request is not None:
                self.under_way.append(broker.turn.request)
            broker.crash()
            self.store.gone.add(broker.holder)

    def _waiting(self, name: str) -> tuple[Broker, _Request] | None:
        broker = self.running.get(name)
        if broker is None or broker.turn is None or broker.turn.request is None:
            return None
        return broker, broker.turn.request

    def waiting(self) -> list[tuple[Broker, _Request]]:
        """Return the brokers that wait for an answer, and the requests to which."""
        turns = [(broker, broker.turn) for broker in self.running.values()]
        return [(broker, turn.request) for broker, turn in turns if turn is not None and turn.request is not None]

    @precondition(lambda self: bool(self.waiting()))
    @rule(first=st.booleans(), outcome=outcomes, times=turns)
    def network(self, *, first: bool, outcome: str, times: int) -> None:
        """Decide what becomes of a request that a broker waits for the answer to, and let the broker go on."""
        broker, request = self.waiting()[0 if first else -1]
        match outcome:
            case "answered":
                broker.answer(self.provider.process(request))
            case "answer lost":
                self.provider.process(request)
                broker.answer(Ambiguous("lost", code="reset"))
            case "late":
                self.under_way.append(request)
                broker.answer(Ambiguous("lost", code="timeout"))
            case "not sent":
                broker.answer(NotSent("refused", code="refused"))
            case "refused for now":
                broker.answer(_answer(503, {"error": "temporarily_unavailable"}))
        for _ in range(times):
            broker.step()

    @precondition(lambda self: bool(self.under_way))
    @rule()
    def arrive_late(self) -> None:
        self.provider.process(self.under_way.pop())

    @rule(seconds=st.sampled_from([0.3, 3.0, 6.0, 11.0, 31.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.world.time += seconds

    @rule(trouble=st.sampled_from([Trouble.LOST, Trouble.REPLY_LOST, Trouble.OVERTAKEN]), reading=st.booleans())
    def store_fails(self, trouble: Trouble, *, reading: bool) -> None:
        waiting = self.store.reads if reading else self.store.troubles
        if not waiting:
            waiting.append(trouble)

    @invariant()
    def no_token_is_presented_twice_but_for_one_recorded_replay(self) -> None:
        for token, times in self.provider.presented.items():
            digest = SecretValue(token).fingerprint(self.store.digest_key)
            claims = [record.claim for record in self.store.history if record.claim is not None]
            attempts = {claim.attempt_id: claim.attempt for claim in claims if claim.digest == digest}
            assert times <= 2, f"{token} was presented {times} times"
            assert times <= len(attempts), f"{token} was presented {times} times with {len(attempts)} claims"
            if times == 2:
                assert 2 in attempts.values(), f"{token} was presented twice without a recorded replay"

    @invariant()
    def the_chain_only_goes_forward(self) -> None:
        generations = [record.generation for record in self.store.history]
        assert generations == sorted(generations)

    def teardown(self) -> None:
        for broker in getattr(self, "running", {}).values():
            broker.crash()
        presented = getattr(self, "provider", Provider()).presented
        target(float(max(presented.values(), default=0)), label="presentations of one refresh token")
