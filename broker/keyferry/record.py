"""The private state of one identity: what must survive a crash, as frozen values.

It is the only place where refresh tokens are kept. Whoever may read it may act as the workload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyferry.frozen import replace

if TYPE_CHECKING:
    from keyferry.approval import Approval, Thrown
    from keyferry.model import ObjectKey, TokenSet
    from keyferry.question import Account
    from keyferry.secret import SecretValue


@dataclass(frozen=True, slots=True)
class Claim:
    """The announcement that a one-time credential is about to be sent (see ``ledger``)."""

    digest: str
    """Keyed hash of the credential: tells which one without holding it."""
    attempt_id: str
    attempt: int
    """1 is the spend, 2 the one replay that an in-doubt spend is allowed."""
    holder: str
    """Which process claimed."""
    claimed_at: float
    deadline: float
    """Seconds after which the holder gives the request up."""


@dataclass(frozen=True, slots=True)
class Binding:
    """Whom the credentials of a record belong to. They are never sent anywhere else."""

    issuer: str
    hosts: tuple[str, ...]
    client_id: str


@dataclass(frozen=True, slots=True)
class Revocation:
    """How to undo what was issued, kept because the resources may be gone by then. Holds references, no secrets."""

    policy: str
    provider: dict[str, Any]
    """The provider's spec as it was written."""
    client: dict[str, Any] | None
    """The identity's own client, where it has one."""
    provider_namespace: str
    provider_kind: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of refresh tokens that is set aside while another seed is tried."""

    seed: str
    refresh_token: SecretValue
    refresh_issued_at: float
    refresh_expires_at: float | None
    refresh_idle: float | None
    session_started_at: float
    binding: Binding | None
    authorized_as: Account | None = None
    refresh_slides: bool = False
    session_expires_at: float | None = None
    session_notices: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that Keyferry remembers of one identity."""

    uid: str
    key: ObjectKey
    origin: str = ""
    """Which state (directory, cluster) wrote it: a record of another origin is never used."""
    source: str = ""
    """Where the resource was declared; ``keyferry run`` only lets go what vanished from a place it reads."""
    generation: int = 0
    """Grows with every committed refresh token."""
    revision: int = 0
    """Grows with every published token."""
    spec_hash: str = ""
    binding: Binding | None = None
    seed: str = ""
    """Keyed hash of the seed that the chain of refresh tokens began with."""
    planting: str = ""
    """Keyed hash of a seed that is about to be sent for the first time, and was not yet."""
    former_seeds: tuple[str, ...] = ()
    """Fingerprints of seeds that were sent before: they are never sent again."""
    previous: Chain | None = None
    """The chain before the seed that is being tried; it comes back if the provider refuses the new one."""
    refresh_token: SecretValue | None = None
    refresh_issued_at: float = 0.0
    refresh_expires_at: float | None = None
    refresh_idle: float | None = None
    """Seconds that the first refresh token of the session was good for: the idle life, where it slides."""
    refresh_slides: bool = False
    """Each refresh was seen to move ``refresh_expires_at`` on, so that it is not the session's end."""
    session_started_at: float = 0.0
    session_expires_at: float | None = None
    """When the session is over, however often it is refreshed, where the provider says so."""
    session_notices: int = 0
    """How many of the notices ahead of the session's end were given."""
    authorized_as: Account | None = None
    """Whose login the session is, where a person began it, as far as the provider said."""
    refresh_ended: str = ""
    """Why the refresh token must not be sent any more; empty while it is good."""
    claim: Claim | None = None
    login_claim: Claim | None = None
    """The announcement that the code which a person's login brought is about to be sent; the session's own claim stays.
    """
    approval: Approval | None = None
    """The question that a person is to answer, or left unanswered."""
    answered: str = ""
    """Digest of the link under which a person answered last, so that the page can still say so."""
    answered_until: float = 0.0
    """When that link lapses."""
    thrown: tuple[Thrown, ...] = ()
    """What logins brought that is not to be used, until it is revoked."""
    token: TokenSet | None = None
    """What is published: an access token, or an API key."""
    login: TokenSet | None = None
    """The login's own access token where an API key is what is published."""
    api_keys: tuple[str, ...] = ()
    """Public first characters of the API keys minted and not yet lapsed, oldest first."""
    renewal_time: float = 0.0
    minimum_remaining: float = 0.0
    revocation: Revocation | None = None
    wrong_subject: bool = False
    """The credentials are somebody else's: they are to be revoked and never published."""
    keepsakes: tuple[tuple[str, SecretValue], ...] = ()
    """What the client showed at the last exchange, by where it came from: to revoke with, when its Secrets are gone."""
    buried_at: float = 0.0
    """When the identity was found gone; from then on the record is an order to revoke."""
    shard: str = ""
    """What the shard of an order to revoke hangs on, the uid of the last provider; empty: the first shard."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims that are open."""
        return tuple(claim for claim in (self.claim, self.login_claim) if claim is not None)

    def without_claim(self) -> Record:
        """Return the record with its claim settled."""
        return self if self.claim is None else replace(self, claim=None)

    def with_answer(self) -> Record:
        """Return the record with its question answered: what the page shows of it from now on is that it is done."""
        link = self.approval.link if self.approval is not None else None
        if link is None:
            return replace(self, approval=None)
        return replace(self, approval=None, answered=link.digest, answered_until=link.expires_at)


@dataclass(frozen=True, slots=True)
class Versioned:
    """A record as it was read, with the version that a compare-and-swap wants to see."""

    record: Record = field(repr=False)
    version: str
