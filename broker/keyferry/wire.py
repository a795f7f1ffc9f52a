"""What the broker API and those who ask it say to each other, as JSON-ready values (the contract, "Broker API").

Here are values and their codecs alone, for a sidecar reads them: no web server, no schema library. A decoder raises
``Malformed`` for anything that the other side should not have sent; its message repeats none of it.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.model import ObjectKey
    from keyferry.providers.labarchives.login import LabArchivesUser, SignedCall

AUDIENCE: Final = "keyferry"
"""Audience of the service-account tokens that are presented."""
MEDIA_TYPE: Final = "application/json"
PROBLEM_TYPE: Final = "application/problem+json"
"""Media type of every answer that is an error (RFC 9457 3)."""
LONGEST_WAIT: Final = 55
"""Seconds for which a request is held at most, whatever ``Prefer: wait`` asks (RFC 7240 4.3)."""
ROOT: Final = "/var/run/keyferry"
"""Where the directories of a pod's identities are."""
ENDPOINT_MARKER: Final = "@@keyferry:endpoint@@"
"""Stands in a local file for the URL of the identity's loopback endpoints, without a slash at the end."""
PLACEHOLDER_MARKER: Final = "@@keyferry:placeholder@@"
"""Stands in a local file for what the pod's workloads present to them."""

_PATH: Final = re.compile(r"[-._~+%a-zA-Z0-9]{1,1024}(/[-._~+%a-zA-Z0-9]{1,1024}){0,7}")


class Malformed(ValueError):
    """The other side sent what it should not have. The message holds nothing of it."""


class ProblemReason:
    """What ``Problem.reason`` says beside the reasons of ``keyferry.errors.Reason``."""

    BAD_REQUEST: Final = "BadRequest"
    UNAUTHENTICATED: Final = "Unauthenticated"
    """No token, or none that is good here and now."""
    NOT_FOUND: Final = "NotFound"
    """Not there, or not for whoever asks: all the same."""
    NOT_OFFERED: Final = "NotOffered"
    """The identity has no such endpoint."""
    NOT_SIGNED: Final = "NotSigned"
    """The provider does not list this LabArchives method."""
    MISDIRECTED: Final = "Misdirected"
    """Another replica looks after the identity; ask again, on a new connection."""
    TOO_MANY_REQUESTS: Final = "TooManyRequests"
    UNAVAILABLE: Final = "Unavailable"
    """Not just now; ask again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, for programs and people (RFC 9457)."""

    status: int
    reason: str
    """Stable; one of ``ProblemReason`` or of ``keyferry.errors.Reason``."""
    detail: str
    """What happened, and what can be done; holds no secret."""
    next_attempt_time: float | None = None
    """When Keyferry tries again by itself, Unix seconds."""

    def to_json(self) -> dict[str, Any]:
        """Return the members; ``type`` is a name of its own (RFC 4151), since there is no page to show."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", self.reason).lower()
        body: dict[str, Any] = {
            "type": f"tag:keyferry.dev,2026:problem/{words}",
            "title": words.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        if self.next_attempt_time is not None:
            body["nextAttemptTime"] = timestamp(self.next_attempt_time)
        return body

    @staticmethod
    def from_json(data: object, status: int) -> Problem:
        """Read an error; what is not said, or not well, is filled in from the ``status`` of the answer."""
        body = data if isinstance(data, dict) else {}
        reason, detail, at = (body.get(name) for name in ("reason", "detail", "nextAttemptTime"))
        return Problem(
            status=status,
            reason=reason if isinstance(reason, str) and reason.isascii() and reason.isalnum() else _default(status),
            detail=detail if isinstance(detail, str) and detail.isprintable() else f"the broker answered {status}",
            next_attempt_time=_moment(at) if isinstance(at, str) else None,
        )


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One file of an identity's directory."""

    path: str
    """Relative, of plain segments."""
    content: SecretValue
    local: bool = False
    """The content holds markers, which whoever writes the file replaces."""

    def completed(self, endpoint: str, placeholder: SecretValue) -> SecretValue:
        """Return the content, with what stands for the pod's own endpoints replaced where it is local."""
        if not self.local:
            return self.content
        text = self.content.reveal().replace(ENDPOINT_MARKER, endpoint)
        return SecretValue(text.replace(PLACEHOLDER_MARKER, placeholder.reveal()))


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """The current token of an identity, with its files. Times are Unix seconds."""

    access_token: SecretValue
    """Empty for an identity that has no token of its own (LabArchives): its endpoints sign instead."""
    token_type: str
    issued_at: float
    expires_at: float
    scope: str
    revision: int
    files: tuple[TokenFile, ...] = field(default=())
    age: float | None = None
    """For how many seconds the answering replica had this revision; None where it began with it."""

    def to_json(self, now: float | None = None) -> dict[str, Any]:
        """Return the members; ``expires_in`` counts from ``now`` (default: the clock's)."""
        return self.lasting() | self.passing(now)

    def lasting(self) -> dict[str, Any]:
        """Return those members that are the same whenever they are told."""
        return {
            "access_token": self.access_token.reveal(),
            "token_type": self.token_type,
            "issued_at": timestamp(self.issued_at),
            "expires_at": timestamp(self.expires_at),
            "scope": self.scope,
            "revision": self.revision,
            "files": [
                {"path": file.path, "content": file.content.reveal(), "local": file.local} for file in self.files
            ],
        }

    def passing(self, now: float | None = None) -> dict[str, Any]:
        """Return the others; ``now`` as for ``to_json``."""
        left = self.expires_at - (time.time() if now is None else now)
        return {"expires_in": max(0, int(left)), "age": None if self.age is None else round(self.age, 4)}

    @staticmethod
    def from_json(data: object) -> TokenAnswer:
        """Read what ``to_json`` made. Raises Malformed."""
        body = _object(data)
        files = tuple(_file(each) for each in _list(body, "files"))
        if len({file.path for file in files}) != len(files):
            raise Malformed("two files have one path")
        age = body.get("age")
        return TokenAnswer(
            access_token=SecretValue(_text(body, "access_token")),
            token_type=_text(body, "token_type"),
            issued_at=_time(body, "issued_at"),
            expires_at=_time(body, "expires_at"),
            scope=_text(body, "scope"),
            revision=_integer(body, "revision"),
            files=files,
            age=None if age is None else _number(body, "age"),
        )


@dataclass(frozen=True, slots=True)
class HeldReport:
    """A pod's word that it has written a revision."""

    revision: int
    written_at: float
    """Unix seconds, by the pod's clock."""
    delay_seconds: float | None = None
    """From when the revision was had by a replica (``TokenAnswer.age``) to when its last file was written.

    None where the pod did not wait for it, so that it tells nothing of how fast it came.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the members."""
        return {"revision": self.revision, "written_at": self.written_at, "delay_seconds": self.delay_seconds}

    @staticmethod
    def from_json(data: object) -> HeldReport:
        """Read what ``to_json`` made. Raises Malformed."""
        body = _object(data)
        delay = None if body.get("delay_seconds") is None else _number(body, "delay_seconds")
        written_at, revision = _number(body, "written_at"), _integer(body, "revision")
        if written_at < 0 or revision < 1 or (delay is not None and delay < 0):
            raise Malformed("a number is negative")
        return HeldReport(revision, written_at, delay)


def identity_path(key: ObjectKey) -> str:
    """Return the path of an identity, which those of all that can be asked of it begin with."""
    return f"/v1/namespaces/{key.namespace}/identities/{key.name}"


def timestamp(seconds: float) -> str:
    """Write Unix seconds as RFC 3339 in UTC, cut to the whole second: an expiry is never told later than it is."""
    return datetime.fromtimestamp(math.floor(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- LabArchives ------------------------------------------------------------------------------------------------------


def encode_call(call: SignedCall) -> dict[str, Any]:
    """Return what a signed call needs; it holds a user id and a signature that is good for two minutes."""
    signature = call.signature
    return {
        "region": call.region,
        "uid": call.uid.reveal(),
        "accessKeyId": signature.access_key_id,
        "expires": signature.expires,
        "signature": signature.value,
        "authorities": call.authorities,
    }


def decode_call(data: object) -> SignedCall:
    """Return what ``encode_call`` made. Raises Malformed."""
    from keyferry.providers.labarchives.login import SignedCall  # noqa: PLC0415 - few sidecars need it, and none at first
    from keyferry.providers.labarchives.signature import Signature  # noqa: PLC0415

    body = _object(data)
    signature = Signature(_text(body, "accessKeyId"), _integer(body, "expires"), _text(body, "signature"))
    authorities = None if body.get("authorities") is None else _text(body, "authorities")
    return SignedCall(_text(body, "region"), SecretValue(_text(body, "uid")), signature, authorities)


def encode_user(user: LabArchivesUser) -> dict[str, Any]:
    """Return a person's login, without the user id: nobody who asks for it needs that."""
    return {
        "email": user.email,
        "fullName": user.full_name,
        "mayLogInAlone": user.may_log_in_alone,
        "notebooks": [{"id": each.id, "name": each.name, "isDefault": each.is_default} for each in user.notebooks],
    }


def decode_user(data: object) -> LabArchivesUser:
    """Return what ``encode_user`` made; its user id is empty. Raises Malformed."""
    from keyferry.providers.labarchives.login import LabArchivesUser, Notebook  # noqa: PLC0415 - see above

    body = _object(data)
    notebooks = tuple(
        Notebook(_text(each, "id"), _text(each, "name"), _flag(each, "isDefault"))
        for each in map(_object, _list(body, "notebooks"))
    )
    return LabArchivesUser(
        SecretValue(""), _text(body, "email"), _text(body, "fullName"), _flag(body, "mayLogInAlone"), notebooks
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def _file(data: object) -> TokenFile:
    body = _object(data)
    path = _text(body, "path")
    if _PATH.fullmatch(path) is None or any(part in {".", ".."} for part in path.split("/")):
        raise Malformed("the path of a file leads elsewhere")
    return TokenFile(path, SecretValue(_text(body, "content")), local=_flag(body, "local"))


def _object(data: object) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise Malformed("an object is missing")
    return data


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if not isinstance(value, list):
        raise Malformed(f"{name} is missing, or no list")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise Malformed(f"{name} is missing, or no text")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool):
        raise Malformed(f"{name} is missing, or neither true nor false")
    return value


def _integer(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise Malformed(f"{name} is missing, or no whole number")
    return value


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e15:  # noqa: PLR2004 - any
        raise Malformed(f"{name} is missing, or no number")
    return float(value)


def _time(body: Mapping[str, Any], name: str) -> float:
    moment = _moment(_text(body, name))
    if moment is None:
        raise Malformed(f"{name} is no time (RFC 3339)")
    return moment


def _moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _default(status: int) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return ProblemReason.UNAUTHENTICATED
        case HTTPStatus.NOT_FOUND:
            return ProblemReason.NOT_FOUND
        case HTTPStatus.MISDIRECTED_REQUEST:
            return ProblemReason.MISDIRECTED
        case HTTPStatus.TOO_MANY_REQUESTS:
            return ProblemReason.TOO_MANY_REQUESTS
        case _ if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return ProblemReason.BAD_REQUEST
        case _:
            return ProblemReason.UNAVAILABLE
