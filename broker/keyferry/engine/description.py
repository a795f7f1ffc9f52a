"""A question to a person in the words and values that the approval page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.errors import KeyferryError, Misdirected, NoSuchQuestion
from keyferry.grants.document import host_of
from keyferry.question import DeviceCode, Question, Stage
from keyferry.render import Delivery
from keyferry.spec.target import TargetType

if TYPE_CHECKING:
    from keyferry.approval import Approval
    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.record import Record
    from keyferry.secret import SecretValue

_DONE: Final = "The workload has its token. You can close this page."


class Describer:
    """Says what is asked, of whom and for what."""

    def __init__(self, ports: Ports, roster: Roster) -> None:
        self._ports = ports
        self._roster = roster

    def question(self, entry: Entry, record: Record, digest: str, browser: SecretValue | None) -> Question:
        """Return the question that ``digest`` is the link of, as ``browser`` may see it. Raises NoSuchQuestion."""
        approval = record.approval
        if approval is None or approval.link is None or approval.link.digest != digest:
            if record.answered != digest:
                raise unknown(self._roster)
            return self._plain(entry, Stage.DONE, expires_at=self._ports.clock.now(), message=_DONE)
        return self._asked(entry, approval, browser)

    def _asked(self, entry: Entry, approval: Approval, _browser: SecretValue | None) -> Question:
        now = self._ports.clock.now()
        until = approval.link.expires_at if approval.link is not None else now
        if approval.ended or now >= approval.expires_at:
            why = approval.ended or "nobody answered in time"
            return self._plain(entry, Stage.ENDED, expires_at=until, message=_ended(why), may_ask_again=True)
        device = DeviceCode(approval.user_code, approval.verification_uri, approval.verification_uri_complete)
        host = host_of(approval.verification_uri)
        return self._plain(entry, Stage.DEVICE, expires_at=approval.expires_at, host=host, device=device)

    def _plain(
        self,
        entry: Entry,
        stage: Stage,
        *,
        expires_at: float,
        host: str = "",
        device: DeviceCode | None = None,
        message: str = "",
        may_ask_again: bool = False,
    ) -> Question:
        spec = entry.resource.spec
        provider = self._roster.provider_of(entry)
        expected = spec.expected_subject
        return Question(
            identity=entry.key,
            provider=f"{entry.provider_key[0]} {spec.provider_ref.name}",
            provider_host=host or (", ".join(sorted(provider.front())) if provider is not None else ""),
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
            device=device,
            message=message,
            may_ask_again=may_ask_again,
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
    return f"It came to nothing: {told}. What the workload has stays until it expires. You can ask to be asked again."
