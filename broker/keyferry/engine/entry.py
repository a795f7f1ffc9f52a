"""What the engine keeps in memory of one identity: little, since there may be 10,000 of them."""

from __future__ import annotations

import enum
import math
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Final

from keyferry.engine.apply import reauthorize_by
from keyferry.engine.foresight import notice_times
from keyferry.engine.job import REPEATABLE
from keyferry.engine.links import page_address
from keyferry.engine.status import APPROVAL_PENDING, IdentityStatus, Prompt
from keyferry.engine.wishes import Begin
from keyferry.errors import Reason
from keyferry.spec.target import TargetType

if TYPE_CHECKING:
    from keyferry.approval import Approval, Link
    from keyferry.engine.wishes import Wish
    from keyferry.errors import KeyferryError
    from keyferry.model import ObjectKey
    from keyferry.plan import Failure, PublishedState
    from keyferry.question import Account
    from keyferry.record import Claim, Record
    from keyferry.spec.resources import IdentityResource

ProviderKey = tuple[str, "ObjectKey"]
"""Kind, and namespace with name."""


class Care(enum.Enum):
    """How far an identity is this engine's."""

    NONE = enum.auto()
    """Another process looks after it, or nobody; it is known because others may refer to it."""
    FULL = enum.auto()
    ENDING = enum.auto()
    """What is under way is finished and told; nothing more is begun."""


@dataclass(slots=True, eq=False)
class Entry:
    """One declared identity."""

    resource: IdentityResource
    uid: str
    provider_key: ProviderKey
    spec_hash: str
    files_hash: str
    named_keys: frozenset[tuple[str, str]] = frozenset()
    """Every (Secret, key) that the resource points to."""
    refusal: KeyferryError | None = None
    """Why the resource cannot be used as it is written; what is published stays."""
    failure: Failure | None = None
    failure_checked: bool = False
    """Whether the failure's cause was compared with the credentials as they are now."""
    tried: str = ""
    """Fingerprint of the spec and credentials that the exchange under way was begun with."""
    failure_kept: bool = False
    """Whether a failure is stored, and must be cleared there once it is over."""
    publish_failure: Failure | None = None
    """Files that could not be written; apart from the other, since a renewal does not wait for a disk."""
    busy: bool = False
    again: bool = False
    """Something changed while it was busy."""
    renew: bool = False
    """Somebody asked for a renewal."""
    login: bool = False
    """Somebody wants a person to be asked."""
    login_by_page: bool = False
    """It was whoever has the link of the last question that wanted so."""
    prompt: Prompt | None = None
    """What a person is being asked."""
    link: Link | None = None
    """Under which the page shows what a person is, or was, being asked."""
    state: str = ""
    """Keyed hash of the ``state`` of a login that a browser has begun and not come back from."""
    redeeming: bool = False
    """A browser came back with a code, and what became of that is not known yet."""
    wishes: tuple[Wish, ...] = ()
    """What the approval page wants."""
    answered: str = ""
    """Digest of the link under which a person gave what the session began with."""
    answered_until: float = 0.0
    page_url: str = ""
    """Where the page is; empty where there is none."""
    announced: Prompt | None = None
    """What people were last told that a person is being asked."""
    poll_at: float = 0.0
    """When the provider is asked next whether the person answered (Unix seconds)."""
    wanted_remaining: float = 0.0
    recovered: str = ""
    """Attempt id of the last open claim whose escrow was looked for."""
    shown: PublishedState | None = None
    """What workloads see, as last observed or written."""
    revision: int = 0
    told_revision: int = 0
    """Of the status as it was found."""
    issue_time: float = 0.0
    expiration_time: float = 0.0
    renewal_time: float = 0.0
    reauthorize_by: float | None = None
    """When only a person can go on, however often the session is refreshed (Unix seconds)."""
    unrefreshed_end: float | None = None
    """The same where nothing is refreshed any more."""
    notice_times: tuple[float, ...] = ()
    """When people are told ahead of ``reauthorize_by``."""
    authorized_as: Account | None = None
    unapproved: str = ""
    """Why the last question to a person came to nothing."""
    claim_seen: tuple[str, float] | None = None
    """Attempt id of an open claim, and when (monotonic) it was first seen."""
    login_claim_seen: tuple[str, float] | None = None
    """The same of the claim of a login's code."""
    claim_finished: str = ""
    """Attempt id of an open claim whose request this process itself has given up."""
    last_renewal: float = -math.inf
    """When (monotonic) the last renewal on demand was begun."""
    reported: tuple[Reason, str] | None = None
    care: Care = Care.NONE

    @property
    def key(self) -> ObjectKey:
        """Namespace and name."""
        return self.resource.key

    def begin_anew(self) -> None:
        """Forget all but what is declared: another process may have worked on it since."""
        for each in fields(self):
            if each.default is not MISSING and each.name not in _DECLARED:
                setattr(self, each.name, each.default)

    def take(self, record: Record | None, maximum: float | None) -> None:
        """Note the times of a record."""
        if record is None:
            return
        approval = record.approval
        self.asking(approval, approval.next_look if approval is not None and approval.logs_in else None)
        self.answered, self.answered_until = record.answered, record.answered_until
        self.authorized_as = record.authorized_as
        if record.token is None:
            return
        self.revision = record.revision
        self.issue_time = record.token.issued_at
        self.expiration_time = record.token.expires_at
        self.renewal_time = record.renewal_time
        # A grant that can be made again needs nobody, whatever becomes of its session.
        needs_person = self.resource.spec.grant.type not in REPEATABLE
        self.reauthorize_by = reauthorize_by(record, maximum) if needs_person else None
        self.unrefreshed_end = reauthorize_by(record, maximum, refreshing=False) if needs_person else None
        began, end = record.session_started_at, self.reauthorize_by
        self.notice_times = notice_times(began, end) if end is not None else ()

    def asking(self, approval: Approval | None, poll_at: float | None = None) -> None:
        """Note what a person is being asked, and when the provider is asked next whether they answered."""
        self.link = approval.link if approval is not None else None
        self.unapproved = approval.ended if approval is not None else ""
        login = approval.login if approval is not None and not approval.ended else None
        self.state = login.state_digest if login is not None and login.code is None else ""
        self.redeeming = approval is not None and approval.answered
        self.prompt = None
        page = page_address(self.page_url, approval.link) if approval is not None and approval.link is not None else ""
        # One that was asked on a page which is not there any more cannot be answered.
        if approval is not None and not approval.ended and (approval.verification_uri or page):
            self.prompt = Prompt(
                approval.verification_uri,
                approval.verification_uri_complete,
                approval.user_code,
                approval.expires_at,
                page,
            )
        if poll_at is not None:
            self.poll_at = poll_at

    def login_was_heard(self) -> None:
        """Note that the wish to have a person asked was seen to; not one that may have come meanwhile."""
        if not self.again:
            self.login = self.login_by_page = False

    def waive(self, *, always: bool) -> None:
        """Forgive the last failure; unless ``always``, one that waits for a change is first compared with what is."""
        self.publish_failure = None
        if always or self.failure is None or math.isfinite(self.failure.next_attempt):
            self.failure = None
        else:
            self.failure_checked = False

    def shift(self, seconds: float) -> None:
        """Move what was planned by the wall clock along with its jump."""
        if self.failure is not None:
            self.failure = replace(self.failure, next_attempt=self.failure.next_attempt + seconds)
        if self.publish_failure is not None:
            at = self.publish_failure.next_attempt + seconds
            self.publish_failure = replace(self.publish_failure, next_attempt=at)

    def claim_age(self, claim: Claim, now: float) -> float:
        """Return for how long (seconds, monotonic) this process has been looking at an open claim."""
        if self.claim_seen is None or self.claim_seen[0] != claim.attempt_id:
            self.claim_seen = (claim.attempt_id, now)
        return now - self.claim_seen[1]

    def login_claim_age(self, claim: Claim, now: float) -> float:
        """Return the same of the claim of a login's code."""
        if self.login_claim_seen is None or self.login_claim_seen[0] != claim.attempt_id:
            self.login_claim_seen = (claim.attempt_id, now)
        return now - self.login_claim_seen[1]

    def disappoint(self, error: KeyferryError) -> None:
        """Say to whoever wants to begin a login that it cannot be begun now."""
        for wish in self.wishes:
            if isinstance(wish, Begin):
                wish.refuse(error)

    def status(self, reason: Reason, message: str, *, busy: bool = False) -> IdentityStatus:
        """Return the status as people see it; ``busy`` while an exchange is queued or under way."""
        failure = self.failure or self.publish_failure
        # A poll every few seconds is no news.
        polling = failure is not None and failure.code == APPROVAL_PENDING
        next_attempt = failure.next_attempt if failure is not None and not polling else None
        spec = self.resource.spec
        return IdentityStatus(
            key=self.key,
            provider=spec.provider_ref.name,
            grant=spec.grant.type.value,
            reason=reason,
            message=message,
            retry=failure.retry if failure is not None else (self.refusal.retry if self.refusal is not None else None),
            revision=self.revision,
            shown=self.resource.spec.target.type is TargetType.NONE
            or (self.shown is not None and self.shown.uid == self.uid),
            issue_time=self.issue_time or None,
            expiration_time=self.expiration_time or None,
            renewal_time=self.renewal_time or None,
            next_attempt_time=next_attempt if next_attempt is not None and math.isfinite(next_attempt) else None,
            reauthorize_by_time=self.unrefreshed_end
            if failure is not None or reason is Reason.SUSPENDED
            else self.reauthorize_by,
            failure_count=failure.count if failure is not None else 0,
            error_code=failure.code if failure is not None else "",
            cause=failure.cause if failure is not None else "",
            busy=busy,
            prompt=self.prompt,
            unapproved=self.unapproved,
            authorized_as=self.authorized_as,
        )


_DECLARED: Final = frozenset({"named_keys", "refusal", "busy", "care", "last_renewal", "told_revision", "page_url"})
