"""One exchange for one identity: what it is for, what was observed, and where its requests go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from keyferry.engine.apply import ASK_AGAIN, Context, check_publishable, check_subject, with_session
from keyferry.engine.credentials import CredentialReader
from keyferry.engine.seeds import set_aside
from keyferry.engine.wishes import Begin
from keyferry.errors import AnswerError, KeyferryError, Reason, ResourceError, RetryClass
from keyferry.freshness import RenewalPolicy
from keyferry.frozen import replace
from keyferry.io.http import drive
from keyferry.record import Binding, Record, Revocation, Versioned
from keyferry.spec.grant import GrantType
from keyferry.spec.identity import DeletionPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from keyferry.approval import Approval
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Channel, Provider
    from keyferry.engine.wishes import Wish
    from keyferry.model import HttpRequest, HttpResponse, ObjectKey, TokenSet
    from keyferry.plan import Observed
    from keyferry.question import Account
    from keyferry.secret import SecretValue
    from keyferry.spec.identity import ServiceIdentitySpec
    from keyferry.spec.resources import IdentityResource

_T = TypeVar("_T")

REFRESHING: frozenset[GrantType] = frozenset(
    {GrantType.PASSWORD, GrantType.REFRESH_TOKEN, GrantType.DEVICE_CODE, GrantType.AUTHORIZATION_CODE}
)
"""Grants that keep a session going with refresh tokens; the others are simply made again."""


REPEATABLE: frozenset[GrantType] = frozenset(
    {GrantType.CLIENT_CREDENTIALS, GrantType.JWT_BEARER, GrantType.PASSWORD, GrantType.TOKEN_EXCHANGE}
)
"""Grants whose own request may be made at any time, without a person."""


PERSONAL: frozenset[GrantType] = frozenset(
    {GrantType.DEVICE_CODE, GrantType.AUTHORIZATION_CODE, GrantType.LABARCHIVES_LOGIN}
)
"""Grants that begin with a person's approval."""


ASKABLE: frozenset[GrantType] = PERSONAL | {GrantType.LABARCHIVES_CODE}
"""Grants for which a person can be asked: those, and the one-hour code, which may as well come from its Secret."""


@dataclass(slots=True)
class Job:
    """A unit of work that the engine hands to an exchanger."""

    resource: IdentityResource
    uid: str
    provider: Provider
    way: Channel | None
    """Where requests go; None where the job sends none."""
    ports: Ports
    observed: Observed
    held: Versioned | None
    cause: str
    """Fingerprint of the spec and of the credentials that it points to."""
    note: Callable[[str], None]
    """Tells people something that is no failure of the exchange."""
    asked: Callable[[Approval | None, float], None]
    """Told what a person is being asked, and when (Unix seconds) to look for the answer next."""
    take_note: Callable[[Record], None]
    """Told of a record as it was just written, where what a person is asked, or what is to be revoked, is another."""
    wishes: tuple[Wish, ...] = ()
    """What the approval page wants."""
    keepsakes: tuple[tuple[str, SecretValue], ...] = ()
    """What the client shows in this exchange, where it is to be kept for the revocation."""
    restored: bool = False
    """The private state was found to be older than what it published."""

    @property
    def key(self) -> ObjectKey:
        """Namespace and name of the identity."""
        return self.resource.key

    @property
    def spec(self) -> ServiceIdentitySpec:
        """What the identity asks for."""
        return self.resource.spec

    @property
    def channel(self) -> Channel:
        """Where requests go."""
        if self.way is None:
            raise AssertionError("this job sends no requests")
        return self.way

    @property
    def refreshes(self) -> bool:
        """Tell whether the grant keeps a refresh token."""
        return self.spec.grant.type in REFRESHING

    @property
    def can_login(self) -> bool:
        """Tell whether the grant's own request may be made at any time."""
        return self.spec.grant.type in REPEATABLE

    @property
    def asks(self) -> bool:
        """Tell whether a person is asked when there is no session to go on with."""
        return self.spec.grant.type in PERSONAL

    def begins(self) -> Iterator[Begin]:
        """Yield the logins that are to be begun."""
        yield from (wish for wish in self.wishes if isinstance(wish, Begin) and not wish.done.done())

    async def drive(self, exchange: Generator[HttpRequest, HttpResponse, _T]) -> _T:
        """Send what an exchange yields until it returns, and return that."""
        return await drive(exchange, self.channel.send)

    def reader(self, hosts: frozenset[str]) -> CredentialReader:
        """Return a reader for the identity's own references, whose values go to ``hosts``."""
        return CredentialReader(self.ports.credentials, self.key.namespace, hosts)

    def context(self, binding: Binding, idle: float | None) -> Context:
        """Return what a record takes in beside a token."""
        renewal = self.spec.renewal
        return Context(
            spec_hash=self.observed.spec_hash,
            policy=RenewalPolicy(renewal.before, renewal.minimum_remaining, self.ports.reading_delay(self.spec.target)),
            draw=self.ports.rng.random(),
            binding=binding,
            revocation=order_to_revoke(self.spec, self.provider),
            source=self.resource.source,
            idle=idle,
            keepsakes=self.keepsakes if self.spec.deletion_policy is DeletionPolicy.REVOKE else (),
            publish=self.spec.api_key is None,
            personal=not self.can_login,
        )

    def new_record(self) -> Record:
        """Return the first record of the identity."""
        return Record(
            uid=self.uid,
            key=self.key,
            origin=self.ports.store.origin,
            source=self.resource.source,
            revision=self.observed.known_revision,
        )

    async def ensure_record(self) -> Versioned:
        """Return the stored record, made now where there is none."""
        if self.held is None:
            self.held = await self.ports.store.create(self.new_record())
        return self.held

    async def prove_writable(self) -> Versioned:
        """Return the stored record, written just now: what is begun after it can be kept."""
        if self.held is None:
            return await self.ensure_record()
        self.held = await self.ports.store.replace(self.held, self.held.record)
        return self.held

    async def reread(self) -> None:
        """Take in the record as it is now, after an attempt that changed it."""
        self.held = await self.ports.store.read(self.key, self.uid)
        self.observed = replace(self.observed, record=self.held.record if self.held is not None else None)


class Outcome:
    """Takes an answer into a record, and says afterwards whether it may be used."""

    def __init__(self, job: Job, context: Context, *, new_session: bool) -> None:
        self._job = job
        self._context = context
        self._new_session = new_session
        self.issued: TokenSet | None = None

    def apply(self, record: Record, issued: TokenSet) -> Record:
        """Return the record with the answer in it. A wrong subject's credentials are kept only to be revoked."""
        if not self._new_session:
            issued = with_known_holder(issued, record)
        self.issued = issued
        taken = with_session(record, issued, self._context, new_session=self._new_session)
        try:
            self._check_subject(issued)
        except KeyferryError as error:
            # What cannot be told to be the right one's is not published; what is another's is given up.
            return replace(
                taken,
                token=record.token,
                login=record.login,
                revision=record.revision,
                spec_hash=record.spec_hash,
                renewal_time=record.renewal_time,
                wrong_subject=True,
                authorized_as=record.authorized_as,
                refresh_ended=error.message if self.given_up else taken.refresh_ended,
                # A person who is asked ahead of time may be the wrong one: the session before serves on.
                previous=set_aside(record) if self._new_session and self._job.asks else record.previous,
            )
        return taken

    @property
    def given_up(self) -> bool:
        """Tell whether what was issued is to be revoked: it is somebody else's by its own word.

        Or it may be, and a person can be asked again; a seed or a password is not given up for what a scope may mend.
        """
        expected = self._job.spec.expected_subject
        if self.issued is None or expected is None:
            return False
        return self._job.asks or bool(self.issued.subject if expected.subject else self.issued.email)

    def check(self) -> None:
        """Raise AnswerError where what was issued must not be published."""
        if self.issued is None:
            return
        try:
            self._check_subject(self.issued)
        except AnswerError as error:
            if not self._personal:
                raise
            raise AnswerError(f"{error.message} {ASK_AGAIN}", reason=error.reason, retry=error.retry) from None
        check_publishable(self.issued)

    @property
    def _personal(self) -> bool:
        return self._job.asks and self._new_session

    def _check_subject(self, issued: TokenSet) -> None:
        expected = self._job.spec.expected_subject
        if expected is not None:
            check_subject(issued, expected, self._job.key, personal=self._personal)


def note_scope(job: Job, outcome: Outcome) -> None:
    """Say once that less was granted than asked for (RFC 6749 5.1)."""
    issued, before = outcome.issued, job.observed.record
    if issued is None or not issued.scope or not job.spec.scopes:
        return
    missing = [scope for scope in job.spec.scopes if scope not in issued.scope.split()]
    known = before is not None and before.token is not None and before.token.scope == issued.scope
    if missing and not known:
        job.note(f"the provider granted less than was asked for; missing: {' '.join(missing)}")


def with_known_holder(issued: TokenSet, record: Record) -> TokenSet:
    """Return a refreshed token with the holder that its session is known to have, where the answer names nobody.

    A refresh need not bring an ID token (OpenID Connect Core 12.2).
    """
    known: Account | TokenSet | None = record.authorized_as
    if known is None or not known.subject:
        known = record.token if record.token is not None and record.token.subject else record.login
    if issued.subject or known is None:
        return issued
    return replace(issued, subject=known.subject, email=issued.email or known.email)


def check_binding(record: Record | None, binding: Binding) -> None:
    """Raise ResourceError (ProviderChanged) where the kept credentials belong to another provider or client."""
    if record is None or record.binding is None or record.refresh_token is None or record.binding == binding:
        return
    was = record.binding
    changes = [
        what
        for what, differs in (
            ("issuer", was.issuer != binding.issuer),
            ("endpoint hosts", was.hosts != binding.hosts),
            ("client id", was.client_id != binding.client_id),
        )
        if differs
    ]
    raise ResourceError(
        f"the provider's {' and '.join(changes)} changed since the refresh token of ServiceIdentity {record.key} was"
        " issued, so nothing was sent: it belongs to the old one. Change the provider back, or delete the identity and"
        " create it again with a new seed or login.",
        reason=Reason.PROVIDER_CHANGED,
    )


def needs_seed(job: Job) -> ResourceError:
    """Return the error that asks a person for a new credential, with what ended the old one."""
    record = job.observed.record
    if record is None or not record.refresh_ended:
        why = (
            "the last refresh was cut off, so its refresh token may be spent; sending it again could end the session"
            if record is not None and record.claim is not None
            else "there is no refresh token"
        )
    else:
        why = f"the provider ended its session ({record.refresh_ended})"
    grant = job.spec.grant
    where = ""
    if grant.refresh_token is not None:
        ref = grant.refresh_token.from_.secret_key_ref
        where = f" in Secret {job.key.namespace}/{ref.name}, key {ref.key}"
    return ResourceError(
        f"ServiceIdentity {job.key} needs a new refresh token{where}: {why}. What is published stays until it expires;"
        " Keyferry goes on as soon as the Secret changes.",
        reason=Reason.APPROVAL_REQUIRED,
        retry=RetryClass.NEEDS_PERSON,
    )


def order_to_revoke(spec: ServiceIdentitySpec, provider: Provider) -> Revocation:
    """Return how what an identity holds is to be revoked when it goes, and where: its resources may go with it."""
    return Revocation(
        policy=spec.deletion_policy.value,
        provider=provider.written_spec,
        client=spec.client.model_dump(mode="json", by_alias=True, exclude_unset=True) if spec.client else None,
        provider_namespace=provider.resource.key.namespace,
        provider_kind=provider.resource.kind.value,
    )
