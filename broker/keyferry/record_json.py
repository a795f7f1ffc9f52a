"""The private state of one identity as JSON. What these functions return holds secrets: it goes to the store only."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from keyferry.approval import Approval, Candidate, Link, Login, Thrown
from keyferry.errors import StoreError
from keyferry.model import ObjectKey, TokenSet
from keyferry.question import Account
from keyferry.record import Binding, Chain, Claim, Record, Revocation
from keyferry.secret import SecretValue

SCHEMA: Final = 1


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
    for name in ("claim", "login_claim", "binding", "revocation", "authorized_as"):
        nested = getattr(record, name)
        if nested is not None:
            out[name] = _slots(nested)
    if record.keepsakes:
        out["keepsakes"] = {place: content.reveal() for place, content in record.keepsakes}
    secret_parts = {
        "approval": record.approval and _encode_approval(record.approval),
        "thrown": [_encode_issued(each) for each in record.thrown] or None,
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
            login_claim=Claim(**data["login_claim"]) if "login_claim" in data else None,
            binding=_decode_binding(data.get("binding")),
            authorized_as=_decode_account(data.get("authorized_as")),
            revocation=Revocation(**data["revocation"]) if "revocation" in data else None,
            keepsakes=tuple((place, SecretValue(text)) for place, text in data.get("keepsakes", {}).items()),
            approval=_decode_approval(data["approval"]) if "approval" in data else None,
            thrown=tuple(Thrown(**_decode_issued(each)) for each in data.get("thrown", ())),
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
    "api_keys", "renewal_time", "minimum_remaining", "wrong_subject", "buried_at", "former_seeds", "planting", "shard",
    "answered", "answered_until",
)  # fmt: skip

_TOKEN_PLAIN: Final = (
    "token_type", "issued_at", "expires_at", "scope", "refresh_expires_at", "issued_token_type", "subject", "email",
    "issuer", "publishable", "problem",
)  # fmt: skip


def _slots(value: Any) -> dict[str, Any]:
    return {slot: getattr(value, slot) for slot in value.__slots__}


def _decode_binding(data: dict[str, Any] | None) -> Binding | None:
    return Binding(**{**data, "hosts": tuple(data["hosts"])}) if data else None


def _decode_account(data: dict[str, Any] | None) -> Account | None:
    return Account(**data) if data else None


def _encode_chain(chain: Chain) -> dict[str, Any]:
    out = _slots(chain) | {"refresh_token": chain.refresh_token.reveal()}
    for name in ("binding", "authorized_as"):
        nested = out.pop(name)
        if nested is not None:
            out[name] = _slots(nested)
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


def _encode_token(token: TokenSet) -> dict[str, Any]:
    """Return a token; its refresh token has a place of its own in the record."""
    out: dict[str, Any] = {"access_token": token.access_token.reveal()}
    if token.id_token is not None:
        out["id_token"] = token.id_token.reveal()
    for name in _TOKEN_PLAIN:
        value = getattr(token, name)
        if value not in ("", None):
            out[name] = value
    return out


def _encode_whole(token: TokenSet) -> dict[str, Any]:
    """Return a token with its refresh token: one that is not, or not yet, the identity's session."""
    refresh = {"refresh_token": token.refresh_token.reveal()} if token.refresh_token is not None else {}
    return _encode_token(token) | refresh


def _decode_token(data: dict[str, Any]) -> TokenSet:
    plain: dict[str, Any] = {name: data[name] for name in _TOKEN_PLAIN if name in data}
    plain |= {name: SecretValue(data[name]) for name in ("id_token", "refresh_token") if name in data}
    return TokenSet(access_token=SecretValue(data["access_token"]), **plain)


def _encode_approval(approval: Approval) -> dict[str, Any]:
    out = {name: getattr(approval, name) for name in _APPROVAL_PLAIN}
    out["device_code"] = approval.device_code.reveal()
    if approval.link is not None:
        out["link"] = _slots(approval.link) | {"secret": approval.link.secret.reveal()}
    if approval.login is not None:
        out["login"] = _encode_login(approval.login)
    if approval.candidate is not None:
        candidate = approval.candidate
        out["candidate"] = _encode_issued(candidate)
    return out


def _decode_approval(data: dict[str, Any]) -> Approval:
    link, candidate = data.get("link"), data.get("candidate")
    return Approval(
        device_code=SecretValue(data["device_code"]),
        link=Link(**{**link, "secret": SecretValue(link["secret"])}) if link is not None else None,
        login=_decode_login(data["login"]) if "login" in data else None,
        candidate=Candidate(**_decode_issued(candidate)) if candidate is not None else None,
        **{name: data[name] for name in _APPROVAL_PLAIN if name in data},
    )


def _encode_login(login: Login) -> dict[str, Any]:
    out = _slots(login) | {"binding": _slots(login.binding) if login.binding is not None else None}
    for name in _LOGIN_SECRETS:
        secret = out.pop(name)
        if secret is not None:
            out[name] = secret.reveal()
    return out


def _decode_login(data: dict[str, Any]) -> Login:
    secrets: dict[str, Any] = {name: SecretValue(data[name]) for name in _LOGIN_SECRETS if name in data}
    return Login(**{**data, **secrets, "binding": _decode_binding(data["binding"])})


def _encode_issued(issued: Candidate | Thrown) -> dict[str, Any]:
    return _slots(issued) | {"tokens": _encode_whole(issued.tokens), "binding": _slots(issued.binding)}


def _decode_issued(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"tokens": _decode_token(data["tokens"]), "binding": _decode_binding(data["binding"])}


_APPROVAL_PLAIN: Final = (
    "attempt_id", "spec_hash", "begun_at", "expires_at", "user_code", "verification_uri", "verification_uri_complete",
    "interval", "ended",
)  # fmt: skip
_LOGIN_SECRETS: Final = ("state", "verifier", "nonce", "code", "email")
