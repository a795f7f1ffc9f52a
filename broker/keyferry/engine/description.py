"""A question to a person in the words and values that the approval page shows."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.asking import UNANSWERED
from keyferry.errors import KeyferryError, Misdirected, NoSuchQuestion
from keyferry.grants.claims import unverified_claims
from keyferry.grants.document import host_of, shown
from keyferry.question import Account, DeviceCode, Question, Stage
from keyferry.render import Delivery
from keyferry.spec.provider import ProviderType
from keyferry.spec.target import TargetType

if TYPE_CHECKING:
    from keyferry.approval import Approval, Candidate
    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.record import Record

_DONE: Final = "The workload has its token. You can close this page."


class Describer:
    """Says what is asked, of whom and for what."""

    def __init__(self, ports: Ports, roster: Roster) -> None:
        self._ports = ports
        self._roster = roster

    def question(self, entry: Entry, record: Record, digest: str, browser: str) -> Question:
        """Return the question that ``digest`` is the link of, as ``browser`` may see it: keyed hashes of both.

        Raises NoSuchQuestion.
        """
        approval = record.approval
        if approval is None or approval.link is None or approval.link.digest != digest:
            if record.answered != digest:
                raise unknown(self._roster)
            return replace(self._plain(entry, Stage.DONE, entry.answered_until), message=_DONE)
        return self._asked(entry, approval, browser)

    def _asked(self, entry: Entry, approval: Approval, browser: str) -> Question:
        now = self._ports.clock.now()
        until = approval.link.expires_at if approval.link is not None else now
        if approval.ended or now >= approval.expires_at:
            question = self._plain(entry, Stage.ENDED, until)
            return replace(question, message=_ended(approval.ended or UNANSWERED), may_ask_again=True)
        if approval.logs_in:
            return self._login(entry, approval, browser, now)
        question = self._plain(entry, Stage.DEVICE, approval.expires_at)
        device = DeviceCode(approval.user_code, approval.verification_uri, approval.verification_uri_complete)
        return replace(question, device=device, provider_host=host_of(approval.verification_uri))

    def _login(self, entry: Entry, approval: Approval, browser: str, now: float) -> Question:
        login, candidate = approval.login, approval.candidate
        if candidate is not None and now < candidate.expires_at:
            here = bool(browser) and hmac.compare_digest(browser, candidate.browser)
            question = self._plain(entry, Stage.CONFIRM, candidate.expires_at)
            return replace(question, begun_here=here, account=_account(candidate) if here else None)
        here = login is not None and bool(browser) and hmac.compare_digest(browser, login.browser)
        if approval.answered and login is not None:
            return replace(self._plain(entry, Stage.WORKING, login.expires_at), begun_here=here)
        provider = self._roster.provider_of(entry)
        takes_code = provider is not None and provider.resource.spec.type is ProviderType.LABARCHIVES
        question = replace(self._plain(entry, Stage.LOGIN, approval.expires_at), takes_code=takes_code)
        begun = here and login is not None and now < login.expires_at
        return replace(question, begun_here=begun)

    def _plain(self, entry: Entry, stage: Stage, expires_at: float) -> Question:
        """Return what every question says."""
        spec = entry.resource.spec
        provider = self._roster.provider_of(entry)
        expected = spec.expected_subject
        return Question(
            identity=entry.key,
            provider=f"{entry.provider_key[0]} {spec.provider_ref.name}",
            provider_host=", ".join(sorted(provider.front())) if provider is not None else "",
            grant=spec.grant.type.value,
            stage=stage,
            expires_at=expires_at,
            scopes=spec.scopes,
            audiences=spec.audiences,
            target=self._target(entry),
            consumers=tuple(
                f"ServiceAccount {consumer.service_account_name}"
                if consumer.service_account_name
                else f"ServiceIdentity {consumer.identity_name}"
                for consumer in spec.consumers
            ),
            expected=(expected.subject or expected.email or "") if expected is not None else "",
        )

    def _target(self, entry: Entry) -> str:
        """Say where the token will lie."""
        target = entry.resource.spec.target
        if target.type is TargetType.NONE:
            return "with Keyferry alone; the workloads named here may fetch it"
        publisher = self._ports.publisher
        if publisher.delivery is Delivery.SECRET:
            return f"Secret {entry.key.namespace}/{target.secret_name or entry.key.name}"
        return f"files in {publisher.place(entry.key)}"


def _account(candidate: Candidate) -> Account:
    """Return who logged in, as far as the provider's tokens say. A LabArchives user id is no name but a credential."""
    tokens = candidate.tokens
    identified = unverified_claims(tokens.id_token.reveal()) if tokens.id_token is not None else {}
    claims = identified or unverified_claims(tokens.access_token.reveal())
    name = candidate.person or shown(claims.get("name")) or shown(claims.get("preferred_username"))
    return Account(tokens.subject, tokens.email, name)


def unknown(roster: Roster) -> KeyferryError:
    """Return the error for a link that leads to no question here."""
    if roster.shards.held != roster.shards.all:
        return Misdirected("This question is not asked here; it may be another replica's.")
    return NoSuchQuestion(
        "There is no such question: it was answered, it lapsed, or the address is not complete. See the identity's"
        " status for the current one, or ask whoever sent you here."
    )


def _ended(why: str) -> str:
    told = why.removesuffix(".")
    if told.partition(" ")[0].isalpha():  # a host stays as it is
        told = f"{told[0].upper()}{told[1:]}"
    return f"{told}. The token that the workload has, if any, stays until it expires."
