"""The private state of one identity: what must survive a crash, as frozen values and as JSON.

It is the only place where refresh tokens are kept. Whoever may read it may act as the workload.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from keyferry.approval import Approval, decode_approval, encode_approval
from keyferry.errors import StoreError
from keyferry.model import ObjectKey, TokenSet
from keyferry.question import Account
from keyferry.secret import SecretValue

SCHEMA: Final = 1


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
    approval: Approval | None = None
    """The question that a person is to answer, or left unanswered."""
    answered: str = ""
    """Digest of the link under which a person answered last, so that the page can still say so."""
    answered_until: float = 0.0
    """When that link lapses."""
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

    def without_claim(self) -> Record:
        """Return the record with its claim settled."""
        return replace(self, claim=None)

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


def encode(record: Record) -> dict[str, Any]:
    """Return the record as JSON-ready values. The result holds secrets: it goes to the private state only."""
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "uid": record.uid,
        "namespace": record.key.namespace,
        "name": record.key.name,
    }
    for name in _PLAIN:
        value = getattr(record, name)
        if value not in (None, "", 0, 0.0, (), False):
            out[name] = list(value) if isinstance(value, tuple) else value
    if record.refresh_token is not None:
        out["refresh_token"] = record.refresh_token.reveal()
    for name in _NESTED:
        nested = getattr(record, name)
        if nested is not None:
            out[name] = _encode_nested(nested)
    if record.keepsakes:
        out["keepsakes"] = {place: content.reveal() for place, content in record.keepsakes}
    secret_parts = {
        "approval": record.approval and encode_approval(record.approval),
        "previous": record.previous and _encode_chain(record.previous),
        "token": record.token and _encode_token(record.token),
        "login": record.login and _encode_token(record.login),
    }
    out |= {name: part for name, part in secret_parts.items() if part is not None}
    return out


def decode(data: Any) -> Record:
    """Return the record that ``encode`` made.

    Raises StoreError when it is damaged or of a newer schema; its content is never part of the message.
    """
    try:
        if data["schema"] != SCHEMA:
            raise StoreError(
                f"the private state has schema {data['schema']!r}; this version of Keyferry knows {SCHEMA}"
            )
        plain: dict[str, Any] = {
            name: tuple(data[name]) if isinstance(data[name], list) else data[name] for name in _PLAIN if name in data
        }
        return Record(
            uid=data["uid"],
            key=ObjectKey(data["namespace"], data["name"]),
            refresh_token=SecretValue(data["refresh_token"]) if "refresh_token" in data else None,
            claim=Claim(**data["claim"]) if "claim" in data else None,
            binding=_decode_binding(data.get("binding")),
            authorized_as=_decode_account(data.get("authorized_as")),
            revocation=Revocation(**data["revocation"]) if "revocation" in data else None,
            keepsakes=tuple((place, SecretValue(text)) for place, text in data.get("keepsakes", {}).items()),
            approval=decode_approval(data["approval"]) if "approval" in data else None,
            previous=_decode_chain(data["previous"]) if "previous" in data else None,
            token=_decode_token(data["token"]) if "token" in data else None,
            login=_decode_token(data["login"]) if "login" in data else None,
            **plain,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"the private state is damaged ({type(error).__name__})") from None


def dumps(record: Record, version: int) -> bytes:
    """Return the record and its version as one line of JSON."""
    return json.dumps({"version": version, "record": encode(record)}, separators=(",", ":")).encode()


def loads(data: bytes) -> tuple[Record, int]:
    """Return the record and the version that ``dumps`` wrote. Raises StoreError when they are damaged."""
    try:
        outer = json.loads(data)
        version = outer["version"]
        inner = outer["record"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StoreError("the private state is damaged (not the JSON that Keyferry writes)") from None
    if not isinstance(version, int):
        raise StoreError("the private state is damaged (no version)")
    return decode(inner), version


_VERSION: Final = re.compile(rb'\{"version":([0-9]{1,18}),"record":\{')


def version_of(head: bytes) -> int | None:
    """Return the version by the beginning of what ``dumps`` wrote, None where it begins in another way."""
    match = _VERSION.match(head)
    return int(match[1]) if match is not None else None


_PLAIN: Final = (
    "origin", "source", "generation", "revision", "spec_hash", "seed", "refresh_issued_at", "refresh_expires_at",
    "refresh_idle", "refresh_slides", "session_started_at", "session_expires_at", "session_notices", "refresh_ended",
    "api_keys", "renewal_time", "minimum_remaining",
    "wrong_subject", "buried_at", "former_seeds", "planting", "shard", "answered",
    "answered_until",
)  # fmt: skip

_NESTED: Final = ("claim", "binding", "revocation", "authorized_as")

_TOKEN_PLAIN: Final = (
    "token_type", "issued_at", "expires_at", "scope", "refresh_expires_at", "issued_token_type", "subject", "email",
    "issuer", "publishable", "problem",
)  # fmt: skip


def _encode_chain(chain: Chain) -> dict[str, Any]:
    out = _encode_nested(chain) | {"refresh_token": chain.refresh_token.reveal()}
    for name in ("binding", "authorized_as"):
        nested = out.pop(name)
        if nested is not None:
            out[name] = _encode_nested(nested)
    return out


def _decode_chain(data: dict[str, Any]) -> Chain:
    return Chain(
        **{
            **data,
            "refresh_token": SecretValue(data["refresh_token"]),
            "binding": _decode_binding(data.get("binding")),
            "authorized_as": _decode_account(data.get("authorized_as")),
        }
    )


def _encode_nested(value: Any) -> dict[str, Any]:
    return {slot: getattr(value, slot) for slot in value.__slots__}


def _decode_binding(data: dict[str, Any] | None) -> Binding | None:
    return Binding(**{**data, "hosts": tuple(data["hosts"])}) if data else None


def _decode_account(data: dict[str, Any] | None) -> Account | None:
    return Account(**data) if data else None


def _encode_token(token: TokenSet) -> dict[str, Any]:
    out: dict[str, Any] = {"access_token": token.access_token.reveal()}
    if token.id_token is not None:
        out["id_token"] = token.id_token.reveal()
    for name in _TOKEN_PLAIN:
        value = getattr(token, name)
        if value not in ("", None):
            out[name] = value
    return out


def _decode_token(data: dict[str, Any]) -> TokenSet:
    plain = {name: data[name] for name in _TOKEN_PLAIN if name in data}
    id_token = data.get("id_token")
    return TokenSet(
        access_token=SecretValue(data["access_token"]),
        id_token=SecretValue(id_token) if id_token is not None else None,
        **plain,
    )
