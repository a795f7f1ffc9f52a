"""What reaches an OAuth endpoint and what it answers, independent of any HTTP library."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORM: Final = "application/x-www-form-urlencoded"
_MAX_FIELDS: Final = 64
# RFC 8693 2.1 and RFC 8707 2 let these two occur more than once; RFC 6749 3.2 forbids it of all others.
_REPEATABLE: Final = frozenset({"audience", "resource"})


class OAuthError(Exception):
    """An answer of RFC 6749 5.2: the request is refused with an error code and, for people, a description."""

    def __init__(self, code: str, description: str, *, status: int = 400, challenge: bool = False) -> None:
        super().__init__(f"{code}: {description}")
        self.code = code
        self.description = description
        self.status = status
        self.challenge = challenge

    def answer(self) -> Answer:
        """Return the error as the answer to send; a 401 to an Authorization header carries a challenge."""
        headers = {"WWW-Authenticate": 'Basic realm="keyferry-demo"'} if self.challenge else {}
        return Answer(self.status, {"error": self.code, "error_description": self.description}, headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: ``payload`` is sent as JSON; ``None`` is an empty body (RFC 7009 2.2)."""

    status: int
    payload: object = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The parts of an HTTP request that an authorization server looks at.

    ``certificate_subject`` is the common name of a client certificate that the TLS layer has verified.
    """

    method: str
    path: str
    body: bytes = field(default=b"", repr=False)
    content_type: str = ""
    authorization: str | None = field(default=None, repr=False)
    certificate_subject: str | None = None


@dataclass(frozen=True, slots=True)
class FormRequest:
    """A parsed form: each parameter once, empty ones left out (RFC 6749 3.2), repeatable ones also in ``repeated``."""

    parameters: Mapping[str, str] = field(repr=False)
    repeated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    certificate_subject: str | None = None

    @classmethod
    def parse(cls, request: HttpRequest) -> FormRequest:
        """Parse a request's body.

        Raises ``OAuthError`` (``invalid_request``) where it is no form, not ASCII, too long, or repeats a parameter.
        """
        if request.content_type.partition(";")[0].strip().lower() != FORM:
            raise OAuthError("invalid_request", f"the body must be {FORM}")
        with _as_invalid_request():
            pairs = parse_qsl(request.body.decode("ascii"), errors="strict", max_num_fields=_MAX_FIELDS)
        parameters = dict(pairs)
        repeated: dict[str, tuple[str, ...]] = {}
        for name in _REPEATABLE & parameters.keys():
            repeated[name] = tuple(value for key, value in pairs if key == name)
        if len(parameters) + sum(len(values) - 1 for values in repeated.values()) != len(pairs):
            raise OAuthError("invalid_request", "a parameter occurs more than once")
        return cls(parameters, repeated, request.authorization, request.certificate_subject)

    def get(self, name: str) -> str | None:
        """Return a parameter's value, or ``None`` where it is absent or empty."""
        return self.parameters.get(name)

    def require(self, name: str) -> str:
        """Return a parameter's value; raises ``OAuthError`` (``invalid_request``) where it is absent or empty."""
        value = self.parameters.get(name)
        if value is None:
            raise OAuthError("invalid_request", f"the parameter {name} is missing")
        return value


@contextmanager
def _as_invalid_request() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise OAuthError("invalid_request", "the body is not a well-formed form") from error
