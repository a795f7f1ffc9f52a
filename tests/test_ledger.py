from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyferry.client_auth import NoAuthentication
from keyferry.errors import (
    Ambiguous,
    Conflict,
    CredentialError,
    NotSent,
    Refused,
    RetryClass,
    StoreError,
    StoreUnavailable,
)
from keyferry.grants.inputs import GrantInputs
from keyferry.grants.rfc6749_refresh_token import refresh
from keyferry.ledger import CLAIM_FRESH, CLAIM_TRIES, Ledger, Spend
from keyferry.model import HttpRequest, HttpResponse, ObjectKey, TokenSet
from keyferry.record import Claim, Record, Versioned
from keyferry.secret import SecretValue
from tests.support.clock import FakeClock, settle
from tests.support.memory_store import MemoryEscrow, MemoryStore, Trouble

if TYPE_CHECKING:
    from keyferry.model import Exchange

KEY = ObjectKey("default", "bot")
SEED = SecretValue("seed")
FIRST_DOUBT = Claim("digest", "first", 1, "gone", 1_799_999_000.0, 10.0)
Answering = Callable[[HttpRequest], Awaitable[HttpResponse]]


def issued(**fields: object) -> HttpResponse:
    body = {"access_token": "access", "token_type": "Bearer", "expires_in": 300, "refresh_token": "next", **fields}
    return HttpResponse(200, {"content-type": "application/json"}, json.dumps(body).encode())


def refused(code: str, status: int = 400) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json"}, json.dumps({"error": code}).encode())


def apply(record: Record, token: TokenSet) -> Record:
    return replace(
        record,
        refresh_token=token.refresh_token,
        token=replace(token, refresh_token=None),
        generation=record.generation + 1,
    )


def begin(started: float) -> Exchange:
    inputs = GrantInputs(
        token_endpoint="https://auth.example.org/token",
        issuer="",
        client=NoAuthentication("bot"),
        started_at=started,
        scopes=(),
    )
    return refresh(inputs, SEED, one_time=True)


class Desk:
    """A ledger over a store in memory, and a provider that answers as told."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.escrow = MemoryEscrow()
        self.clock = FakeClock()
        self.passed: Counter[str] = Counter()
        self.ending = False
        self.ledger = Ledger(
            self.store,
            self.escrow,
            self.clock,
            holder="me",
            checkpoint=lambda step: self.passed.update((step,)),
            may_begin=lambda _key: not self.ending,
        )
        self.sent = 0
        self.answer: HttpResponse | Exception = issued()

    async def record(self, claim: Claim | None = None) -> Versioned:
        return await self.store.create(Record("uid", KEY, origin="memory", refresh_token=SEED, claim=claim))

    async def send(self, request: HttpRequest) -> HttpResponse:
        assert request.one_time
        claim = self.now.claim
        assert claim is not None
        assert claim.digest == SEED.fingerprint(self.store.digest_key)
        assert self.escrow.answers == {claim.attempt_id: None}
        self.sent += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @property
    def now(self) -> Record:
        held = self.store.peek(KEY)
        assert held is not None
        return held.record

    async def spend(self, held: Versioned, *, attempt: int = 1) -> Versioned:
        return await self.ledger.spend(held, Spend(SEED, begin, apply, self.send, 10.0, attempt))


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_what_is_issued_is_claimed_spent_kept_and_committed_in_that_order(desk: Desk) -> None:
    committed = await desk.spend(await desk.record())
    assert list(desk.passed) == ["claim", "claimed", "spend", "answered", "escrowed", "commit", "committed"]
    assert set(desk.passed.values()) == {1}
    assert committed == desk.store.peek(KEY)
    assert (desk.now.generation, desk.now.claim, desk.now.refresh_token) == (1, None, SecretValue("next"))
    assert desk.escrow.answers == {}
    assert desk.sent == 1


async def test_the_claim_says_who_and_when_and_which_attempt(desk: Desk) -> None:
    desk.answer = Ambiguous("cut off", code="reset")
    with pytest.raises(Ambiguous) as caught:
        await desk.spend(await desk.record(), attempt=2)
    assert caught.value.retry is RetryClass.IN_DOUBT
    claim = desk.now.claim
    assert claim is not None
    assert (claim.attempt, claim.holder, claim.claimed_at, claim.deadline) == (2, "me", desk.clock.now(), 10.0)
    assert desk.escrow.answers == {}


async def test_who_claims_second_sends_nothing(desk: Desk) -> None:
    held = await desk.record()
    other = Claim("digest", "other", 1, "other", 0.0, 10.0)
    await desk.store.replace(held, replace(held.record, claim=other))
    with pytest.raises(Conflict):
        await desk.spend(held)
    assert desk.sent == 0
    assert desk.now.claim == other
    assert desk.escrow.answers == {}


@pytest.mark.parametrize("trouble", [Trouble.LOST, Trouble.REPLY_LOST])
async def test_a_claim_that_is_not_known_to_be_written_sends_nothing_and_is_taken_back(
    desk: Desk, trouble: Trouble
) -> None:
    held = await desk.record(FIRST_DOUBT)
    desk.store.troubles.append(trouble)
    with pytest.raises(StoreUnavailable):
        await desk.spend(held, attempt=2)
    assert desk.sent == 0
    assert desk.now.claim == FIRST_DOUBT
    assert desk.escrow.answers == {}


async def test_a_claim_that_cannot_be_taken_back_stays_and_the_first_error_counts(desk: Desk) -> None:
    held = await desk.record()
    desk.store.troubles += [Trouble.REPLY_LOST, Trouble.LOST]
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await desk.spend(held)
    assert desk.now.claim is not None
    desk.store.reads.append(Trouble.LOST)
    desk.store.troubles.append(Trouble.LOST)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        await desk.spend(held)
    assert desk.sent == 0


async def test_a_process_that_is_ending_claims_nothing(desk: Desk) -> None:
    held = await desk.record()
    desk.ending = True
    with pytest.raises(Conflict):
        await desk.spend(held)
    assert (desk.sent, desk.now.claim, desk.escrow.answers) == (0, None, {})


async def test_without_room_for_the_answer_nothing_is_claimed(desk: Desk) -> None:
    held = await desk.record()
    desk.escrow.failing = {"reserve"}
    with pytest.raises(StoreUnavailable):
        await desk.spend(held)
    assert (desk.sent, desk.now.claim) == (0, None)


@pytest.mark.parametrize("before", [None, FIRST_DOUBT])
async def test_what_was_not_sent_leaves_no_doubt_that_was_not_there_before(desk: Desk, before: Claim | None) -> None:
    held = await desk.record(before)
    desk.answer = NotSent("refused", code="refused")
    with pytest.raises(NotSent):
        await desk.spend(held, attempt=2 if before else 1)
    assert desk.now.claim == before
    assert desk.now.generation == 0
    assert desk.escrow.answers == {}


async def test_a_request_that_cannot_be_made_takes_the_claim_back(desk: Desk) -> None:
    held = await desk.record(FIRST_DOUBT)

    def fail(_started: float) -> Exchange:
        raise CredentialError("the key cannot be read")

    with pytest.raises(CredentialError):
        await desk.ledger.spend(held, Spend(SEED, fail, apply, desk.send, 10.0, 2))
    assert (desk.sent, desk.now.claim) == (0, FIRST_DOUBT)
    assert desk.escrow.answers == {}


async def test_a_claim_that_took_too_long_is_made_anew(desk: Desk) -> None:
    held = await desk.record()
    slow = iter([CLAIM_FRESH, 0.0])
    # Boot time: a machine that slept in between counts as slow.
    desk.store.on_write = lambda: desk.clock.suspend(next(slow, 0.0))
    await desk.spend(held)
    assert desk.passed["claimed"] == 2
    claims = [record.claim for record in desk.store.history if record.claim is not None]
    assert [claim.claimed_at for claim in claims] == [1_800_000_000.0, 1_800_000_000.0 + CLAIM_FRESH]
    assert len({claim.attempt_id for claim in claims}) == 1
    assert desk.sent == 1


async def test_a_store_that_is_always_too_slow_ends_in_nothing_sent(desk: Desk) -> None:
    held = await desk.record(FIRST_DOUBT)
    desk.store.on_write = lambda: desk.clock.suspend(CLAIM_FRESH)
    with pytest.raises(NotSent) as caught:
        await desk.spend(held, attempt=2)
    assert caught.value.code == "slow_store"
    assert desk.passed["claimed"] == CLAIM_TRIES
    assert (desk.sent, desk.now.claim) == (0, FIRST_DOUBT)
    assert desk.escrow.answers == {}


async def test_a_commit_is_tried_until_it_succeeds_with_the_answer_in_escrow(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    held = await desk.record()
    desk.store.troubles += [Trouble.NONE, *[Trouble.LOST] * 4]
    spending = asyncio.create_task(desk.spend(held))
    await settle()
    assert list(desk.escrow.answers.values()) == [issued()]
    assert not spending.done()
    await desk.clock.advance(0.2 + 0.5 + 1.0)
    assert not spending.done()
    await desk.clock.advance(2.0)
    assert (await spending).record.refresh_token == SecretValue("next")
    assert desk.now.generation == 1
    assert desk.sent == 1
    assert desk.escrow.answers == {}
    assert "next" not in caplog.text
    assert "trying again" in caplog.text


@pytest.mark.parametrize("trouble", [Trouble.REPLY_LOST, Trouble.OVERTAKEN])
async def test_a_commit_whose_reply_was_lost_is_recognised(desk: Desk, trouble: Trouble) -> None:
    held = await desk.record()
    desk.store.troubles += [Trouble.NONE, trouble]
    spending = asyncio.create_task(desk.spend(held))
    await settle()
    await desk.clock.advance(1.0)
    assert (await spending) == desk.store.peek(KEY)
    assert desk.now.generation == 1
    assert len(desk.store.history) == 3


async def test_a_store_that_fails_while_a_commit_is_looked_into_loses_nothing(desk: Desk) -> None:
    """The escrow has not got the answer either: it is in this process's memory alone."""
    held = await desk.record()
    desk.escrow.failing = {"keep"}
    desk.store.troubles += [Trouble.NONE, Trouble.REPLY_LOST]
    desk.store.reads += [Trouble.LOST, Trouble.LOST]
    spending = asyncio.create_task(desk.spend(held))
    await settle()
    await desk.clock.advance(10.0)
    assert (await spending).record.refresh_token == SecretValue("next")


async def test_a_record_that_changed_under_the_same_claim_is_kept_up_with(desk: Desk) -> None:
    held = await desk.record()

    async def send(_request: HttpRequest) -> HttpResponse:
        current = desk.store.peek(KEY)
        assert current is not None
        await desk.store.replace(current, replace(current.record, source="elsewhere"))
        return issued()

    committed = await desk.ledger.spend(held, Spend(SEED, begin, apply, send, 10.0))
    assert (committed.record.source, committed.record.refresh_token) == ("elsewhere", SecretValue("next"))


async def test_an_answer_never_overwrites_what_another_holder_did(desk: Desk) -> None:
    held = await desk.record()

    async def send(_request: HttpRequest) -> HttpResponse:
        current = desk.store.peek(KEY)
        assert current is not None
        theirs = replace(current.record, generation=1, refresh_token=SecretValue("theirs"), claim=None)
        await desk.store.replace(current, theirs)
        return issued()

    with pytest.raises(Conflict):
        await desk.ledger.spend(held, Spend(SEED, begin, apply, send, 10.0))
    assert desk.now.refresh_token == SecretValue("theirs")


async def test_a_refresh_token_that_is_refused_has_ended(desk: Desk) -> None:
    desk.answer = refused("invalid_grant")
    with pytest.raises(Refused):
        await desk.spend(await desk.record())
    assert "invalid_grant" in desk.now.refresh_ended
    assert (desk.now.claim, desk.now.refresh_token, desk.now.generation) == (None, SEED, 0)
    assert desk.escrow.answers == {}


@pytest.mark.parametrize("answer", [refused("temporarily_unavailable", 503), refused("slow", 429)])
@pytest.mark.parametrize("before", [None, FIRST_DOUBT])
async def test_a_refusal_for_now_leaves_the_record_as_it_was(
    desk: Desk, answer: HttpResponse, before: Claim | None
) -> None:
    desk.answer = answer
    with pytest.raises(Refused) as caught:
        await desk.spend(await desk.record(before), attempt=2 if before else 1)
    assert caught.value.retry is RetryClass.TRANSIENT
    assert (desk.now.claim, desk.now.refresh_ended) == (before, "")
    assert desk.escrow.answers == {}


@pytest.mark.parametrize(
    "answer",
    [
        HttpResponse(502, {"content-type": "text/html"}, b"<html>"),
        HttpResponse(200, {}, b'{"access_token": "acc'),
        HttpResponse(200, {}, b"{}"),
        HttpResponse(500, {}, b"oops"),
    ],
)
async def test_an_answer_that_says_nothing_stays_in_doubt(desk: Desk, answer: HttpResponse) -> None:
    desk.answer = answer
    with pytest.raises(Ambiguous) as caught:
        await desk.spend(await desk.record())
    assert caught.value.retry is RetryClass.IN_DOUBT
    assert desk.now.claim is not None
    assert desk.escrow.answers == {}


@pytest.mark.parametrize("operation", ["keep", "release"])
async def test_an_escrow_that_fails_does_not_lose_what_is_in_memory(desk: Desk, operation: str) -> None:
    held = await desk.record()
    desk.escrow.failing = {operation}
    assert (await desk.spend(held)).record.generation == 1


async def interrupted(desk: Desk, answer: HttpResponse | None, *, attempt: int = 1) -> Versioned:
    """Return the record as a process left it that was killed with ``answer`` in its escrow."""
    claim = replace(FIRST_DOUBT, attempt=attempt)
    desk.escrow.answers[claim.attempt_id] = answer
    return await desk.record(claim)


async def test_an_answer_that_had_arrived_is_committed_after_the_crash(desk: Desk) -> None:
    held = await interrupted(desk, issued())
    committed = await desk.ledger.recover(held, begin, apply)
    assert committed == desk.store.peek(KEY)
    assert (desk.now.generation, desk.now.claim, desk.now.refresh_token) == (1, None, SecretValue("next"))
    token = desk.now.token
    assert token is not None
    assert token.issued_at == FIRST_DOUBT.claimed_at
    assert desk.escrow.answers == {}
    assert desk.sent == 0


async def test_there_is_nothing_to_recover_without_a_claim_or_an_answer(desk: Desk) -> None:
    held = await interrupted(desk, None)
    assert await desk.ledger.recover(held, begin, apply) is None
    assert desk.now.claim == FIRST_DOUBT
    settled = await desk.store.replace(held, replace(held.record, claim=None))
    assert await desk.ledger.recover(settled, begin, apply) is None


async def test_an_escrow_that_cannot_be_read_is_no_empty_escrow(desk: Desk) -> None:
    held = await interrupted(desk, issued())
    desk.escrow.failing = {"recall"}
    with pytest.raises(StoreError):
        await desk.ledger.recover(held, begin, apply)
    desk.escrow.failing = set()
    assert await desk.ledger.recover(held, begin, apply) is not None


async def test_a_refusal_that_had_arrived_is_committed_as_well(desk: Desk) -> None:
    held = await interrupted(desk, refused("invalid_grant"))
    with pytest.raises(Refused):
        await desk.ledger.recover(held, begin, apply)
    assert desk.now.claim is None
    assert desk.now.refresh_ended


async def test_a_replay_that_was_refused_for_now_leaves_the_first_attempt_in_doubt(desk: Desk) -> None:
    held = await interrupted(desk, refused("temporarily_unavailable"), attempt=2)
    with pytest.raises(Refused):
        await desk.ledger.recover(held, begin, apply)
    assert desk.now.claim == FIRST_DOUBT


async def test_an_unreadable_answer_in_escrow_stays_in_doubt(desk: Desk) -> None:
    held = await interrupted(desk, HttpResponse(200, {}, b"{"))
    with pytest.raises(Ambiguous):
        await desk.ledger.recover(held, begin, apply)
    assert desk.now.claim == FIRST_DOUBT
    assert await desk.ledger.recover(held, begin, apply) is None


@pytest.mark.parametrize("trouble", [Trouble.LOST, Trouble.REPLY_LOST])
async def test_a_claim_that_could_not_be_taken_back_is_taken_back_later(trouble: Trouble) -> None:
    """Nothing was sent, so there is no doubt, however long the store was away."""
    desk = Desk()
    held = await desk.record()
    desk.store.troubles.append(Trouble.REPLY_LOST)
    desk.store.reads.append(Trouble.LOST)
    with pytest.raises(StoreUnavailable):
        await desk.spend(held)
    assert desk.now.claim is not None
    current = desk.store.peek(KEY)
    assert current is not None
    desk.store.troubles.append(trouble)
    with pytest.raises(StoreUnavailable):
        await desk.ledger.tidy(current)
    again = desk.store.peek(KEY)
    assert again is not None
    assert (await desk.ledger.tidy(again)).record.claim is None
    assert desk.now.claim is None
    assert desk.sent == 0


async def test_another_ones_claim_is_not_taken_back() -> None:
    desk = Desk()
    held = await desk.record(FIRST_DOUBT)
    assert await desk.ledger.tidy(held) is held


APPROVED = "approved"
"""The attempt id of an approval, under which its answer is kept."""


async def redeem(desk: Desk, held: Versioned) -> Versioned:
    """Ask for the answer to an approval, as a poll does."""

    async def send(_request: HttpRequest) -> HttpResponse:
        assert APPROVED in desk.escrow.answers, "there is room for it before it is asked for"
        desk.sent += 1
        assert isinstance(desk.answer, HttpResponse)
        return desk.answer

    return await desk.ledger.redeem(held, APPROVED, begin, apply, send)


async def test_the_answer_to_an_approval_is_kept_before_it_is_used(desk: Desk) -> None:
    held = await desk.record()
    committed = await redeem(desk, held)
    assert list(desk.passed) == ["ask", "answered", "escrowed", "commit", "committed"]
    assert (committed.record.refresh_token, desk.escrow.answers) == (SecretValue("next"), {})


async def test_an_answer_to_an_approval_that_had_arrived_is_not_asked_for_again(desk: Desk) -> None:
    held = await desk.record()
    desk.escrow.answers[APPROVED] = issued()
    desk.ending = True
    committed = await redeem(desk, held)
    assert (desk.sent, committed.record.refresh_token) == (0, SecretValue("next"))


async def test_a_process_that_is_ending_asks_for_no_answer(desk: Desk) -> None:
    """It would be the one that gets it, with no time to keep it."""
    held = await desk.record()
    desk.ending = True
    with pytest.raises(Conflict):
        await redeem(desk, held)
    assert (desk.sent, desk.escrow.answers) == (0, {})
