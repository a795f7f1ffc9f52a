"""Puts what a provider issued into a record. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.errors import AnswerError, Reason, RetryClass
from keyferry.freshness import RenewalPolicy, renewal_time
from keyferry.frozen import replace
from keyferry.question import Account

if TYPE_CHECKING:
    from keyferry.model import ObjectKey, TokenSet
    from keyferry.record import Binding, Record, Revocation
    from keyferry.secret import SecretValue
    from keyferry.spec.identity import ExpectedSubject

ASK_AGAIN: Final = (
    "To be asked again: `kubectl keyferry login` or `keyferry login` with the identity's name, or the annotation"
    " keyferry.dev/login with a new value."
)

ROUNDING: Final = 2.0
"""Seconds by which two answers about the same end may differ."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a record needs to know beside the token."""

    spec_hash: str
    policy: RenewalPolicy
    draw: float
    """Random number in [0, 1) for the jitter."""
    binding: Binding
    revocation: Revocation
    source: str
    idle: float | None
    """Seconds a refresh token lives unused, where the provider resource says so."""
    keepsakes: tuple[tuple[str, SecretValue], ...] = ()
    """What the client showed; empty where nothing is kept, and then what was kept before stays."""
    publish: bool = True
    """False: the token is the login behind an API key, not what is published."""
    personal: bool = False
    """A person began the session: whose it is belongs to the record."""


def with_session(record: Record, token: TokenSet, context: Context, *, new_session: bool) -> Record:
    """Return the record with a token answer taken in: refresh token, access token, times.

    A refresh token is kept even where the access token beside it may not be published.
    """
    record = replace(
        record,
        source=context.source,
        binding=context.binding,
        revocation=context.revocation,
        keepsakes=context.keepsakes or record.keepsakes,
        generation=record.generation + 1,
        minimum_remaining=context.policy.minimum_remaining,
        wrong_subject=False,
        authorized_as=_holder(record, token, new_session=new_session) if context.personal else None,
    )
    if new_session:
        record = replace(
            record,
            session_started_at=token.issued_at,
            refresh_token=None,
            refresh_idle=None,
            refresh_expires_at=None,
            refresh_slides=False,
            session_expires_at=None,
            session_notices=0,
            previous=None,
        )
    elif not record.session_started_at:
        # A seed was planted, and an earlier try to spend it was cut off.
        record = replace(record, session_started_at=token.issued_at)
    if token.refresh_token is not None:
        record = _with_refresh_token(record, token, context.idle)
    has_more = token.refresh_token is not None or token.refresh_expires_at is not None
    bare = replace(token, refresh_token=None, refresh_expires_at=None) if has_more else token
    if not context.publish:
        return replace(record, login=bare)
    return with_published(record, bare, context) if token.publishable else record


def with_published(record: Record, token: TokenSet, context: Context) -> Record:
    """Return the record with ``token`` as what workloads get from now on."""
    return replace(
        record,
        token=token,
        revision=record.revision + 1,
        spec_hash=context.spec_hash,
        renewal_time=renewal_time(token.issued_at, token.expires_at, context.policy, context.draw),
        minimum_remaining=context.policy.minimum_remaining,
        source=context.source,
        binding=context.binding,
        revocation=context.revocation,
    )


def _holder(record: Record, token: TokenSet, *, new_session: bool) -> Account | None:
    """Return whose login a session is; what a refresh leaves unsaid stays as it was."""
    known = None if new_session else record.authorized_as
    subject, email = (known.subject, known.email) if known is not None else ("", "")
    said = Account(token.subject or subject, token.email or email, known.name if known is not None else "")
    return said if str(said) else None


def _with_refresh_token(record: Record, token: TokenSet, idle: float | None) -> Record:
    expires_at = token.refresh_expires_at
    if idle is None and record.refresh_idle is not None:
        # The first refresh token of a session shows the idle life; a later, shorter one only shows the session's end.
        idle = record.refresh_idle
    if idle is None and expires_at is not None:
        idle = expires_at - token.issued_at
    return replace(
        record,
        refresh_token=token.refresh_token,
        refresh_issued_at=token.issued_at,
        refresh_expires_at=expires_at,
        refresh_idle=idle,
        refresh_slides=_slides(record, token),
        refresh_ended="",
    )


def _slides(record: Record, token: TokenSet) -> bool:
    """Tell whether refreshing moves the refresh token's end on: idle time, not the end of the session.

    Of Keycloak's session idle and maximum, ``refresh_expires_in`` shows whichever comes first.
    """
    if record.refresh_expires_at is None or token.refresh_expires_at is None:
        return False
    passed, moved = token.issued_at - record.refresh_issued_at, token.refresh_expires_at - record.refresh_expires_at
    return record.refresh_slides if passed < 1 else moved >= max(passed - ROUNDING, passed / 2)


def reauthorize_by(record: Record, maximum: float | None, *, refreshing: bool = True) -> float | None:
    """Return when only a person can go on, as far as is known (Unix seconds).

    ``maximum`` is for how long (seconds) a session lasts at most, where the provider resource says so. What slides on
    with each refresh counts only where there are none to come (``refreshing``).
    """
    if record.refresh_token is None or record.refresh_ended:
        return None
    ends = [record.session_expires_at]
    if maximum is not None:
        ends.append(record.session_started_at + maximum)
    if not (refreshing and record.refresh_slides):
        ends.append(record.refresh_expires_at)
    if not refreshing and record.refresh_idle is not None:
        ends.append(record.refresh_issued_at + record.refresh_idle)
    return min((end for end in ends if end is not None), default=None)


def check_publishable(token: TokenSet) -> None:
    """Raise AnswerError for an access token that must not reach a workload."""
    if not token.publishable:
        raise AnswerError(
            f"the provider issued a token that cannot be used: {token.problem}. What was published before stays until"
            " it expires; change the client's settings at the provider, or the resource."
        )


def check_subject(token: TokenSet, expected: ExpectedSubject, key: ObjectKey, *, personal: bool) -> None:
    """Raise AnswerError (WrongSubject) unless the token of the identity ``key`` is the one's that it expects.

    ``personal`` tells that a person has just approved it: then the message is for that person.
    """
    wanted, found, what = (
        (expected.subject, token.subject, "subject")
        if expected.subject
        else (expected.email, token.email, "verified e-mail address")
    )
    if wanted == found:
        return
    refused = (
        _unverifiable(key, what, personal=personal) if not found else _another(key, found, wanted, personal=personal)
    )
    raise AnswerError(refused, reason=Reason.WRONG_SUBJECT, retry=RetryClass.NEEDS_PERSON)


def _another(key: ObjectKey, found: str, wanted: str | None, *, personal: bool) -> str:
    if not personal:
        return (
            f"the login given to ServiceIdentity {key} is that of {found}, and spec.expectedSubject wants {wanted}."
            " Nothing of it was published, and what can be revoked of it is being revoked. Give it the right account's,"
            " or correct spec.expectedSubject."
        )
    return (
        f"ServiceIdentity {key} was approved by {found}, and only {wanted} may approve it (spec.expectedSubject)."
        " Nothing was published, and what that login brought is revoked. If you approved it: log out at the provider,"
        f" or open a private window, and log in as {wanted}; if that is not you, there is nothing more to do."
    )


def _unverifiable(key: ObjectKey, what: str, *, personal: bool) -> str:
    if not personal:
        return (
            f"the token does not say its {what}: spec.expectedSubject is not checked. It was not published; ask for a"
            " scope that makes the token say it (openid, email), or correct spec.expectedSubject."
        )
    return (
        f"ServiceIdentity {key} was approved, but the provider does not say by which {what}, so that"
        " spec.expectedSubject cannot be checked. Nothing was published, and what that login brought is revoked. Ask"
        " for the scopes that make the provider say it (openid, email), have the account's e-mail address verified"
        " there, or correct spec.expectedSubject."
    )
