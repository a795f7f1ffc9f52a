"""Spends one-time refresh tokens so that a crash at any point loses as little as can be, and never silently.

Read, claim, spend, escrow, commit, publish: the order is the protocol. The claim is a compare-and-swap in the private
state, so two processes never send the same refresh token by accident; the escrow keeps an answer that arrived but is
not committed yet; what neither covers is in doubt and goes by ``doubt``.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.errors import (
    Ambiguous,
    Conflict,
    ExchangeError,
    NotSent,
    Refused,
    RetryClass,
    StoreError,
    StoreUnavailable,
)
from keyferry.frozen import replace
from keyferry.grants.failure import is_success
from keyferry.record import Claim, Record, Versioned

if TYPE_CHECKING:
    from keyferry.escrow import Escrow
    from keyferry.io.clock import Clock
    from keyferry.model import Exchange, HttpRequest, HttpResponse, ObjectKey, TokenSet
    from keyferry.secret import SecretValue
    from keyferry.store import Store

log = logging.getLogger(__name__)

CLAIM_FRESH: Final = 5.0
"""Seconds (boot time, which counts a suspended machine) within which a claim must be followed by its spend."""

CLAIM_TRIES: Final = 3
COMMIT_BACKOFF: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 15.0)

Send = Callable[["HttpRequest"], Awaitable["HttpResponse"]]
Begin = Callable[[float], "Exchange"]
"""Starts the exchange; its argument is when the request begins (Unix seconds)."""
Apply = Callable[[Record, "TokenSet"], Record]
"""Puts what was issued into the record."""
Stuck = Callable[["ObjectKey", str], None]
"""Called with the identity and what to tell people."""
Checkpoint = Callable[[str], None]
"""Called at every step, by name: where a test may end the process."""


def _pass(_step: str) -> None:
    """Do nothing at a checkpoint."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which of a record's claims announces a spend, and what a refusal for good means there."""

    of: Callable[[Record], Claim | None]
    put: Callable[[Record, Claim | None], Record]
    end: Callable[[Record, str], Record]
    """Takes the reason, for people."""


def _end_login(record: Record, why: str) -> Record:
    approval = record.approval
    return record if approval is None else replace(record, approval=replace(approval, ended=why, login=None))


SESSION: Final = Place(
    lambda record: record.claim,
    lambda record, claim: replace(record, claim=claim),
    lambda record, why: replace(record, refresh_ended=why),
)
"""The refresh token of a session, or the seed of one."""
LOGIN: Final = Place(
    lambda record: record.login_claim, lambda record, claim: replace(record, login_claim=claim), _end_login
)
"""The code that a person's login brought: the session that is there is not touched by it."""


@dataclass(frozen=True, slots=True)
class Spend:
    """One refresh token, or one code, and what is to happen with it."""

    token: SecretValue
    begin: Begin
    apply: Apply
    send: Send
    deadline: float
    """Seconds, of the one request."""
    attempt: int = 1
    place: Place = SESSION


class Ledger:
    """The claim and commit protocol over a store and an escrow."""

    def __init__(
        self,
        store: Store,
        escrow: Escrow,
        clock: Clock,
        *,
        holder: str,
        checkpoint: Checkpoint = _pass,
        may_begin: Callable[[ObjectKey], bool] = lambda _key: True,
        stuck: Stuck = lambda _key, _message: None,
    ) -> None:
        """``may_begin`` is asked right before each claim; where it says no, nothing is sent (Conflict).

        ``stuck`` is told when an answer cannot be stored, once for each answer.
        """
        self._store = store
        self._escrow = escrow
        self._clock = clock
        self._holder = holder
        self._checkpoint = checkpoint
        self._may_begin = may_begin
        self._stuck = stuck
        self._unsent: dict[str, Claim | None] = {}
        """Claims of ours that could not be taken back: nothing was sent. By attempt id, with the doubt before it."""

    async def spend(self, held: Versioned, spend: Spend) -> Versioned:
        """Send the refresh token once and commit what comes back; return the committed record.

        Raises Conflict (somebody else claimed; nothing was sent), StoreUnavailable (nothing was sent), NotSent (the
        claim is taken back), Refused (the claim is settled), Ambiguous (the claim stays open: in doubt).
        """
        place = spend.place
        before = place.of(held.record)
        attempt_id = secrets.token_hex(16)
        await self._escrow.reserve(attempt_id)
        try:
            held = await self._claim(held, spend, attempt_id)
        except (StoreError, NotSent):
            await self._forget(attempt_id)
            raise
        try:
            exchange = spend.begin(self._clock.now())
            request = next(exchange)
        except Exception:
            await self._release(held, before, place)
            await self._forget(attempt_id)
            raise
        try:
            self._checkpoint("spend")
            answer = await spend.send(request)
        except NotSent:
            await self._release(held, before, place)
            await self._forget(attempt_id)
            raise
        except Ambiguous as error:
            await self._forget(attempt_id)
            error.retry = RetryClass.IN_DOUBT
            raise
        self._checkpoint("answered")
        await self._keep(attempt_id, answer)
        self._checkpoint("escrowed")
        return await self._conclude(held, exchange, answer, spend.apply, before, place)

    async def recover(self, held: Versioned, begin: Begin, apply: Apply, place: Place = SESSION) -> Versioned | None:
        """Commit an answer that had arrived before a crash; None when there is none for the record's open claim."""
        claim = place.of(held.record)
        if claim is None:
            return None
        answer = await self._escrow.recall(claim.attempt_id)
        if answer is None:
            return None
        log.info("committing an answer that had arrived before the restart: %s", held.record.key)
        exchange = begin(claim.claimed_at)
        next(exchange)
        return await self._conclude(
            held, exchange, answer, apply, replace(claim, attempt=1) if claim.attempt > 1 else None, place
        )

    async def tidy(self, held: Versioned) -> Versioned:
        """Take back a claim of ours of which nothing was sent, where that failed before. Raises StoreError."""
        for place in (SESSION, LOGIN):
            claim = place.of(held.record)
            if claim is not None and claim.attempt_id in self._unsent:
                held = await self._store.replace(held, place.put(held.record, self._unsent[claim.attempt_id]))
                del self._unsent[claim.attempt_id]
        return held

    async def redeem(self, held: Versioned, attempt_id: str, begin: Begin, apply: Apply, send: Send) -> Versioned:
        """Ask once for the answer to an approval, and commit it if it came; return the committed record.

        Asking again is safe until the answer comes, which uses the code up (RFC 8628 3.5). So there is no claim: what
        guards the answer is the escrow, where it lies under the approval's own ``attempt_id``, also after a crash.
        ``apply`` raises Conflict where the record does not wait for it any more. Raises what the exchange raises.
        """
        answer = await self._escrow.recall(attempt_id)
        if answer is None:
            if not self._may_begin(held.record.key):
                raise Conflict("this process is ending, so nothing new is begun")
            await self._escrow.reserve(attempt_id)
        exchange = begin(self._clock.now())
        request = next(exchange)
        try:
            if answer is None:
                self._checkpoint("ask")
                answer = await send(request)
                self._checkpoint("answered")
                if is_success(answer):
                    await self._keep(attempt_id, answer)
                    self._checkpoint("escrowed")
            exchange.send(answer)
        except StopIteration as stop:
            issued: TokenSet = stop.value
        except ExchangeError:
            await self._forget(attempt_id)
            raise
        else:
            raise ExchangeError("an approval wants more than one request; this is a defect of Keyferry")
        committed = await self.commit(held, lambda record: apply(record, issued))
        self._checkpoint("committed")
        await self._forget(attempt_id)
        return committed

    async def _claim(self, held: Versioned, spend: Spend, attempt_id: str) -> Versioned:
        """Announce the spend in the private state, which also proves that the state can be written."""
        place = spend.place
        before = place.of(held.record)
        digest = spend.token.fingerprint(self._store.digest_key)
        if not self._may_begin(held.record.key):
            raise Conflict("this process is ending, or leaves the identity to another, so nothing new is begun")
        for _ in range(CLAIM_TRIES):
            self._checkpoint("claim")
            begun = self._clock.boottime()
            claim = Claim(digest, attempt_id, spend.attempt, self._holder, self._clock.now(), spend.deadline)
            try:
                held = await self._store.replace(held, place.put(held.record, claim))
            except StoreUnavailable:
                await self._take_back(held, before, attempt_id, place)
                raise
            self._checkpoint("claimed")
            if self._clock.boottime() - begun < CLAIM_FRESH:
                return held
        await self._release(held, before, place)
        raise NotSent(
            "the private state takes longer to write than a claim stays fresh; nothing was sent", code="slow_store"
        )

    async def _release(self, held: Versioned, before: Claim | None, place: Place) -> None:
        """Take a claim back of which nothing was sent; a replay leaves the first attempt in doubt, as it was."""
        try:
            await self._store.replace(held, place.put(held.record, before))
        except StoreError as error:
            # The claim stays open until it is looked at again; after a restart it makes the next try more careful.
            log.warning("a claim could not be taken back yet: %s: %s", held.record.key, error)
            claim = place.of(held.record)
            if claim is not None:
                self._unsent[claim.attempt_id] = before

    async def _take_back(self, held: Versioned, before: Claim | None, attempt_id: str, place: Place) -> None:
        """Take a claim back of which it is not known whether it was written: an error may come after the fact."""
        try:
            current = await self._store.read(held.record.key, held.record.uid)
        except StoreError:
            self._unsent[attempt_id] = before
            return
        claim = place.of(current.record) if current is not None else None
        if current is not None and claim is not None and claim.attempt_id == attempt_id:
            await self._release(current, before, place)

    async def _forget(self, attempt_id: str) -> None:
        """Give the escrow's space back; what cannot be removed now is swept at the next start."""
        try:
            await self._escrow.release(attempt_id)
        except StoreError as error:
            log.debug("the escrow could not be cleaned up: %s", error)

    async def _keep(self, attempt_id: str, answer: HttpResponse) -> None:
        """Escrow the answer; a failure is survivable, since the answer is still in memory."""
        try:
            await self._escrow.keep(attempt_id, answer)
        except StoreError as error:
            log.warning("an answer could not be put into escrow before its commit: %s", error)

    async def _conclude(
        self,
        held: Versioned,
        exchange: Exchange,
        answer: HttpResponse,
        apply: Apply,
        before: Claim | None,
        place: Place,
    ) -> Versioned:
        """Parse the answer and commit what it says; ``before`` is the doubt that a refused replay falls back to."""
        claim = place.of(held.record)
        attempt_id = claim.attempt_id if claim is not None else ""
        try:
            exchange.send(answer)
        except StopIteration as stop:
            issued: TokenSet = stop.value
            committed = await self.commit(held, lambda record: place.put(apply(record, issued), None), place)
        except Ambiguous as error:
            error.retry = RetryClass.IN_DOUBT
            await self._forget(attempt_id)
            raise
        except Refused as refusal:
            await self.commit(held, _refused(refusal, before, place), place)
            await self._forget(attempt_id)
            raise
        else:
            raise ExchangeError("a refresh wants more than one request; this is a defect of Keyferry")
        self._checkpoint("committed")
        await self._forget(attempt_id)
        return committed

    async def commit(self, held: Versioned, change: Callable[[Record], Record], place: Place = SESSION) -> Versioned:
        """Write the outcome until it is written, but only over the claim that it belongs to."""
        for attempt in itertools.count():
            try:
                self._checkpoint("commit")
                wanted = change(held.record)
                try:
                    return await self._store.replace(held, wanted)
                except Conflict:
                    current = await self._store.read(held.record.key, held.record.uid)
                    if current is not None and current.record == wanted:
                        return current  # it was written, and only the reply was lost
                    if current is None or place.of(current.record) != place.of(held.record):
                        raise
                    held = current
            except Conflict:
                raise
            except StoreError as error:
                pause = COMMIT_BACKOFF[min(attempt, len(COMMIT_BACKOFF) - 1)]
                if attempt == 0:
                    self._stuck(
                        held.record.key,
                        "the provider's answer arrived and cannot be stored yet; it is kept in memory and tried again"
                        f" until it is stored, and nothing else is sent meanwhile. {error.message}",
                    )
                log.warning(
                    "an answer arrived and cannot be stored yet: %s: %s; trying again in %g s",
                    held.record.key,
                    error,
                    pause,
                )
                await self._clock.sleep(pause)
        raise AssertionError("unreachable: the loop ends by return or raise only")


def _refused(refusal: Refused, before: Claim | None, place: Place) -> Callable[[Record], Record]:
    """Return what a refusal means for the record: the credential ended, or it was not touched."""

    def change(record: Record) -> Record:
        if refusal.retry is RetryClass.NEEDS_PERSON:
            return place.end(place.put(record, None), refusal.message)
        return place.put(record, before)

    return change
