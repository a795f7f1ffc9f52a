"""What to do next, for each reason that an identity can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.engine.job import ASKABLE
from keyferry.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.engine import IdentityStatus

NEXT: Final[Mapping[Reason, str]] = {
    Reason.ISSUED: "nothing",
    Reason.PENDING: "wait a moment; if it lasts, see whether an operator works",
    Reason.RETRYING: "usually nothing: Keyferry tries again by itself; look at the message if it lasts",
    Reason.EXPIRED: "look at the last error: the published token is past its expiry",
    Reason.APPROVAL_REQUIRED: "put a new refresh token, or another login, into the Secret that the grant names",
    Reason.REFRESH_IN_DOUBT: "nothing yet: the token is served on; have a new refresh token at hand",
    Reason.SUSPENDED: "set spec.suspend to false, or suspendAll of the installation, to go on",
    Reason.LIFETIME_TOO_SHORT: "do as the message says: longer tokens, less demand, or the sidecar",
    Reason.INVALID_SPEC: "correct the resource: `kubectl keyferry lint FILE` tells all mistakes at once",
    Reason.PROVIDER_NOT_FOUND: "create the provider, or correct spec.providerRef",
    Reason.PROVIDER_NOT_ALLOWED: "ask whoever administers the provider, or the installation, to allow it",
    Reason.PROVIDER_CHANGED: "change the provider back, or delete the identity and create it again",
    Reason.GRANT_NOT_SUPPORTED: "use another grant, format or provider, or a later version of Keyferry",
    Reason.FORMAT_NEEDS_SIDECAR: "leave the format out, or deliver through a sidecar (target.type: None)",
    Reason.SECRET_NOT_FOUND: "create what the message names; Keyferry goes on by itself",
    Reason.SECRET_NOT_LABELLED: "if the Secret is meant to be used, run the kubectl line of the message",
    Reason.HOST_NOT_ALLOWED: "if the host is right, do what the message says would allow it",
    Reason.SECRET_NOT_OWNED: "delete or rename that Secret, or choose another spec.target.secretName",
    Reason.CLIENT_REJECTED: "correct the client's id, or the secret in its Secret; Keyferry goes on by itself",
    Reason.GRANT_REJECTED: "correct the credential in its Secret, or what the resource asks for",
    Reason.WRONG_SUBJECT: "log in as the right account, or correct spec.expectedSubject",
    Reason.SEED_ALREADY_USED: "obtain a refresh token of its own for this identity",
    Reason.STATE_FOREIGN: "restore the right private state, or delete the identity and create it again",
    Reason.IDENTITY_CYCLE: "let one of the identities obtain its token in another way",
}


def next_step(status: IdentityStatus, now: float) -> str:
    """Return what a person is to do about an identity; nothing, mostly."""
    reason = status.shown_reason(now)
    if reason in {Reason.APPROVAL_REQUIRED, Reason.WRONG_SUBJECT} and status.grant in ASKABLE:
        who = f"log in as {'the right account' if reason is Reason.WRONG_SUBJECT else 'the account it is for'}"
        return f"{who}: `kubectl keyferry login {status.key.name} -n {status.key.namespace}` shows where"
    return NEXT[reason]
