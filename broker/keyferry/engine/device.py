"""Asks a person by device code (RFC 8628): one prompt at a time, polled as the RFC says, and never in a loop."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from keyferry.approval import Approval
from keyferry.engine.asking import UNANSWERED, came_to_nothing, nobody_sees
from keyferry.errors import ApprovalPending, Conflict, ExchangeError, Reason, ResourceError, RetryClass
from keyferry.grants.rfc8628_device_code import Decision, authorize, decision, next_interval, poll
from keyferry.io.http import drive

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.attempt import Attempt
    from keyferry.engine.job import Job
    from keyferry.engine.links import Links
    from keyferry.engine.ports import Ports
    from keyferry.errors import KeyferryError
    from keyferry.grants.rfc8628_device_code import Authorization
    from keyferry.ledger import Ledger
    from keyferry.model import Exchange, TokenSet
    from keyferry.record import Record, Versioned
    from keyferry.secret import SecretValue


class DeviceDialect(Protocol):
    """How one provider is asked for a device code, and whether it was approved. Times are Unix seconds."""

    def authorize(self, started_at: float) -> Authorization:
        """Ask for a device code."""
        ...

    def poll(self, device_code: SecretValue, started_at: float) -> Exchange:
        """Ask once; what a refusal means is said with the codes of RFC 8628 3.5, whatever the provider's own words."""
        ...


@dataclass(frozen=True, slots=True)
class OAuthDevice:
    """The dialect of RFC 8628 itself; it fails where the provider has no device authorization endpoint."""

    attempt: Attempt

    def authorize(self, started_at: float) -> Authorization:
        """Ask for a device code (RFC 8628 3.1)."""
        endpoint = self.attempt.metadata.endpoint("deviceAuthorization")
        return authorize(replace(self.attempt.inputs, started_at=started_at), endpoint)

    def poll(self, device_code: SecretValue, started_at: float) -> Exchange:
        """Ask once (RFC 8628 3.4)."""
        return poll(replace(self.attempt.inputs, started_at=started_at), device_code)


class DeviceFlow:
    """Shows a person a code, and asks the provider now and then whether they approved."""

    def __init__(self, ports: Ports, ledger: Ledger, links: Links, *, prompts: bool) -> None:
        """``prompts`` tells whether anybody would see a prompt; else none is begun."""
        self._ports = ports
        self._ledger = ledger
        self._links = links
        self._prompts = prompts

    async def proceed(self, job: Job, dialect: DeviceDialect, apply: Callable[[Record, TokenSet], Record]) -> Versioned:
        """Do what is next: prompt, or ask whether the prompt was answered.

        Returns the committed record once it was. Raises ApprovalPending while it was not, ResourceError
        (ApprovalRequired) where the prompt lapsed or was refused and nobody asked for another.
        """
        approval = job.held.record.approval if job.held is not None else None
        wanted = job.observed.renew_requested or job.observed.login_requested
        if approval is None or approval.spec_hash != job.observed.spec_hash:
            return await self._prompt(job, dialect)
        if not approval.open(job.observed.spec_hash, self._ports.clock.now()):
            if wanted:
                return await self._prompt(job, dialect)
            raise await self._over(job, approval, approval.ended or UNANSWERED)
        return await self._poll(job, dialect, approval, apply)

    async def _prompt(self, job: Job, dialect: DeviceDialect) -> Versioned:
        """Ask for a code and keep it, then wait for the person."""
        if not self._prompts:
            raise nobody_sees(job)
        held = await job.prove_writable()
        await job.channel.ready()
        started = self._ports.clock.now()
        given = await drive(dialect.authorize(started), job.channel.send)
        before, observed = held.record.approval, job.observed
        approval = Approval(
            attempt_id=secrets.token_hex(16),
            spec_hash=job.observed.spec_hash,
            begun_at=started,
            expires_at=given.expires_at,
            device_code=given.device_code,
            user_code=given.user_code,
            verification_uri=given.verification_uri,
            verification_uri_complete=given.verification_uri_complete,
            interval=given.interval,
            link=self._links.of(before.link if before else None, started, renew=not observed.asked_through_page),
        )
        job.held = await self._ports.store.replace(held, replace(held.record, approval=approval))
        raise self._pending(job, approval)

    async def _poll(
        self, job: Job, dialect: DeviceDialect, approval: Approval, apply: Callable[[Record, TokenSet], Record]
    ) -> Versioned:
        held = await job.ensure_record()

        def begin(started: float) -> Exchange:
            return dialect.poll(approval.device_code, started)

        def take(record: Record, issued: TokenSet) -> Record:
            if record.approval is None or record.approval.attempt_id != approval.attempt_id:
                raise Conflict("somebody else took the answer to this prompt, or asked anew")
            taken = apply(record, issued).without_claim()
            if taken.wrong_subject:  # nobody is asked again by itself, and whoever asks is told why
                return replace(taken, approval=replace(approval, ended=taken.refresh_ended))
            return taken.with_answer()

        await job.channel.ready()
        try:
            committed = await self._ledger.redeem(held, approval.attempt_id, begin, take, job.channel.send)
        except ExchangeError as error:
            raise await self._unanswered(job, held, approval, error) from None
        if committed.record.approval is not None:
            job.asked(committed.record.approval, 0.0)
        return committed

    async def _unanswered(self, job: Job, held: Versioned, approval: Approval, error: ExchangeError) -> KeyferryError:
        """Note what the provider said instead of an answer; return the error to raise."""
        match decision(error):
            case Decision.DENIED:
                return await self._over(job, approval, "the person, or the provider's policy, said no")
            case Decision.LAPSED:
                return await self._over(job, approval, self._lapse(approval))
            case Decision.PENDING:
                approval = await self._slow_down(job, held, approval, next_interval(approval.interval, error))
                return self._pending(job, approval)
            case Decision.UNKNOWN if error.retry in _ASKED_AGAIN:
                # RFC 8628 3.5: an unanswered poll is made again, later; only the person's answer uses the code up.
                error.retry, error.reason = RetryClass.TRANSIENT, Reason.RETRYING
                error.retry_after = max(error.retry_after or 0.0, next_interval(approval.interval, error))
            case _:
                if error.retry is RetryClass.NEEDS_PERSON:
                    await self._end(job, approval, error.message)
        return error

    def _lapse(self, approval: Approval) -> str:
        """Say why the provider knows a code no more: an answer that was lost on its way is not asked for again."""
        if self._ports.clock.now() >= approval.expires_at - approval.interval:
            return UNANSWERED
        return "the provider gave the code up before its time, or the answer to it was lost"

    async def _slow_down(self, job: Job, held: Versioned, approval: Approval, interval: float) -> Approval:
        if interval == approval.interval:
            return approval
        slower = replace(approval, interval=interval)
        job.held = await self._ports.store.replace(held, replace(held.record, approval=slower))
        return slower

    async def _over(self, job: Job, approval: Approval, why: str) -> ResourceError:
        """Note that the prompt came to nothing; return what people are told."""
        await self._end(job, approval, why)
        return came_to_nothing(job, why)

    async def _end(self, job: Job, approval: Approval, why: str) -> None:
        ended = replace(approval, ended=approval.ended or why)
        if not approval.ended:
            held = await job.ensure_record()
            job.held = await self._ports.store.replace(held, replace(held.record, approval=ended))
        job.asked(ended, 0.0)

    def _pending(self, job: Job, approval: Approval) -> ApprovalPending:
        upcoming = self._ports.clock.now() + approval.interval
        job.asked(approval, upcoming)
        return ApprovalPending(
            f"ServiceIdentity {job.key} waits for a person to approve it: open the address in status.approval, or the"
            " one that `keyferry login` shows, compare the code, and log in as the account that the workload is for.",
            approval,
            next_attempt=upcoming,
        )


_ASKED_AGAIN: Final = frozenset({RetryClass.TRANSIENT, RetryClass.IN_DOUBT, RetryClass.SUSPICIOUS})
