"""One identity in words: how it is, why, what to do next, and what happened to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from keyferry.run.prompt import address
from keyferry.run.table import STYLES, clean, described, relative
from keyferry_operator.client import Kind
from keyferry_operator.kubectl.advice import next_step
from keyferry_operator.kubectl.api import RefusedError
from keyferry_operator.kubectl.statuses import condition, seconds, unseen_change

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyferry.engine import IdentityStatus
    from keyferry_operator.client import Object
    from keyferry_operator.kubectl.api import Api

CORE_EVENTS: Final = Kind("", "v1", "events")
"""The same Events that the operator writes to events.k8s.io: these are what the role ``view`` may read."""
EVENTS_SHOWN: Final = 10
_MEANING: Final = {
    ("Ready", "True"): "the published token can be used",
    ("Ready", "False"): "there is no token that can be used",
    ("Reconciling", "True"): "Keyferry is at work, or tries again by itself",
    ("Reconciling", "False"): "nothing is under way",
    ("Stalled", "True"): "only a change or a person helps",
    ("Stalled", "False"): "nothing has to be done",
}


def print_details(api: Api, body: Object, status: IdentityStatus) -> None:
    """Print one identity."""
    tty = sys.stdout.isatty()
    console = Console() if tty else Console(width=200)
    now = api.now()
    state = status.state(now)
    console.print(
        Text.assemble((clean(str(status.key)), "bold"), ": ", (state.value, STYLES[state])), soft_wrap=not tty
    )
    for label, text in _lines(body, status, now):
        console.print(Text(f"  {label + ':':<13}{clean(text)}"), soft_wrap=not tty)
    console.print("  Events:", soft_wrap=True)
    for line in _events(api, body):
        console.print(Text(f"    {clean(line)}"), soft_wrap=not tty)


def _lines(body: Object, status: IdentityStatus, now: float) -> Iterator[tuple[str, str]]:
    spec, told = body.get("spec") or {}, body.get("status") or {}
    reference = spec.get("providerRef") or {}
    yield "Provider", f"{reference.get('kind') or 'TokenProvider'} {status.provider}"
    yield "Grant", status.grant
    secret = (told.get("binding") or {}).get("name")
    private = (spec.get("target") or {}).get("type") == "None"
    yield "Secret", secret or ("none, by target.type: None" if private else "not written yet")
    if status.revision:
        issued, expires = (relative(at, now) for at in (status.issue_time, status.expiration_time))
        yield "Token", f"revision {status.revision}, issued {issued}, expires {expires}"
    if status.retry is None and status.renewal_time is not None:
        yield "Renews", relative(max(status.renewal_time, now), now)
    elif status.next_attempt_time is not None:
        yield "Next try", relative(max(status.next_attempt_time, now), now)
    yield from _people(status, now)
    for line in _pods(told, now):
        yield "Held by", line
    for kind in ("Ready", "Reconciling", "Stalled"):
        found = condition(body, kind)
        if found:
            yield kind, f"{found.get('status')}: {_MEANING.get((kind, str(found.get('status'))), '')}"
    yield "Reason", f"{status.shown_reason(now).value}: {status.message}"
    if status.error_code:
        yield "Last error", f"{status.error_code}, {_times(status.failure_count)}"
    if unseen_change(body):
        yield "Note", "no operator has looked at the last change of the spec yet"
    yield "Next", next_step(status, now)


def _pods(told: Object, now: float) -> Iterator[str]:
    """Yield the pods that hold it, by their own word, and how old it is: those that are behind first."""
    consumers = told.get("consumers")
    if not isinstance(consumers, dict):
        return
    current = int(told.get("revision") or 0)
    known = [(int(held.get("revision") or 0), pod, held) for pod, held in consumers.items() if isinstance(held, dict)]
    for revision, pod, held in sorted(known, key=lambda each: each[:2]):
        age = "the current one" if revision >= current else f"{current - revision} behind"
        yield f"pod {pod}: revision {revision}, {age}, written {relative(seconds(held.get('time')), now)}"


def _people(status: IdentityStatus, now: float) -> Iterator[tuple[str, str]]:
    """Yield what people have to do with it: who is asked, who approved, and until when that holds."""
    if status.prompt is not None:
        yield "Approve", f"at {address(status.prompt)}, code {status.prompt.user_code}"
    elif status.unapproved:
        yield "Approval", f"the last question came to nothing: {status.unapproved}"
    if status.authorized_as is not None:
        yield "Approved", f"by {described(status.authorized_as)}"
    if status.reauthorize_by_time is not None:
        yield "Log in", f"again {relative(status.reauthorize_by_time, now)} at the latest: the session ends then"


def _times(count: int) -> str:
    return "1 failure" if count == 1 else f"{count} failures in a row"


def _events(api: Api, body: Object) -> Iterator[str]:
    metadata = body["metadata"]
    try:
        found = api.items(CORE_EVENTS, metadata["namespace"], fieldSelector=f"involvedObject.uid={metadata['uid']}")[1]
    except RefusedError as error:
        yield error.message
        return
    timed = sorted(((_at(event), event) for event in found), key=lambda pair: pair[0])
    for at, event in timed[-EVENTS_SHOWN:]:
        word, reason = event.get("type", ""), event.get("reason", "")
        yield f"{relative(at, api.now()):<14}{word:<9}{reason}: {event.get('message', '')}"
    if not timed:
        yield "none; the API server keeps them for an hour, mostly"


def _at(event: Object) -> float:
    return next((at for name in ("lastTimestamp", "eventTime") if (at := seconds(event.get(name)))), 0.0)
