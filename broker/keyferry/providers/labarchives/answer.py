"""Reading what LabArchives answers: XML, with errors told apart by their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from keyferry.errors import ExchangeError, Reason, Refused, RetryClass
from keyferry.grants.document import shown
from keyferry.grants.failure import Asked, ambiguous, failure, is_success, malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.model import HttpResponse

CLOCK: Final = "4504"
"""The request's time is too far from the server's."""
SESSION_OVER: Final = "4533"
"""The person has to log in again."""
_TOO_MANY_REQUESTS: Final = 429


@dataclass(frozen=True, slots=True)
class _Rule:
    retry: RetryClass
    reason: Reason
    advice: str


_KEY: Final = _Rule(
    RetryClass.NEEDS_CONFIGURATION,
    Reason.CLIENT_REJECTED,
    "LabArchives does not accept the organization's access key: correct the Secret that accessKeyIdFrom and"
    " accessPasswordFrom name, and the region in labarchives.url.",
)
_PERSON: Final = _Rule(
    RetryClass.NEEDS_PERSON,
    Reason.APPROVAL_REQUIRED,
    "LabArchives wants the person to log in again.",
)
_RULES: Final[Mapping[str, _Rule]] = {
    CLOCK: _Rule(
        RetryClass.TRANSIENT,
        Reason.RETRYING,
        "Keyferry sets its clock for LabArchives by the server's and tries again.",
    ),
    "4506": _KEY,
    "4514": _Rule(
        RetryClass.NEEDS_PERSON,
        Reason.GRANT_REJECTED,
        "The e-mail address or the one-hour code is wrong, lapsed or used up: get a new code from LabArchives, or log "
        "in through the page.",
    ),
    "4520": _KEY,
    SESSION_OVER: _PERSON,
}
_UNKNOWN: Final = _Rule(
    RetryClass.NEEDS_CONFIGURATION,
    Reason.GRANT_REJECTED,
    "Keyferry does not know this error: see LabArchives' list of ELN error codes.",
)


def read_tree(response: HttpResponse, asked: Asked) -> Element:
    """Return the root of a successful answer. Raises Refused and Ambiguous, by the error's number where it has one."""
    tree = _parse(response.body)
    if tree is not None:
        code = _text(tree, "error-code")
        if code:
            raise _refused(code, _text(tree, "error-description"), asked)
    if not is_success(response):
        raise _without_code(response, asked)
    if tree is None:
        raise malformed(asked, "gave an answer that is cut off or no XML")
    return tree


def text_of(tree: Element, name: str) -> str:
    """Return the text of a direct child, '' where there is none."""
    return (tree.findtext(name) or "").strip()


def _parse(body: bytes) -> Element | None:
    try:
        root: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return None
    return root


def _text(tree: Element, name: str) -> str:
    found = tree if tree.tag == name else tree.find(f".//{name}")
    return (found.text or "").strip() if found is not None else ""


def _refused(code: str, description: str, asked: Asked) -> ExchangeError:
    rule = _RULES.get(code, _UNKNOWN)
    said = code if code in _RULES else shown(code, secrets=asked.secrets, limit=16) or "unreadable"
    explanation = shown(description, secrets=asked.secrets)
    return Refused(
        f"{asked.sentence} refused: {said}{f' ({explanation})' if explanation else ''}. {rule.advice}",
        code=said,
        reason=rule.reason,
        retry=rule.retry,
    )


def _without_code(response: HttpResponse, asked: Asked) -> ExchangeError:
    """Judge an error that is none of LabArchives' own: of a proxy, or of a server that broke down."""
    error = failure(response, asked)
    if isinstance(error, Refused) and response.status != _TOO_MANY_REQUESTS:
        # JSON with an OAuth error in it cannot come from this API.
        return ambiguous(
            f"answered {response.status} without an error of LabArchives", asked, code="foreign", suspicious=True
        )
    return error
